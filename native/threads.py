"""How many CPU threads to compute with: for ggml, whose threads wait for each other, and for work in separate pieces.

It knows machines, Linux's in detail and of others what psutil knows, and control groups; not what is computed.
"""

import math
import os
import re
from pathlib import Path

import psutil

MOST_THREADS = 512
"""What ggml has room for. Source: `GGML_MAX_N_THREADS` in ggml.h."""

_SYSTEM = Path("/sys")
_OWN_GROUP = Path("/proc/self/cgroup")
_CFS = "cpu.cfs_quota_us", "cpu.cfs_period_us"
"""A quota in version 1 of control groups: -1 is none. Source: Linux's sched-bwc.rst."""


def default_threads() -> int:
    """The cores on which ggml's threads do not wait for each other in vain.

    They meet hundreds of times a frame, in busy loops: a second thread on a core, one core that is slower, or one more
    thread than there is time for, costs more than it brings. So these are the physical cores that this process may
    use; of Intel's hybrid processors the fast ones; of several sockets one's; and no more than a control group's CPU
    quota.
    """
    return _at_least_one(math.floor(min(_cores(), _quota())))


def default_workers() -> int:
    """The CPUs that have time for pieces of work which do not wait for each other: conversion, hashing, compiling.

    The second thread of a core brings something there, and so do slow cores. A quota is rounded up: what is left of it
    is used, and who is held back for the rest of a period holds back nobody else.
    """
    return _at_least_one(math.ceil(min(len(_allowed()), _quota())))


def _at_least_one(count: int) -> int:
    return min(max(1, count), MOST_THREADS)


def _allowed() -> set[int]:
    """The CPUs, second threads of a core among them, that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    # psutil knows it of Windows and FreeBSD; macOS has no such thing.
    process = psutil.Process()
    return set(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else set(range(os.cpu_count() or 1))


def _cores() -> int:
    """Physical cores, one socket's, fast ones, that this process may use: as far as the system says what they are."""
    allowed = _allowed()
    if not hasattr(os, "sched_getaffinity"):
        # Nobody says which CPU is on which core: all that is certain is that there are no more cores than either count.
        return min(psutil.cpu_count(logical=False) or len(allowed), len(allowed))
    sockets: dict[str, set[str]] = {}
    for cpu in _fast(allowed):
        # Between sockets each meeting crosses the link, and so does what lies in the other's memory. (Not measured.)
        socket = _topology(cpu, "physical_package_id")
        sockets.setdefault(socket, set()).add(_topology(cpu, "thread_siblings_list") or str(cpu))
    return max(map(len, sockets.values()))


def _topology(cpu: int, name: str) -> str:
    return _text(_SYSTEM / f"devices/system/cpu/cpu{cpu}/topology" / name)


def _fast(cpus: set[int]) -> set[int]:
    """Those that are no efficiency cores. Source: Linux's two PMUs of Intel's hybrid processors."""
    return cpus & _numbers(_text(_SYSTEM / "devices/cpu_core/cpus")) or cpus


def _quota() -> float:
    """CPUs of the tightest quota on the way to our control group.

    Source: Linux's cgroups(7): a line "0::/path" is of version 2, "4:cpu,cpuacct:/path" of version 1, which may have
    the controller although the other is there too.
    """
    limits = [math.inf]
    for controllers, own in re.findall(r"^\d+:(.*?):/(.*)$", _text(_OWN_GROUP), re.MULTILINE):
        if not controllers:
            mounts = ["", "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [controllers, "cpu"]
        else:
            continue
        limits += [_limit(group) for mount in mounts for group in _way(_SYSTEM / "fs/cgroup" / mount, own)]
    return min(limits)


def _way(mount: Path, own: str) -> list[Path]:
    """A group and all that it is in. Seen from inside a container it may have no folder: then its parents count."""
    group = mount / own
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _limit(group: Path) -> float:
    """CPUs that a group may use."""
    limit = _text(group / "cpu.max") or " ".join(_text(group / name) for name in _CFS)
    quota, _, period = limit.partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf


def _numbers(listed: str) -> set[int]:
    """Of "0-3,8": 0, 1, 2, 3, 8."""
    ranges = (match.groups() for match in re.finditer(r"(\d+)(?:-(\d+))?", listed))
    return {cpu for first, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
