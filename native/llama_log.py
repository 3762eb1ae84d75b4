"""The buffers that llama.cpp says it made, read from its log. It says so nowhere else.

The wording is not promised to stay. A line that is not understood is no buffer; which kinds were found is for the
caller to look at.
"""

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from . import messages
from .llama import load_library

BufferKind = Literal["model", "kv", "compute", "output"]

_BUFFER = re.compile(
    r"(?P<place>\S+)\s+(?P<kind>model|KV|compute|output)\s+buffer\s+size\s*=\s*(?P<size>\d+(?:\.\d+)?)\s*(?P<unit>[KMG]i?B)\b",
    re.IGNORECASE,
)
"""E.g. "load_tensors:   CPU_Mapped model buffer size =    13.01 MiB". Source: llama.cpp's src/llama-*.cpp."""
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_KINDS: dict[str, BufferKind] = {"model": "model", "kv": "kv", "compute": "compute", "output": "output"}
_HOST = re.compile(r"CPU|.*_Host$", re.IGNORECASE)
"""Memory of the host: "CPU", "CPU_Mapped", "CPU_REPACK", and what is pinned for a device, "CUDA_Host"."""


class LoggedBuffer(NamedTuple):
    """One buffer of llama.cpp's. Its size is rounded to 0.01 MiB there."""

    kind: BufferKind
    place: str
    size_bytes: int

    @property
    def is_on_host(self) -> bool:
        """Whether it is in the host's memory rather than a device's."""
        return _HOST.match(self.place) is not None


def logged_buffers(lines: Iterable[str]) -> list[LoggedBuffer]:
    """The buffers that `lines` tell of, in order."""
    found = []
    for line in lines:
        for match in _BUFFER.finditer(line):
            size = float(match["size"]) * _UNITS[match["unit"][0].lower()]
            found.append(LoggedBuffer(_KINDS[match["kind"].lower()], match["place"], round(size)))
    return found


class _Capture(logging.Filter):
    """Keeps what one thread logs, and lets through what would have been heard without it."""

    def __init__(self, heard_from: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._thread, self._heard_from = threading.get_ident(), heard_from

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread == self._thread:
            self.lines.append(record.getMessage())
        return record.levelno >= self._heard_from


@contextmanager
def captured_log(level: int = logging.DEBUG) -> Iterator[list[str]]:
    """What llama.cpp logs in this thread within the block; nobody else hears more, or less, of it than before.

    `level` is that of `logging`: `messages.TRACE` for ggml's own debugging too.
    """
    load_library()
    log, earlier = messages.log, messages.log.level
    capture = _Capture(log.getEffectiveLevel())
    log.addFilter(capture)
    log.setLevel(level)
    try:
        yield capture.lines
    finally:
        log.setLevel(earlier)
        log.removeFilter(capture)
