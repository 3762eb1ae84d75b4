"""A file in the making: written in order under a temporary name, hashed as it goes, renamed when whole.

Written bytes are sent to the disk in the background as they come. Left to the kernel they pile up in memory, and the
final sync of a 14 GB file would begin when the work is done.
"""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..core.errors import BundleError
from ..core.files import PARTIAL_SUFFIX
from ..models.manifest import BundleFile

_FLUSH_BYTES = 64 << 20
_flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
"""One for all files: a disk does not write faster for being asked twice."""


class Sink:
    """Writes `directory/name` as `name.miso-partial`. Only `commit` gives it its name, after all bytes are on disk."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._final = directory / name
        self._partial = directory / (name + PARTIAL_SUFFIX)
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._flushed_bytes = 0
        self._flush: Future[None] | None = None
        # Exclusively: not through a link that has the name, nor into another's file.
        self._file = self._partial.open("xb", buffering=0)
        self._made = os.fstat(self._file.fileno())

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. Raises `OSError` when the disk is full."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self._digest.update(view)
        self._size_bytes += len(view)
        while view:
            view = view[self._file.write(view) :]
        if self._size_bytes - self._flushed_bytes >= _FLUSH_BYTES and (self._flush is None or self._flush.done()):
            if self._flush is not None:
                self._flush.result()  # the system reports a lost write once: to pass over it is to lose it
            self._flushed_bytes = self._size_bytes
            self._flush = _flusher.submit(os.fsync, self._file.fileno())

    def finish(self) -> BundleFile:
        """Force the bytes to disk and close; the name stays temporary. Raises `OSError` if any did not get there."""
        if self._flush is not None:
            self._flush.result()
        os.fsync(self._file.fileno())
        self._file.close()
        return BundleFile(size_bytes=self._size_bytes, sha256=self._digest.hexdigest())

    def commit(self) -> None:
        """Give the finished file its name, replacing one that is there.

        Raises `BundleError` if it is not the file that was written: somebody else is at work in the directory.
        """
        assert self._file.closed, "finish() first"
        if not self._is_ours():
            raise BundleError(f"{self._partial}: replaced by another program while it was written: start again")
        self._partial.replace(self._final)

    def discard(self) -> None:
        """Close and delete what was written. Does nothing after `commit`."""
        if self._flush is not None:
            self._flush.exception()  # waits: the thread must not sync a descriptor that is somebody else's by then
        self._file.close()
        if self._is_ours():
            self._partial.unlink()

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(self._partial.lstat(), self._made)
        except FileNotFoundError:
            return False


def remove_partials(directory: Path) -> list[str]:
    """Delete what an interrupted run left; of a link the link alone. Returns the names."""
    leftovers = sorted(directory.glob("*" + PARTIAL_SUFFIX))
    for leftover in leftovers:
        try:
            leftover.unlink()
        except OSError as error:
            raise BundleError(
                f"{leftover}: in the way, cannot be deleted ({error.strerror or error}): move it away, or choose "
                "another --out"
            ) from error
    return [leftover.name for leftover in leftovers]
