"""What the GGUF files of a bundle say in their headers: declared once, written by `convert`, checked by all who read.

llama.cpp ends the process on many a header that makes no sense to it. One that says exactly this makes sense.
"""

import reprlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from .manifest import FORMAT_VERSION
from .spec import ModelSpec
from .tensor_types import TENSOR_TYPES
from .tensors import Part, Shape, gguf_tensors

Value = int | float | str
ARCHITECTURE = "llama"
"""Of all parts: stock llama.cpp loads the transformers as this, and the tokenizer from the embeddings."""

_TOKENS, _TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_ARRAYS = {_TOKENS: "STRING", _TOKEN_TYPES: "INT32", "tokenizer.ggml.merges": "STRING"}
_TOKEN_IDS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")
_CHOICES: dict[str, tuple[str | bool, ...]] = {
    "tokenizer.ggml.model": ("gpt2",),
    "tokenizer.ggml.pre": ("llama-bpe", "gpt-2"),
    "tokenizer.ggml.add_bos_token": (True, False),
    "tokenizer.ggml.add_eos_token": (True, False),
}
"""Of the embeddings, which hold the tokenizer."""

_READ_BY_LLAMA = (f"{ARCHITECTURE}.", "tokenizer.", "split.")
"""Keys that change what llama.cpp does. Others only inform: newer versions may write some that this one does not know.

Source: `LLM_KV_NAMES` in llama.cpp's llama-arch.cpp.
"""


class FoundArray(NamedTuple):
    """An array among a header's values: the type of its entries by ggml's name, and how many there are."""

    entries: str
    length: int


class Fault(NamedTuple):
    """Something wrong with a header: which key or tensor, and the sentence for people."""

    name: str
    text: str


def llama_values(spec: ModelSpec, part: Part) -> dict[str, Value]:
    """What stock llama.cpp needs to load a transformer as a `llama` model without a tokenizer; none for embeddings."""
    if part == "embeddings":
        return {}
    transformer = spec.backbone if part == "backbone" else spec.decoder
    return {
        "tokenizer.ggml.model": "none",
        "llama.vocab_size": spec.audio_vocab if part == "backbone" else spec.flat_audio_vocab,
        "llama.context_length": spec.max_positions,
        "llama.embedding_length": transformer.embed_dim,
        "llama.block_count": transformer.layers,
        "llama.feed_forward_length": transformer.ffn_dim,
        "llama.attention.head_count": transformer.heads,
        "llama.attention.head_count_kv": transformer.kv_heads,
        "llama.attention.key_length": transformer.head_dim,
        "llama.attention.value_length": transformer.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(spec.norm_eps),
        "llama.rope.dimension_count": transformer.head_dim,
        "llama.rope.freq_base": float(spec.rope_base),
    }


def miso_values(spec: ModelSpec, part: Part, fingerprint: str) -> dict[str, Value]:
    """What makes a file recognisable as ours, and as part of which model."""
    return {
        "miso.format_version": FORMAT_VERSION,
        "miso.part": part,
        "miso.source.fingerprint": fingerprint,
        "miso.num_codebooks": spec.codebooks,
        "miso.audio_vocab_size": spec.audio_vocab,
        "miso.text_vocab_size": spec.text_vocab,
        "miso.backbone_embedding_length": spec.backbone.embed_dim,
        "miso.decoder_embedding_length": spec.decoder.embed_dim,
    }


def header_faults(
    spec: ModelSpec,
    part: Part,
    fingerprint: str,
    keys: Mapping[str, object],
    tensors: Mapping[str, tuple[str, Shape]],
) -> Iterator[Fault]:
    """What is wrong with the header of a part of a bundle whose manifest has this spec and fingerprint.

    `keys` are all that it has; a value is None if it is of a type that our files do not use. `tensors` are types, by
    ggml's names, and shapes, rows first.
    """
    wanted = {"general.architecture": ARCHITECTURE, **llama_values(spec, part), **miso_values(spec, part, fingerprint)}
    for name, value in wanted.items():
        # llama.cpp reads floats in single precision.
        expected = float(np.float32(value)) if isinstance(value, float) else value
        if not _is(keys.get(name), expected):
            yield Fault(name, f"{name} is {_shown(keys.get(name))}, the manifest says {value}")
    known = {*wanted}
    if part == "embeddings":
        yield from _tokenizer_faults(spec, keys)
        known |= {*_ARRAYS, *_TOKEN_IDS, *_CHOICES}
    for name in keys:
        if name.startswith(_READ_BY_LLAMA) and name not in known:
            yield Fault(name, f"there is {_shown(name)}, which llama.cpp reads, and the {part} must not have")
    yield from _tensor_faults(spec, part, tensors)


def _tokenizer_faults(spec: ModelSpec, keys: Mapping[str, object]) -> Iterator[Fault]:
    for name, choices in _CHOICES.items():
        if not any(_is(keys.get(name), choice) for choice in choices):
            yield Fault(name, f"{name} is {_shown(keys.get(name))}, expected {' or '.join(map(str, choices))}")
    lengths = {}
    for name, entries in _ARRAYS.items():
        found = keys.get(name)
        if not isinstance(found, FoundArray) or found.entries != entries:
            yield Fault(name, f"{name} is {_shown(found)}, expected an array of {entries}")
        else:
            lengths[name] = found.length
    tokens = lengths.get(_TOKENS, 0)
    if not 0 < tokens <= spec.text_vocab:
        yield Fault(_TOKENS, f"{_TOKENS} has {tokens} entries, the text embeddings {spec.text_vocab} rows")
    if lengths.get(_TOKEN_TYPES, 0) != tokens:
        yield Fault(_TOKEN_TYPES, f"{_TOKEN_TYPES} has {lengths.get(_TOKEN_TYPES, 0)} entries, {_TOKENS} {tokens}")
    for name in _TOKEN_IDS:
        found = keys.get(name)
        if type(found) is not int or found >= tokens:
            yield Fault(name, f"{name} is {_shown(found)}, expected the id of one of {tokens} tokens")


def _tensor_faults(spec: ModelSpec, part: Part, tensors: Mapping[str, tuple[str, Shape]]) -> Iterator[Fault]:
    wanted = {tensor.name: tensor.shape for tensor in gguf_tensors(spec) if tensor.part == part}
    for name, shape in wanted.items():
        qtype, found = tensors.get(name, ("", None))
        # ggml adds and multiplies vectors in F32 alone.
        allowed = [*TENSOR_TYPES] if len(shape) > 1 else ["F32"]
        if found != shape:
            there = "is missing" if found is None else f"is {list(found)}"
            yield Fault(name, f"{name} {there}, expected {list(shape)}")
        elif qtype not in allowed:
            yield Fault(name, f"{name} is {qtype}, expected {', '.join(allowed)}")
    for name in sorted(tensors.keys() - wanted.keys()):
        yield Fault(name, f"there is a tensor {_shown(name)}, which {spec.name}'s {part} has not")


def _is(found: object, expected: Value) -> bool:
    return found == expected and type(found) is type(expected)


def _shown(value: object) -> str:
    """A value from a stranger's file, for a message."""
    if value is None:
        return "missing or of another type"
    if isinstance(value, FoundArray):
        return f"an array of {value.length} {value.entries}"
    return str(value) if str(value).isprintable() and len(str(value)) <= 80 else reprlib.repr(value)
