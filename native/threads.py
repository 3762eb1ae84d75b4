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
    use; of Intel's hybrid processors the fast ones; of several sockets one's; and no more than a control group's CPU
    quota (cgroup v2).
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    sockets: dict[str, set[str]] = {}
    for cpu in _fast(allowed):
        # Between sockets each meeting crosses the link, and so does what lies in the other's memory. (Not measured.)
        socket = _topology(cpu, "physical_package_id")
        sockets.setdefault(socket, set()).add(_topology(cpu, "thread_siblings_list") or str(cpu))
    return max(1, math.floor(min(max(map(len, sockets.values())), _quota())))


def _topology(cpu: int, name: str) -> str:
    return _text(_SYSTEM / f"devices/system/cpu/cpu{cpu}/topology" / name)


def _fast(cpus: set[int]) -> set[int]:
    """Those that are no efficiency cores. Source: Linux's two PMUs of Intel's hybrid processors."""
    return cpus & _numbers(_text(_SYSTEM / "devices/cpu_core/cpus")) or cpus


def _quota() -> float:
    """CPUs of the tightest quota on the way to our control group. Source: Linux's cgroup-v2.rst."""
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
    return min(limits, default=math.inf)


def _numbers(listed: str) -> set[int]:
    """Of "0-3,8": 0, 1, 2, 3, 8."""
    ranges = (match.groups() for match in re.finditer(r"(\d+)(?:-(\d+))?", listed))
    return {cpu for first, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
