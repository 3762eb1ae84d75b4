"""A file on the Hugging Face hub, read where it lies: the ranges that are asked for, and nothing is written.

For whoever looks at a checkpoint without converting it: the header of a 33 GB file is 40 kB.
"""

import errno
import hashlib
import io
import os
import re
import stat
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..models.errors import CheckpointError
from ..models.files import file_sha256
from .hub_client import calling, library, read_range

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_AHEAD_BYTES = 128 << 10
"""Most headers of safetensors files are shorter: they come with the first request."""
_SMALL_BYTES = 64 << 20
"""What may be read whole: no tokenizer is larger."""
_REMEDY = "download it by other means and pass the file"


class HubPath(PurePosixPath):
    """OWNER/NAME/FILE, with as much of `pathlib.Path` as reading takes.

    Every method raises `CheckpointError` where the hub does not answer or does not let one in.
    """

    @property
    def repo(self) -> str:
        """OWNER/NAME."""
        return "/".join(self.parts[:2])

    @property
    def file(self) -> str:
        """The file's path inside the repository."""
        return "/".join(self.parts[2:])

    def exists(self) -> bool:
        """Whether the repository has the file."""
        return calling(str(self), _REMEDY, lambda: self._metadata) is not None

    def is_file(self) -> bool:
        """The same: nothing here is a directory."""
        return self.exists()

    def is_dir(self) -> bool:
        """Never."""
        return False

    def stat(self) -> os.stat_result:
        """Of a regular file with the size that the hub gives; the rest is 0. Raises `FileNotFoundError`."""
        return os.stat_result((stat.S_IFREG, 0, 0, 0, 0, 0, self._found()[0], 0, 0, 0))

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BufferedReader:
        """The file's bytes, fetched as they are read, whatever `buffering` says. Raises `FileNotFoundError`."""
        assert mode == "rb", mode
        return io.BufferedReader(_Ranges(self, self._found()[0]), _READ_AHEAD_BYTES)

    def read_bytes(self) -> bytes:
        """The whole file, which is kept: for small ones. Raises `FileNotFoundError`."""
        return self._content

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole file's text. Raises `FileNotFoundError`."""
        return self.read_bytes().decode(encoding)

    @property
    def sha256(self) -> str:
        """The file's sha256, in hex. The hub knows that of every large file: this is the etag, for which it asks."""
        size_bytes, etag = self._found()
        if re.fullmatch("[0-9a-f]{64}", etag):
            return etag
        if size_bytes > _SMALL_BYTES:
            raise CheckpointError(f"{self}: the hub does not give its sha256: {_REMEDY}")
        return hashlib.sha256(self.read_bytes()).hexdigest()

    @property
    def download_bytes(self) -> int:
        """What fetching it would transfer: nothing if it is in the hub's cache on this machine."""
        cached = isinstance(library().try_to_load_from_cache(self.repo, self.file), str)
        return 0 if cached else self.stat().st_size

    def require(self, remedy: str) -> None:
        """Raises `CheckpointError` that ends in `remedy` unless the repository has the file and lets one in."""
        if calling(str(self), remedy, lambda: self._metadata) is None:
            raise CheckpointError(f"{self}: the hub has no such file: {remedy}")

    @cached_property
    def _metadata(self) -> tuple[int, str] | None:
        """Size and etag; None if the repository has no such file. Raises whatever the library raises."""
        hub = library()
        try:
            found = hub.get_hf_file_metadata(hub.hf_hub_url(self.repo, self.file))
        except hub.errors.LocalEntryNotFoundError:  # the hub does not answer
            raise
        except hub.errors.EntryNotFoundError:
            return None
        return found.size or 0, found.etag or ""

    @cached_property
    def _content(self) -> bytes:
        size_bytes = self._found()[0]
        return (
            calling(str(self), _REMEDY, lambda: read_range(self.repo, self.file, 0, size_bytes)) if size_bytes else b""
        )

    def _found(self) -> tuple[int, str]:
        found = calling(str(self), _REMEDY, lambda: self._metadata)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return found


SourcePath = Path | HubPath
"""Where a source of a conversion is: it is converted from a local file, and looked at on the hub too."""


def sha256_of(path: SourcePath) -> str:
    """sha256 of a source, in hex. Raises `CheckpointError` if only fetching the file would tell."""
    return path.sha256 if isinstance(path, HubPath) else file_sha256(path)


class _Ranges(io.RawIOBase):
    """A file on the hub as a stream: each read is a request."""

    def __init__(self, path: HubPath, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self._size_bytes)
        if stop <= self._position:
            return 0
        path, start = self._path, self._position
        data = calling(str(path), _REMEDY, lambda: read_range(path.repo, path.file, start, stop))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
