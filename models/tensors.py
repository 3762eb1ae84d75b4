"""The tensor tables: what a checkpoint holds, and what our GGUF files hold and from where.

Both are data, declared once. Shapes are in PyTorch order (rows first). `convert/` fills them.
"""

from dataclasses import dataclass
from typing import Literal

from .spec import ModelSpec, TransformerSpec

Part = Literal["backbone", "decoder", "embeddings"]
PARTS: tuple[Part, ...] = ("backbone", "decoder", "embeddings")

Shape = tuple[int, ...]

_LAYER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # checkpoint name, GGUF name, dimensions of TransformerSpec
    ("sa_norm.scale", "attn_norm", ("embed_dim",)),
    ("attn.q_proj.weight", "attn_q", ("q_dim", "embed_dim")),
    ("attn.k_proj.weight", "attn_k", ("kv_dim", "embed_dim")),
    ("attn.v_proj.weight", "attn_v", ("kv_dim", "embed_dim")),
    ("attn.output_proj.weight", "attn_output", ("embed_dim", "q_dim")),
    ("mlp_norm.scale", "ffn_norm", ("embed_dim",)),
    ("mlp.w1.weight", "ffn_gate", ("ffn_dim", "embed_dim")),
    ("mlp.w3.weight", "ffn_up", ("ffn_dim", "embed_dim")),
    ("mlp.w2.weight", "ffn_down", ("embed_dim", "ffn_dim")),
)


@dataclass(frozen=True)
class Rows:
    """The rows `[start, stop)` of one checkpoint tensor, as they are."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Projected:
    """`table @ projection^T`, rows of `table` taken through the decoder's input projection."""

    table: str
    projection: str


@dataclass(frozen=True)
class StackedHeads:
    """`audio_head` [codebooks - 1, in, out] transposed and stacked, below `out` zero rows for codebook 0."""

    name: str


@dataclass(frozen=True)
class RopeFactors:
    """The Llama-3 RoPE divisors, computed from the spec."""

    head_dim: int


Source = Rows | Projected | StackedHeads | RopeFactors


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of one GGUF file: its name and shape there, and what it is made of."""

    part: Part
    name: str
    shape: Shape
    source: Source

    @property
    def weights(self) -> int:
        """Number of elements."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count


def _transformer_shapes(prefix: str, t: TransformerSpec) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for layer in range(t.layers):
        for name, _, dims in _LAYER:
            shapes[f"{prefix}.layers.{layer}.{name}"] = tuple(getattr(t, dim) for dim in dims)
    shapes[f"{prefix}.norm.scale"] = (t.embed_dim,)
    return shapes


AUDIO_TABLE = "audio_embeddings.weight"
DECODER_AUDIO_TABLE = "decoder_audio_embeddings.weight"
"""The depth decoder's own table, where it has one. Upstream has none, and so no name for it: this is ours."""


def decoder_audio_table(spec: ModelSpec) -> str:
    """Name of the table in which the depth decoder looks up the codes of its frame, before the projection."""
    return AUDIO_TABLE if spec.tied_audio_embeddings else DECODER_AUDIO_TABLE


def checkpoint_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor of an upstream checkpoint (torchtune names) with its shape: 367 for Miso TTS 8B."""
    b, d = spec.backbone, spec.decoder
    audio_table = (spec.flat_audio_vocab, b.embed_dim)
    return {
        **_transformer_shapes("backbone", b),
        **_transformer_shapes("decoder", d),
        "text_embeddings.weight": (spec.text_vocab, b.embed_dim),
        AUDIO_TABLE: audio_table,
        decoder_audio_table(spec): audio_table,
        "projection.weight": (d.embed_dim, b.embed_dim),
        "codebook0_head.weight": (spec.audio_vocab, b.embed_dim),
        "audio_head": (spec.codebooks - 1, d.embed_dim, spec.audio_vocab),
    }


def _whole(part: Part, name: str, shape: Shape, source: str) -> GgufTensor:
    return GgufTensor(part, name, shape, Rows(source, 0, shape[0]))


def _transformer_tensors(part: Part, prefix: str, t: TransformerSpec, spec: ModelSpec) -> list[GgufTensor]:
    tensors = []
    if spec.rope_scaling is not None:
        tensors.append(GgufTensor(part, "rope_freqs.weight", (t.head_dim // 2,), RopeFactors(t.head_dim)))
    for layer in range(t.layers):
        for name, gguf_name, dims in _LAYER:
            shape = tuple(getattr(t, dim) for dim in dims)
            tensors.append(_whole(part, f"blk.{layer}.{gguf_name}.weight", shape, f"{prefix}.layers.{layer}.{name}"))
    tensors.append(_whole(part, "output_norm.weight", (t.embed_dim,), f"{prefix}.norm.scale"))
    return tensors


def gguf_tensors(spec: ModelSpec) -> list[GgufTensor]:
    """Every tensor of the three GGUF files of a bundle, in file order.

    The backbone's `token_embd` is codebook 0 of the audio embeddings: the arch requires one, the runtime feeds
    embeddings instead. The decoder is a llama LM over the flattened audio vocabulary.
    """
    b, d = spec.backbone, spec.decoder
    return [
        GgufTensor(
            "backbone",
            "token_embd.weight",
            (spec.audio_vocab, b.embed_dim),
            Rows(AUDIO_TABLE, 0, spec.audio_vocab),
        ),
        *_transformer_tensors("backbone", "backbone", b, spec),
        _whole("backbone", "output.weight", (spec.audio_vocab, b.embed_dim), "codebook0_head.weight"),
        GgufTensor(
            "decoder",
            "token_embd.weight",
            (spec.flat_audio_vocab, d.embed_dim),
            Projected(decoder_audio_table(spec), "projection.weight"),
        ),
        *_transformer_tensors("decoder", "decoder", d, spec),
        GgufTensor("decoder", "output.weight", (spec.flat_audio_vocab, d.embed_dim), StackedHeads("audio_head")),
        _whole("embeddings", "text_embd.weight", (spec.text_vocab, b.embed_dim), "text_embeddings.weight"),
        _whole("embeddings", "audio_embd.weight", (spec.flat_audio_vocab, b.embed_dim), AUDIO_TABLE),
        _whole("embeddings", "projection.weight", (d.embed_dim, b.embed_dim), "projection.weight"),
    ]
