"""The head of a GGUF file: metadata and tensor infos, as bytes. The tensor data that follows is written elsewhere.

Bytes are laid out by gguf-py, so they are what llama.cpp's own converter would write.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.gguf_writer import WriterState

from ..models.gguf_parts import ARCHITECTURE, Value
from ..models.tensors import Shape
from ..native.ggml import row_bytes

ALIGNMENT: int = GGUF_DEFAULT_ALIGNMENT


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header lists it. `shape` in PyTorch order."""

    name: str
    shape: Shape
    qtype: GGMLQuantizationType

    @property
    def size_bytes(self) -> int:
        """Bytes of the data, without padding."""
        rows = 1
        for dim in self.shape[:-1]:
            rows *= dim
        return rows * row_bytes(self.qtype, self.shape[-1])


@dataclass(frozen=True)
class Key:
    """One metadata entry."""

    name: str
    value: Any
    type: GGUFValueType


def text(name: str, value: str) -> Key:
    """A string entry."""
    return Key(name, value, GGUFValueType.STRING)


def uint32(name: str, value: int) -> Key:
    """An unsigned 32-bit entry."""
    return Key(name, value, GGUFValueType.UINT32)


def keys_of(values: Mapping[str, Value]) -> list[Key]:
    """Entries of the types that llama.cpp reads."""
    types = {int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
    return [Key(name, value, types[type(value)]) for name, value in values.items()]


def tokenizer_keys(entries: Iterable[tuple[str, Any]]) -> list[Key]:
    """A tokenizer's metadata (`tokenizer.gguf_keys`) as entries of the matching types."""
    types = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING, list: GGUFValueType.ARRAY}
    return [Key(name, value, types[type(value)]) for name, value in entries]


def header_bytes(keys: Iterable[Key], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything of the file before its tensor data, padded to the alignment."""
    writer = GGUFWriter(None, ARCHITECTURE)
    for key in keys:
        if key.type == GGUFValueType.ARRAY:
            writer.add_array(key.name, key.value)
        else:
            writer.add_key_value(key.name, key.value, key.type)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, tensor.qtype)
    buffer = io.BytesIO()
    writer.fout = [cast(Any, buffer)]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    buffer.write(bytes(-len(buffer.getvalue()) % ALIGNMENT))
    return buffer.getvalue()


def padded(size_bytes: int) -> int:
    """`size_bytes` rounded up to the alignment."""
    return size_bytes + -size_bytes % ALIGNMENT
