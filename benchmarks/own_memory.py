"""Anonymous resident memory (RssAnon): what a process needs for itself, without the files that it maps. Linux only."""

import ctypes
import gc
from pathlib import Path


def anonymous_bytes(process: int | str = "self") -> int:
    """Of the process with this id; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def settled_anonymous_bytes() -> int:
    """Of this process. What is free and merely kept by the allocator is given back first."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    return anonymous_bytes()
