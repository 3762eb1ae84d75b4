"""What all who read and write files share: a file's sha256, and how one appears whole or not at all."""

import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".miso-partial"
"""A file is written under a name with this ending, and renamed when it is whole."""

_BLOCK_BYTES = 4 << 20


def file_sha256(path: Path, progress: Callable[[int], None] = lambda _bytes: None) -> str:
    """sha256 of one whole file, in hex. `progress` is called with the size of every block that was read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file to write: it gets its name, replacing what has it, when the block is done and all is on disk.

    It is made under a name that nobody else has, so that neither another process nor a link can be written through: a
    link called `path` is replaced, and what it points to stays. Raises `OSError`; nothing is left over then.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file, as `open_whole`."""
    with open_whole(path) as file:
        file.write(content)


def sync_directory(directory: Path) -> None:
    """Make new names and renames durable. Windows has no such call and needs none. Raises `OSError`."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            # Some network and FUSE file systems cannot sync a directory: no reason to lose finished work.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(handle)
