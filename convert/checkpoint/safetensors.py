"""One safetensors file, read lazily and without torch.

The format is an 8-byte little-endian header length, a JSON header, and the raw tensors. The `safetensors` package
reads whole tensors and knows no bfloat16 in numpy; a converter needs a few rows at a time and every dtype.
Source: the safetensors format description (huggingface/safetensors, README).
"""

import json
import math
import reprlib
from collections import Counter
from io import BufferedReader, FileIO
from typing import Any

from ...core.errors import CheckpointError
from .tensor_store import (
    ITEM_BYTES,
    MAX_DIMS,
    Entry,
    Shape,
    SourcePath,
    TensorFile,
    is_plain_name,
    is_plausible,
    size_of,
)

_MAX_HEADER_BYTES = 10_000_000
"""Room for 100 000 tensors. The reference implementation allows ten times as much, which would parse into gigabytes."""


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these (nine or more) bytes is of this format."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES


class SafetensorsFile(TensorFile):
    """An open safetensors file. Raises `CheckpointError` if it is not one, or not a whole one."""

    def _parse(self, file: FileIO | BufferedReader) -> dict[str, Entry]:
        return _read_header(file, self._path)


def _read_header(file: FileIO | BufferedReader, path: SourcePath) -> dict[str, Entry]:
    file_bytes = size_of(file)
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
        entries[name] = Entry(dtype, shape, data_start + begin)
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
        valid = isinstance(dtype, str) and dtype.isidentifier() and isinstance(shape, list) and len(shape) <= MAX_DIMS
        valid = valid and all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: header entry of tensor {name!r} is malformed: {reprlib.repr(raw)}")
    if not is_plausible(shape):
        raise CheckpointError(f"{path}: tensor {name} claims shape {reprlib.repr(shape)}, more than any file holds")
    item_bytes = ITEM_BYTES.get(dtype)
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
            f"{path}: {data_bytes - position} bytes behind the last tensor: not a safetensors file as it was "
            "written. Download it again."
        )
