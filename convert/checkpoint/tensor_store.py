"""What every checkpoint file looks like to the converter: named tensors, read a few rows at a time.

It knows no layout: names are whatever the file calls its tensors. It knows no format either: one that keeps tensors as
raw bytes at some place of a file says where (`Entry`), and `TensorFile` reads them.
"""

import math
import os
import stat
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from ...hub.path import HubPath

SourcePath = Path | HubPath
"""Where a source of a conversion is: on this machine, or on the hub, where it can be looked at and not converted."""
Shape = tuple[int, ...]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

SUPPORTED = ("F32", "F16", "BF16")
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "C64": 8, "C128": 16, "BOOL": 1,
    "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1,
}  # fmt: skip
"""By the names that safetensors uses."""
_MAX_NAME = 500
SMALL_BYTES = 64 << 20
"""No config, and no index, is larger."""
MAX_DIMS, _MAX_ITEMS = 32, 1 << 48
"""More than any file holds, and less than numpy fails at."""


def is_plain_name(name: str) -> bool:
    """Whether a tensor may be called this: names come from strangers and are printed in messages."""
    return name.isprintable() and len(name) <= _MAX_NAME


def is_plausible(shape: Sequence[int]) -> bool:
    """Whether a tensor of some file can have this shape, which a stranger's file claims."""
    return len(shape) <= MAX_DIMS and math.prod(max(1, n) for n in shape) <= _MAX_ITEMS


@dataclass(frozen=True)
class TensorSource:
    """Where an upstream tensor is in a checkpoint of some layout."""

    name: str
    head_dim: int | None = None
    """If set, the layout has the rows in an order of its own within each head of this many."""


class TensorStore(Protocol):
    """Tensors by name, read lazily as float32. Reading is safe from several threads."""

    @property
    def files(self) -> Sequence[SourcePath]:
        """The files behind it, in reading order: what a source hash covers."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape, in PyTorch order."""
        ...

    @property
    def left_out(self) -> Collection[str]:
        """Names of tensors that the files hold and the store does not, because an index does not name them."""
        ...

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(index in `files`, byte offset) of one row: reading in this order is reading the disk in order."""
        ...

    def check_dtype(self, name: str) -> None:
        """Raises `CheckpointError` if the tensor is of a type that cannot be read."""
        ...

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` of the first axis, as a new float32 array. A scalar is one row."""
        ...

    def close(self) -> None:
        """Release the files. Idempotent."""
        ...


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file."""

    dtype: str
    shape: Shape
    start: int
    """Byte offset of its first element."""
    strides: tuple[int, ...] | None = None
    """In elements; None if its rows follow one another without gaps."""

    @property
    def row_items(self) -> int:
        """Elements from one row to the next."""
        return self.strides[0] if self.strides else math.prod(self.shape[1:])


class TensorFile:
    """One open file. A format says in `_parse` what is in it; raises `CheckpointError` where that cannot be used."""

    def __init__(self, path: SourcePath) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = _open(path)
        try:
            self._entries = self._parse(self._file)
        except OSError as error:
            self._file.close()
            raise CheckpointError(f"{path}: its header cannot be read ({error.strerror or error})") from error
        except BaseException:
            self._file.close()
            raise
        self._shapes = {name: entry.shape for name, entry in self._entries.items()}

    def _parse(self, file: FileIO | BufferedReader) -> dict[str, Entry]:
        raise NotImplementedError

    @property
    def files(self) -> Sequence[SourcePath]:
        """The one file."""
        return (self._path,)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape."""
        return self._shapes

    @property
    def left_out(self) -> Collection[str]:
        """Nothing."""
        return ()

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(0, byte offset of the row)."""
        entry = self._entries[name]
        return 0, entry.start + row * entry.row_items * ITEM_BYTES.get(entry.dtype, 0)

    def check_dtype(self, name: str) -> None:
        """Raises `CheckpointError` on an unsupported dtype."""
        dtype = self._entries[name].dtype
        if dtype not in SUPPORTED:
            raise CheckpointError(
                f"{self._path}: tensor {name} has dtype {dtype}; supported are {', '.join(SUPPORTED)}. "
                "Save the checkpoint in one of these."
            )

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` as float32. Raises `CheckpointError` on an unsupported dtype or a failing disk."""
        self.check_dtype(name)
        entry = self._entries[name]
        assert 0 <= start <= stop <= (entry.shape or (1,))[0], (name, start, stop, entry.shape)
        shape = (stop - start, *entry.shape[1:])
        items = math.prod(shape)
        if entry.strides and items:
            items = 1 + sum((n - 1) * stride for n, stride in zip(shape, entry.strides, strict=True))
        raw = np.empty(items * ITEM_BYTES[entry.dtype], np.uint8)
        self._read_into(raw, entry.start + start * entry.row_items * ITEM_BYTES[entry.dtype], name)
        values = _to_float32(raw, entry.dtype)
        if not entry.strides or not items:
            return values.reshape(shape)
        view = as_strided(values, shape, [stride * values.itemsize for stride in entry.strides])
        return np.array(view, np.float32, order="C")

    def _read_into(self, raw: Bytes, offset: int, name: str) -> None:
        view, done = raw.data, 0
        try:
            with self._lock:
                self._file.seek(offset)
                while done < len(raw):
                    count = self._file.readinto(view[done:])
                    if not count:
                        raise CheckpointError(f"{self._path}: ends inside tensor {name}: the file changed while read")
                    done += count
        except OSError as error:
            raise CheckpointError(f"{self._path}: reading tensor {name} failed ({error.strerror or error})") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_regular(path: SourcePath, limit: int | None = None) -> None:
    """That reading the whole file ends: a pipe that nobody writes to waits forever, a device gives for ever.

    Raises `CheckpointError`, also above `limit` bytes, and `OSError`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a directory fails at once
        raise CheckpointError(f"{path}: not a regular file")
    if limit is not None and status.st_size > limit:
        raise CheckpointError(f"{path}: {status.st_size} bytes are more than such a file has")


def _open(path: SourcePath) -> FileIO | BufferedReader:
    try:
        # Opening a pipe that nobody writes to would wait forever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        return path.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror or error})") from error


def size_of(file: FileIO | BufferedReader) -> int:
    """Bytes of an open file; it stands at its start afterwards."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size_bytes


def _to_float32(raw: Bytes, dtype: str) -> F32Array:
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    # bfloat16 is the upper half of float32.
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
