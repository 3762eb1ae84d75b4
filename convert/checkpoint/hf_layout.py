"""The Hugging Face layout of a CSM model: its tensor names and its `config.json`.

`transformers`' CsmForConditionalGeneration saves the same weights as upstream under Llama-style names, with the rows
of the query and key projections in half-split order, and the codec in the same file. This module is the dictionary
between the two; it reads no files.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import CheckpointError
from ...models.flavors import CSM_1B, FLAVORS
from ...models.mimi import MIMI, SAMPLE_RATE_HZ, mimi_heads
from ...models.spec import ModelSpec, RopeScaling, TransformerSpec
from ...models.tensors import AUDIO_TABLE, DECODER_AUDIO_TABLE
from .tensor_store import TensorSource

CODEC_PREFIX = "codec_model."
"""What precedes the names of Mimi's tensors. Source: transformers `CsmForConditionalGeneration`."""

_LAYER = {
    "sa_norm.scale": "input_layernorm.weight",
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.down_proj.weight",
}
_BACKBONE_AUDIO_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
_DECODER_AUDIO_TABLE = "depth_decoder.model.embed_tokens.weight"
_GLOBAL = {
    # A table that both transformers share is saved once: transformers 4 and 5 keep the depth decoder's name.
    AUDIO_TABLE: (_DECODER_AUDIO_TABLE, _BACKBONE_AUDIO_TABLE),
    # The second name is from before the model's release in transformers 4.52.
    "text_embeddings.weight": ("embed_text_tokens.weight", "backbone_model.embed_tokens.embed_text_tokens.weight"),
    "projection.weight": ("depth_decoder.model.inputs_embeds_projector.weight",),
    "codebook0_head.weight": ("lm_head.weight",),
    "audio_head": ("depth_decoder.codebooks_head.weight",),
}


def hf_sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, TensorSource]:
    """Upstream tensor name -> its Hugging Face source, for all tensors of a checkpoint.

    Some tensors have been saved under several names: the one among `names` (the checkpoint's) is given, else the name
    that transformers 5 uses.
    """
    sources: dict[str, TensorSource] = {}
    for prefix, hf_prefix, t in (
        ("backbone", "backbone_model", spec.backbone),
        ("decoder", "depth_decoder.model", spec.decoder),
    ):
        for layer in range(t.layers):
            for name, hf_name in _LAYER.items():
                head_dim = t.head_dim if name in ("attn.q_proj.weight", "attn.k_proj.weight") else None
                source = TensorSource(f"{hf_prefix}.layers.{layer}.{hf_name}", head_dim)
                sources[f"{prefix}.layers.{layer}.{name}"] = source
        sources[f"{prefix}.norm.scale"] = TensorSource(f"{hf_prefix}.norm.weight")
    for name, spellings in _GLOBAL.items():
        found = [spelling for spelling in spellings if spelling in names]
        sources[name] = TensorSource((found or list(spellings))[0])
    if not spec.tied_audio_embeddings:
        sources[AUDIO_TABLE] = TensorSource(_BACKBONE_AUDIO_TABLE)
        sources[DECODER_AUDIO_TABLE] = TensorSource(_DECODER_AUDIO_TABLE)
    return sources


def completed(spec: ModelSpec, names: Collection[str]) -> ModelSpec:
    """The spec of a checkpoint with these names.

    If it holds an audio table for each transformer, each gets its own, whatever the config says of tying: so does
    transformers 5, and if the two are equal it makes no difference.
    """
    if _BACKBONE_AUDIO_TABLE in names and _DECODER_AUDIO_TABLE in names:
        return replace(spec, tied_audio_embeddings=False)
    return spec


def hf_ignored(name: str) -> bool:
    """Whether a tensor that `hf_sources` does not list may be passed over.

    That is the codec's. A tensor under a second name is not: which is meant cannot be known.
    """
    return name.startswith(CODEC_PREFIX)


def hf_other_name(name: str, names: Collection[str]) -> str | None:
    """Another name among `names` for the tensor that `name` means, if there is one."""
    spellings = next((spellings for spellings in _GLOBAL.values() if name in spellings), ())
    return next((other for other in spellings if other != name and other in names), None)


def is_hf_layout(names: Collection[str]) -> bool:
    """Whether tensor `names` are of this layout. A `config.json` says nothing: CSM-1B's lies beside files of both."""
    return any(name.startswith(("backbone_model.", "depth_decoder.")) for name in names)


