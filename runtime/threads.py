"""How many CPU threads to compute with."""

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """The physical cores that this process may use.

    ggml's threads wait for each other in busy loops hundreds of times a frame: a second thread on a core, or one more
    than there are cores, costs more than it brings.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        try:
            cores.add((_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
