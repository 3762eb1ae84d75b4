"""A file on the Hugging Face hub, read where it lies: the ranges that are asked for, and nothing is written.

For whoever looks at a checkpoint without converting it, or before: the header of a 33 GB file is 45 kB.
"""

import errno
import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..core.errors import HubError
from .client import calling, library, read_range

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_AHEAD_BYTES = 128 << 10
"""Most headers of safetensors files are shorter: they come with the first request."""
_SMALL_BYTES = 64 << 20
"""What may be read of one file: no tokenizer, no header is larger."""
_MAX_BYTES = 1 << 50
"""More than any file has: sizes come from strangers."""
_REMEDY = "download it by other means and pass the file"


@dataclass(frozen=True)
class HubPath:
    """One file of a repository, with as much of `pathlib.Path` as reading takes.

    Every method raises `HubError` where the hub does not answer or does not let one in.
    """

    repo: str
    """OWNER/NAME."""
    file: str
    """The file's path inside the repository."""
    commit: str | None = None
    """The version that is looked at: what is read at different times belongs together. None is the latest."""

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.file).name

    @property
    def suffix(self) -> str:
        """What the name ends in, dot included."""
        return PurePosixPath(self.file).suffix

    @property
    def parent(self) -> "HubPath":
        """The folder in the repository."""
        return replace(self, file=str(PurePosixPath(self.file).parent))

    def __truediv__(self, name: str) -> "HubPath":
        return replace(self, file=str(PurePosixPath(self.file) / name))

    def with_name(self, name: str) -> "HubPath":
        """The file of another name beside this one."""
        return self.parent / name

    def require(self, remedy: str) -> tuple[int, str]:
        """Size and etag. Raises `HubError` that ends in `remedy` unless the repository has it and lets one in."""
        found = self._asked(remedy)
        if found is None:
            raise HubError(f"{self}: the hub has no such file: {remedy}")
        return found

    def exists(self) -> bool:
        """Whether the repository has the file."""
        return self._asked() is not None

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
        return io.BufferedReader(HubFile(self, self._found()[0]), _READ_AHEAD_BYTES)

    def read_bytes(self) -> bytes:
        """The whole of a small file, which is kept. Raises `FileNotFoundError`, `HubError` for a large one."""
        return self._content

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole file's text, as `read_bytes`."""
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)`."""
        return calling(str(self), _REMEDY, lambda: read_range(self.url, str(self), start, stop))

    @property
    def sha256(self) -> str:
        """The file's sha256, in hex. The hub knows that of every large file: its etag is it."""
        etag = self._found()[1]
        return etag if re.fullmatch("[0-9a-f]{64}", etag) else hashlib.sha256(self.read_bytes()).hexdigest()

    @property
    def download_bytes(self) -> int:
        """What fetching it would transfer: nothing if this version of it is in the hub's cache on this machine."""
        cached = library().try_to_load_from_cache(self.repo, self.file, revision=self.commit)
        return 0 if isinstance(cached, str) else self._found()[0]

    @property
    def url(self) -> str:
        """Where its bytes are to be had."""
        url: str = library().hf_hub_url(self.repo, self.file, revision=self.commit)
        return url

    @cached_property
    def _metadata(self) -> tuple[int, str] | None:
        """Size and etag; None if the repository has no such file. Raises whatever the library raises."""
        hub = library()
        try:
            found = hub.get_hf_file_metadata(self.url)
        except hub.errors.HfHubHTTPError as error:
            # A mirror may not say of what nothing was found.
            is_more = isinstance(error, hub.errors.RepositoryNotFoundError | hub.errors.RevisionNotFoundError)
            if error.response.status_code != 404 or is_more:
                raise
            return None
        if found.size is None or not 0 <= found.size < _MAX_BYTES:
            raise HubError(f"{self}: the hub does not give a plausible size ({found.size}): {_REMEDY}")
        return found.size, found.etag or ""

    @cached_property
    def _content(self) -> bytes:
        size_bytes = self._found()[0]
        if size_bytes > _SMALL_BYTES:
            raise HubError(f"{self}: of {size_bytes} bytes, too large to be only looked at: {_REMEDY}")
        return self.read_range(0, size_bytes) if size_bytes else b""

    def _asked(self, remedy: str = _REMEDY) -> tuple[int, str] | None:
        return calling(str(self), remedy, lambda: self._metadata)

    def _found(self) -> tuple[int, str]:
        found = self._asked()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return found


class HubFile(io.RawIOBase):
    """A file on the hub as a stream: each read is a request.

    Attributes:
        error: What the last read failed with. Whoever reads through another library finds it here, whatever that
            library makes of it.
    """

    def __init__(self, path: HubPath, size_bytes: int) -> None:
        self.error: HubError | None = None
        self._path = path
        self._size_bytes = size_bytes
        self._position = 0
        self._read_bytes = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change that, as any file's `seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer, or as much of it as there is left of the file."""
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self._size_bytes)
        if stop <= self._position:
            return 0
        self._read_bytes += stop - self._position
        try:
            if self._read_bytes > _SMALL_BYTES:
                raise HubError(f"{self._path}: what describes its tensors is too large to be only looked at")
            data = self._path.read_range(self._position, stop)
        except HubError as error:
            self.error = error
            raise
        view[: len(data)] = data
        self._position = stop
        return len(data)
