"""The model as data: dimensions and constants of one RVQ transformer of the CSM design.

It knows no tensor names (`tensors.py`), no known models (`flavors.py`) and no file formats.
"""

import math
import re
import reprlib
import string
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_MOST = (1 << 31) - 1
"""Of every number: what llama.cpp and our files have room for. A spec may come from strangers."""
_MOST_LAYERS = 512
"""Source: `LLAMA_MAX_LAYERS` in llama.cpp's llama-hparams.h."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rescaling of RoPE frequencies.

    Source: "The Llama 3 Herd of Models" (arXiv 2407.21783) and the values in the CSM upstream code.
    """

    factor: float = 32.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if not (1 <= self.factor < _MOST and 0 < self.low_freq_factor < self.high_freq_factor < _MOST):
            raise ValueError(f"RoPE scaling needs factor >= 1 and 0 < low < high, not {reprlib.repr(self)}")
        _check_positive("RoPE original context", self.original_context)


@dataclass(frozen=True)
class TransformerSpec:
    """Dimensions of one Llama-style transformer (grouped-query attention, SwiGLU, RMSNorm, no biases)."""

    layers: int
    embed_dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_positive(f"transformer {f.name}", getattr(self, f.name))
        if self.layers > _MOST_LAYERS:
            raise ValueError(f"layers must be at most {_MOST_LAYERS}, not {self.layers}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE rotates pairs")

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class ModelSpec:
    """One text-to-speech model: backbone, depth decoder, vocabularies and the constants they share."""

    name: str
    backbone: TransformerSpec
    decoder: TransformerSpec
    text_vocab: int
    audio_vocab: int
    codebooks: int
    max_positions: int = 2048
    norm_eps: float = 1e-5
    rope_base: float = 500_000.0
    rope_scaling: RopeScaling | None = field(default_factory=RopeScaling)
    prompt: str = "[{speaker}] {text}"
    tied_audio_embeddings: bool = True
    """Whether backbone and depth decoder look codes up in one table, as upstream. transformers can hold two."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", self.name):
            raise ValueError(
                f"model name must be usable in a file name (letters, digits, . _ + -), not {reprlib.repr(self.name)}"
            )
        for label in ("text_vocab", "audio_vocab", "max_positions", "codebooks"):
            _check_positive(label, getattr(self, label))
        if self.codebooks < 2:
            raise ValueError(f"the depth decoder needs at least 2 codebooks, not {self.codebooks}")
        if not 0 < self.norm_eps < 1 or not 1 < self.rope_base < _MOST:
            raise ValueError(
                f"norm_eps must be 0 to 1 and rope_base 1 to {_MOST}, "
                f"not {reprlib.repr(self.norm_eps)} and {reprlib.repr(self.rope_base)}"
            )
        if not isinstance(self.prompt, str) or not _is_template(self.prompt):
            raise ValueError(f"prompt template needs {{speaker}} and {{text}}, not {reprlib.repr(self.prompt)}")
        if not isinstance(self.tied_audio_embeddings, bool):
            raise ValueError(
                f"tied_audio_embeddings must be true or false, not {reprlib.repr(self.tied_audio_embeddings)}"
            )

    @property
    def flat_audio_vocab(self) -> int:
        """Rows of the audio embedding table: id = codebook * audio_vocab + code."""
        return self.codebooks * self.audio_vocab

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file. What earlier versions do not know is left out where it says nothing new."""
        data = asdict(self)
        if self.tied_audio_embeddings:
            del data["tied_audio_embeddings"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, ignore_unknown: bool = False) -> "ModelSpec":
        """Inverse of `to_dict`. Raises `ValueError` on missing, invalid or (unless ignored) unknown entries."""

        def known(
            kind: type[TransformerSpec] | type[RopeScaling] | type[ModelSpec], entries: dict[str, Any]
        ) -> dict[str, Any]:
            names = {f.name for f in fields(kind)}
            return {key: value for key, value in entries.items() if key in names or not ignore_unknown}

        try:
            scaling = data.get("rope_scaling")
            return cls(
                **{
                    **known(cls, data),
                    "backbone": TransformerSpec(**known(TransformerSpec, data["backbone"])),
                    "decoder": TransformerSpec(**known(TransformerSpec, data["decoder"])),
                    "rope_scaling": RopeScaling(**known(RopeScaling, scaling)) if scaling is not None else None,
                }
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a model spec: {error}") from error


def _check_positive(label: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{label} must be a positive integer, not {reprlib.repr(value)}")
    if value > _MOST:
        raise ValueError(f"{label} must be at most {_MOST}, not {reprlib.repr(value)}")


def _is_template(prompt: str) -> bool:
    """Whether it has both fields, and only them, as they are: `str.format` knows formats of gigabytes."""
    try:
        pieces = [*string.Formatter().parse(prompt)]
    except ValueError:
        return False
    fields = [(name, layout, conversion) for _, name, layout, conversion in pieces if name is not None]
    return set(fields) == {("speaker", "", None), ("text", "", None)}


def rope_factors(spec: ModelSpec, head_dim: int) -> list[float]:
    """Divisors of the RoPE frequencies, one per pair (`head_dim / 2` values), in Llama 3's scheme.

    llama.cpp multiplies the *wavelength* by these: low frequencies by `factor`, high ones by 1, with a smooth
    ramp between. Source: llama.cpp `conversion` of `rope_type: llama3`; arXiv 2407.21783.
    """
    if spec.rope_scaling is None:
        return [1.0] * (head_dim // 2)
    s = spec.rope_scaling
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * spec.rope_base ** (2 * pair / head_dim)
        periods = s.original_context / wavelength
        if periods > s.high_freq_factor:
            factors.append(1.0)
        elif periods < s.low_freq_factor:
            factors.append(s.factor)
        else:
            smooth = (periods - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
            factors.append(1.0 / ((1 - smooth) / s.factor + smooth))
    return factors
