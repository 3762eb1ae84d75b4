"""The head of a GGUF file: metadata and tensor infos, as bytes. The tensor data that follows is written elsewhere.

Bytes are laid out by gguf-py, so they are what llama.cpp's own converter would write.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.gguf_writer import WriterState

from ..models.spec import ModelSpec, TransformerSpec
from ..models.tensors import Part, Shape
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


def float32(name: str, value: float) -> Key:
    """A float32 entry."""
    return Key(name, value, GGUFValueType.FLOAT32)


def llama_keys(spec: ModelSpec, transformer: TransformerSpec, vocab: int) -> list[Key]:
    """What stock llama.cpp needs to load one of our transformers as a `llama` model without a tokenizer."""
    return [
        text("tokenizer.ggml.model", "none"),
        uint32("llama.vocab_size", vocab),
        uint32("llama.context_length", spec.max_positions),
        uint32("llama.embedding_length", transformer.embed_dim),
        uint32("llama.block_count", transformer.layers),
        uint32("llama.feed_forward_length", transformer.ffn_dim),
        uint32("llama.attention.head_count", transformer.heads),
        uint32("llama.attention.head_count_kv", transformer.kv_heads),
        uint32("llama.attention.key_length", transformer.head_dim),
        uint32("llama.attention.value_length", transformer.head_dim),
        float32("llama.attention.layer_norm_rms_epsilon", spec.norm_eps),
        uint32("llama.rope.dimension_count", transformer.head_dim),
        float32("llama.rope.freq_base", spec.rope_base),
    ]


def miso_keys(spec: ModelSpec, part: Part, format_version: int, fingerprint: str) -> list[Key]:
    """What makes the file recognisable as ours, and as part of which model."""
    return [
        uint32("miso.format_version", format_version),
        text("miso.part", part),
        text("miso.source.fingerprint", fingerprint),
        uint32("miso.num_codebooks", spec.codebooks),
        uint32("miso.audio_vocab_size", spec.audio_vocab),
        uint32("miso.text_vocab_size", spec.text_vocab),
        uint32("miso.backbone_embedding_length", spec.backbone.embed_dim),
        uint32("miso.decoder_embedding_length", spec.decoder.embed_dim),
    ]


def tokenizer_keys(entries: Iterable[tuple[str, Any]]) -> list[Key]:
    """A tokenizer's metadata (`tokenizer.gguf_keys`) as entries of the matching types."""
    types = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING, list: GGUFValueType.ARRAY}
    return [Key(name, value, types[type(value)]) for name, value in entries]


def header_bytes(keys: Iterable[Key], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything of the file before its tensor data, padded to the alignment."""
    writer = GGUFWriter(None, "llama")
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