def unpermute_rows(rows: npt.NDArray[Any], head_dim: int) -> npt.NDArray[Any]:
    """Rows of a query or key projection from half-split to interleaved order, of any element type.

    Within a head, row `half * head_dim / 2 + pair` becomes row `2 * pair + half`.

    Args:
        rows: `[n * head_dim, dim]`, any whole number of heads.
        head_dim: Rows of one head.

    Raises:
        ValueError: If `rows` is not a whole number of heads.
    """
    if rows.ndim != 2 or len(rows) % head_dim or head_dim % 2:
        raise ValueError(f"rows {list(rows.shape)} are not whole heads of {head_dim} (even) rows")
    heads = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(heads.transpose(0, 2, 1, 3)).reshape(rows.shape)


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """The model that a `config.json` describes.

    A model with the dimensions of a known one takes its name and prompt template; any other is "CSM" with CSM's.
    Both spellings of the RoPE settings are read: `rope_scaling` (transformers 4) and `rope_parameters` (5).

    Raises:
        CheckpointError: Naming the key that is missing, or has a value that the GGUF files could not express. The
            caller puts the file's name in front.
    """
    if config.get("model_type") != "csm":
        raise CheckpointError(f"model_type must be 'csm', not {config.get('model_type')!r}")
    depth = config.get("depth_decoder_config")
    if not isinstance(depth, Mapping):
        raise CheckpointError("depth_decoder_config is missing: without it the model has no dimensions")
    tied = config.get("tie_codebooks_embeddings", True)
    if not isinstance(tied, bool | None):
        raise CheckpointError(f"tie_codebooks_embeddings must be true or false, not {tied!r}")
    codec = config.get("codec_config")
    if isinstance(codec, Mapping):
        check_mimi_config(codec, "codec_config.")
    outer, inner = _Section(config, ""), _Section(depth, "depth_decoder_config.")
    for key, own, other in (
        ("num_codebooks", "num_codebooks", outer.integer("num_codebooks")),
        ("vocab_size", "vocab_size", outer.integer("vocab_size")),
        ("hidden_size", "backbone_hidden_size", outer.integer("hidden_size")),
        ("rms_norm_eps", "rms_norm_eps", outer.number("rms_norm_eps", 1e-5)),
        ("rope_theta", "rope_theta", outer.rope_base()),
    ):
        value = inner.rope_base() if own == "rope_theta" else inner.number(own, 1e-5 if own == "rms_norm_eps" else None)
        if value != other:
            raise CheckpointError(f"{key} {other} and {inner.prefix}{own} {value} must be equal")
    if not _same_scaling(outer.rope_scaling(), inner.rope_scaling()):
        raise CheckpointError("the backbone's and depth_decoder_config's RoPE scaling must be equivalent")
    try:
        spec = ModelSpec(
            name="CSM",
            backbone=outer.transformer(),
            decoder=inner.transformer(),
            text_vocab=outer.integer("text_vocab_size"),
            audio_vocab=outer.integer("vocab_size"),
            codebooks=outer.integer("num_codebooks"),
            max_positions=outer.integer("max_position_embeddings", 2048),
            norm_eps=outer.number("rms_norm_eps", 1e-5),
            rope_base=outer.rope_base(),
            rope_scaling=_canonical(outer.rope_scaling()),
            prompt=CSM_1B.prompt,
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    flavor = next((flavor for flavor in FLAVORS.values() if _is_of(spec, flavor)), spec)
    return replace(spec, name=flavor.name, prompt=flavor.prompt, tied_audio_embeddings=bool(tied))


def _is_of(spec: ModelSpec, flavor: ModelSpec) -> bool:
    """Whether the dimensions are a known model's, but for rows of text embeddings, which fine-tunes add."""
    return replace(spec, name=flavor.name, prompt=flavor.prompt, text_vocab=flavor.text_vocab) == flavor


def check_mimi_config(config: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse a codec that differs from Mimi in a setting that its tensors do not show.

    Source: transformers `MimiConfig`, whose defaults are the published codec's. Raises `CheckpointError`.
    """
    section = _Section(config, prefix)
    width = section.integer("hidden_size", MIMI.latent_dim)
    heads = mimi_heads(width)
    section.require(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        sliding_window=MIMI.window,
        norm_eps=1e-5,
        hidden_act="gelu",
        attention_bias=False,
        pad_mode="constant",
        trim_right_ratio=1.0,
        use_causal_conv=True,
        audio_channels=1,
        sampling_rate=SAMPLE_RATE_HZ,
    )
    if section.rope_scaling() is not None or section.rope_base(MIMI.rope_period) != MIMI.rope_period:
        raise CheckpointError(f"{prefix}RoPE is not Mimi's (rope_theta {MIMI.rope_period:g}, not scaled)")


def _thresholds(scaling: RopeScaling) -> tuple[float, float, float]:
    """What a scaling amounts to: the factor, and the wavelengths between which it sets in."""
    context = scaling.original_context
    return scaling.factor, context / scaling.low_freq_factor, context / scaling.high_freq_factor


def _same_scaling(a: RopeScaling | None, b: RopeScaling | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(x - y) <= 1e-6 * abs(y) for x, y in zip(_thresholds(a), _thresholds(b), strict=True))


def _canonical(scaling: RopeScaling | None) -> RopeScaling | None:
    """CSM's scaling as upstream writes it.

    transformers wants the original context below the maximum, so its CSM-1B says context 1024 (16 for the depth
    decoder) with the frequency factors reduced in proportion: the same wavelengths.
    """
    return RopeScaling() if _same_scaling(scaling, RopeScaling()) else scaling


@dataclass(frozen=True)
class _Section:
    """The settings of one of the two transformers."""

    data: Mapping[str, Any]
    prefix: str

    def number(self, key: str, default: float | None = None) -> float:
        return self._number(self.data, self.prefix, key, default)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value):
            raise CheckpointError(f"{self.prefix}{key} must be a whole number, not {value}")
        return int(value)

    def require(self, **wanted: object) -> None:
        """Settings that no tensor shows, and that have one value in the files that we write."""
        for key, value in wanted.items():
            if self.data.get(key, value) not in (value, None):
                raise CheckpointError(f"{self.prefix}{key} {self.data[key]!r} is not supported, only {value!r}")

    def transformer(self) -> TransformerSpec:
        self.require(hidden_act="silu", attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0)
        width, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        if heads < 1:
            raise CheckpointError(f"{self.prefix}num_attention_heads must be positive, not {heads}")
        return TransformerSpec(
            layers=self.integer("num_hidden_layers"),
            embed_dim=width,
            heads=heads,
            kv_heads=self.integer("num_key_value_heads", heads),
            head_dim=self.integer("head_dim", width // heads),
            ffn_dim=self.integer("intermediate_size"),
        )

    def rope_base(self, default: float = 500_000.0) -> float:
        prefix, rope = self._rope()
        return self._number(rope, prefix, "rope_theta", self.number("rope_theta", default))

    def rope_scaling(self) -> RopeScaling | None:
        prefix, rope = self._rope()
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return None
        if kind != "llama3":
            raise CheckpointError(f"{prefix}rope_type {kind!r} is not supported, only 'llama3'")
        context = self._number(rope, prefix, "original_max_position_embeddings", None)
        try:
            return RopeScaling(
                factor=self._number(rope, prefix, "factor", None),
                low_freq_factor=self._number(rope, prefix, "low_freq_factor", None),
                high_freq_factor=self._number(rope, prefix, "high_freq_factor", None),
                original_context=int(context),
            )
        except ValueError as error:
            raise CheckpointError(f"{prefix.rstrip('.')}: {error}") from error

    def _rope(self) -> tuple[str, Mapping[str, Any]]:
        given = {key: self.data.get(key) for key in ("rope_parameters", "rope_scaling")}
        found = [(f"{self.prefix}{key}.", rope) for key, rope in given.items() if isinstance(rope, Mapping)]
        if len(found) > 1:
            (prefix, rope), (other_prefix, other) = found
            for key in sorted(rope.keys() & other.keys()):
                if rope[key] != other[key]:
                    raise CheckpointError(f"{prefix}{key} {rope[key]!r} and {other_prefix}{key} {other[key]!r} differ")
        return found[0] if found else (f"{self.prefix}rope_parameters.", {})

    @staticmethod
    def _number(data: Mapping[str, Any], prefix: str, key: str, default: float | None) -> float:
        value = data.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{prefix}{key} is missing")
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise CheckpointError(f"{prefix}{key} must be a number, not {value!r}")
        return value
