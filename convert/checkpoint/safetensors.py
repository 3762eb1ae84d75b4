"""One safetensors file, read lazily and without torch.

The format is an 8-byte little-endian header length, a JSON header, and the raw tensors. The `safetensors` package
reads whole tensors and knows no bfloat16 in numpy; a converter needs a few rows at a time and every dtype.
Source: the safetensors format description (huggingface/safetensors, README).
"""

import json
import math
import os
import reprlib
import stat
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from typing import Any

import numpy as np

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from .foreign import refuse_file
from .source_path import SourcePath
from .tensor_store import Shape, is_plain_name

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_OTHER_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER_BYTES = 10_000_000
"""Room for 100 000 tensors. The reference implementation allows ten times as much, which would parse into gigabytes."""
_MAX_DIMS, _MAX_ITEMS = 32, 1 << 48
"""More than any file holds, and less than numpy fails at."""


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: Shape
    start: int
    """Absolute byte offset in the file."""


class SafetensorsFile:
    """An open safetensors file. Raises `CheckpointError` if it is not one, or not a whole one."""

    def __init__(self, path: SourcePath) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = _open(path)
        try:
            self._entries = _read_header(self._file, path)
        except OSError as error:
            self._file.close()
            raise CheckpointError(f"{path}: its header cannot be read ({error.strerror or error})") from error
        except CheckpointError:
            self._file.close()
            refuse_file(path)
            raise
        except BaseException:
            self._file.close()
            raise
        self._shapes = {name: entry.shape for name, entry in self._entries.items()}

    @property
    def files(self) -> Sequence[SourcePath]:
        """The one file."""
        return (self._path,)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape."""
        return self._shapes

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(0, byte offset of the row)."""
        entry = self._entries[name]
        return 0, entry.start + row * math.prod(entry.shape[1:]) * _ITEM_BYTES.get(entry.dtype, 0)

    def check_dtype(self, name: str) -> None:
        """Raises `CheckpointError` on an unsupported dtype."""
        dtype = self._entries[name].dtype
        if dtype not in _ITEM_BYTES:
            raise CheckpointError(
                f"{self._path}: tensor {name} has dtype {dtype}; supported are {', '.join(_ITEM_BYTES)}. "
                "Save the checkpoint in one of these."
            )

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` as float32. Raises `CheckpointError` on an unsupported dtype or a failing disk."""
        self.check_dtype(name)
        entry = self._entries[name]
        assert 0 <= start <= stop <= (entry.shape or (1,))[0], (name, start, stop, entry.shape)
        row_items = math.prod(entry.shape[1:])
        raw = np.empty((stop - start) * row_items * _ITEM_BYTES[entry.dtype], np.uint8)
        self._read_into(raw, entry.start + start * row_items * _ITEM_BYTES[entry.dtype], name)
        return _to_float32(raw, entry.dtype).reshape(stop - start, *entry.shape[1:])

    def _read_into(self, raw: np.ndarray[Any, np.dtype[np.uint8]], offset: int, name: str) -> None:
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


def _open(path: SourcePath) -> FileIO | BufferedReader:
    try:
        # Opening a pipe that nobody writes to would wait forever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        return path.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror or error})") from error


def _to_float32(raw: np.ndarray[Any, np.dtype[np.uint8]], dtype: str) -> F32Array:
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    # bfloat16 is the upper half of float32.
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _read_header(file: FileIO | BufferedReader, path: SourcePath) -> dict[str, _Entry]:
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = file.read(8)
    header_bytes = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or header_bytes > _MAX_HEADER_BYTES or header_bytes < 2:
        raise CheckpointError(f"{path}: not a safetensors file (its first 8 bytes are no plausible header length)")
    if 8 + header_bytes > file_bytes:
        raise CheckpointError(
            f"{path}: header of {header_bytes} bytes is longer than the file ({file_bytes} bytes): "
            "truncated, or not a safetensors file. Download it again."
        )
    try:
        header = json.loads(file.read(header_bytes).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file (its header is no JSON: {error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a safetensors file (its header is no JSON object)")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    spans, entries = [], {}
    for name, raw in header.items():
        dtype, shape, begin, end = _parse_entry(raw, name, path)
        entries[name] = _Entry(dtype, shape, data_start + begin)
        spans.append((begin, end, name))
    _check_spans(spans, file_bytes - data_start, path)
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"header names {reprlib.repr(twice)} twice")
    return result


def _parse_entry(raw: Any, name: str, path: SourcePath) -> tuple[str, Shape, int, int]:
    if not is_plain_name(name):
        raise CheckpointError(f"{path}: {reprlib.repr(name)} is no plausible tensor name: the file is damaged")
    try:
        dtype, shape, (begin, end) = raw["dtype"], raw["shape"], raw["data_offsets"]
        valid = isinstance(dtype, str) and dtype.isidentifier() and isinstance(shape, list) and len(shape) <= _MAX_DIMS
        valid = valid and all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: header entry of tensor {name!r} is malformed: {reprlib.repr(raw)}")
    if math.prod(max(1, n) for n in shape) > _MAX_ITEMS:
        raise CheckpointError(f"{path}: tensor {name} claims shape {reprlib.repr(shape)}, more than any file holds")
    item_bytes = _ITEM_BYTES.get(dtype) or _OTHER_ITEM_BYTES.get(dtype)
    if item_bytes is not None and end - begin != math.prod(shape) * item_bytes:
        raise CheckpointError(
            f"{path}: tensor {name} of {dtype} {shape} needs {math.prod(shape) * item_bytes} bytes, "
            f"its header gives {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _check_spans(spans: list[tuple[int, int, str]], data_bytes: int, path: SourcePath) -> None:
    """Tensors must tile the data area exactly: no hole, no overlap, nothing behind the end of the file."""
    position = 0
    for begin, end, name in sorted(spans):
        if end > data_bytes:
            raise CheckpointError(
                f"{path}: truncated: tensor {name} ends at byte {end} of the data, the file has {data_bytes}. "
                "Download it again."
            )
        if begin != position or end < begin:
            raise CheckpointError(f"{path}: tensor {name} starts at byte {begin} of the data, expected {position}")
        position = end
    if position != data_bytes:
        raise CheckpointError(
            f"{path}: {data_bytes - position} bytes behind the last tensor: not a whole safetensors file"
        )
