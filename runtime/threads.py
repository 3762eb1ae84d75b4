"""How many CPU threads to compute with."""

import math
import os
import re
from pathlib import Path

_SYSTEM = Path("/sys")
_OWN_GROUP = Path("/proc/self/cgroup")


def default_threads() -> int:
    """The cores on which ggml's threads do not wait for each other in vain.

    They meet hundreds of times a frame, in busy loops: a second thread on a core, one core that is slower, or one more
    thread than there is time for, costs more than it brings. So these are the physical cores that this process may
    use; of a hybrid processor the fast ones; of several NUMA nodes the largest one's; and no more than a container's
    CPU quota.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    chosen = _largest_node(_fast(allowed))
    cores = len(set(map(_core, chosen)))
    return max(1, min(cores, _quota()))


def _core(cpu: int) -> str:
    """What the logical CPUs of one core have in common."""
    return _text(_SYSTEM / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _fast(cpus: set[int]) -> set[int]:
    """Those that are no efficiency cores. Source: Linux's two PMUs of Intel's hybrid processors."""
    return cpus & _numbers(_text(_SYSTEM / "devices/cpu_core/cpus")) or cpus


def _largest_node(cpus: set[int]) -> set[int]:
    """The node with most of them: another one's memory is read at half the speed, and its barriers are slow."""
    nodes = (cpus & _numbers(_text(path)) for path in sorted(_SYSTEM.glob("devices/system/node/node*/cpulist")))
    return max(nodes, key=len, default=cpus) or cpus


def _quota() -> int:
    """Whole CPUs of the tightest quota on the way to our control group, at least 1. Source: Linux's cgroup-v2.rst."""
    lines = _text(_OWN_GROUP).splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    root = _SYSTEM / "fs/cgroup"
    limits = []
    for group in (root / own, *(root / own).parents):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
        if group == root:
            break
    return max(1, math.floor(min(limits))) if limits else _EVERY_CPU


_EVERY_CPU = 1 << 20


def _numbers(listed: str) -> set[int]:
    """Of "0-3,8": 0, 1, 2, 3, 8."""
    ranges = (match.groups() for match in re.finditer(r"(\d+)(?:-(\d+))?", listed))
    return {cpu for first, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
