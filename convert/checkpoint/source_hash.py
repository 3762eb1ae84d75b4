"""sha256 of the checkpoint's files, computed while they are converted.

The hashing thread stays a little ahead of the converter: the converter then finds its rows in the page cache, and a
file larger than memory is still read from disk once.
"""

import hashlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import CheckpointError

_BLOCK_BYTES = 4 << 20
_AHEAD_BYTES = 1 << 30


class SourceHasher(threading.Thread):
    """Hashes `files` in order. The converter reports its position; `result` waits for the rest."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(name="source-hash", daemon=True)
        self._files = files
        self._starts = [0]
        for file in files:
            try:
                self._starts.append(self._starts[-1] + file.stat().st_size)
            except OSError as error:
                raise _unreadable(file, error) from error
        self._limit = _AHEAD_BYTES
        self._moved = threading.Condition()
        self._stopped = False
        self._digests: list[str] = []
        self._error: CheckpointError | None = None

    def reached(self, file: int, offset: int) -> None:
        """The converter reads here now: hashing may go on to a little beyond."""
        self._raise_limit(self._starts[max(file, 0)] + offset + _AHEAD_BYTES)

    def result(self) -> list[str]:
        """Hex digests, one per file, after hashing what is left. Raises `CheckpointError` if a file cannot be read."""
        # Not the size at the start: a file that has grown would be waited for without end.
        self._raise_limit(sys.maxsize)
        self.join()
        if self._error is not None:
            raise self._error
        return self._digests

    def stop(self) -> None:
        """Give up; `result` is not wanted any more."""
        with self._moved:
            self._stopped = True
            self._moved.notify()
        self.join()

    def _raise_limit(self, limit: int) -> None:
        with self._moved:
            if limit > self._limit:
                self._limit = limit
                self._moved.notify()

    def run(self) -> None:
        """Thread body."""
        block = bytearray(_BLOCK_BYTES)
        for file, start in zip(self._files, self._starts, strict=False):
            digest = hashlib.sha256()
            try:
                with file.open("rb", buffering=0) as handle:
                    position = start
                    while self._wait_for(position) and (count := handle.readinto(block)):
                        digest.update(memoryview(block)[:count])
                        position += count
            except OSError as error:
                self._error = _unreadable(file, error)
                return
            if self._stopped:
                return
            self._digests.append(digest.hexdigest())

    def _wait_for(self, position: int) -> bool:
        with self._moved:
            self._moved.wait_for(lambda: self._stopped or position < self._limit)
        return not self._stopped


def _unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{file}: cannot be read while it is hashed ({error.strerror or error})")
