"""The quantisation levels, a row each: what a level is called, what it is made of, and what it may cost.

A level is a mixture for a whole file (llama.cpp's *ftype*). Its types are rows of `tensor_types.py`; `convert` applies
its mixture to a model's tensors.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mixture:
    """Which of ggml's types the tensors of a file get, by their names: llama.cpp's mixtures for its `llama` arch.

    Source: `llama_tensor_get_type` in llama.cpp's llama-quant.cpp.
    """

    base: str
    """Of most tensors."""
    output: str = "Q6_K"
    """Of the output matrix."""
    more_bits: str | None = None
    """Of `attn_v` and `ffn_down` in the layers that llama.cpp takes for sensitive."""
    with_imatrix: str | None = None
    """Of `ffn_down` in the first eighth of the layers, if there is an importance matrix."""

    @property
    def quantises(self) -> bool:
        """Whether weights lose more than a float's last bits. Then tables have types of their own."""
        return self.base not in ("F32", "F16")


@dataclass(frozen=True)
class Level:
    """One level. `key` names it in commands and manifests, `label` in file names and tables."""

    key: str
    label: str
    ftype: int
    """llama.cpp's `enum llama_ftype`, written as `general.file_type`. Source: llama.h."""
    mixture: Mixture
    bits: float
    """Bits per weight of backbone and depth decoder of the 8B model: its place in the order, the more the finer."""
    max_logits_error: float
    """RMS error of logits over their RMS that `verify` allows. Files that were mixed up give about 1.4.

    Random weights, the worst case there is (no layer repairs another's error), stay below half of it: docs/bundle.md.
    """
    embeddings_key: str = "q8_0"
    """The level of the embeddings file that goes with it: tables are looked up, and shared by several levels."""
    is_last_resort: bool = False
    """Whether it is poorer than its size saves: `auto` takes it on a CPU only where nothing else fits."""
    aliases: tuple[str, ...] = ()

    @property
    def embeddings(self) -> "Level":
        """The level of the embeddings file."""
        return LEVELS[self.embeddings_key]


F32 = Level("f32", "F32", 0, Mixture("F32", output="F32"), 32.0, 1e-4, embeddings_key="f32", aliases=("fp32",))
FP16 = Level("fp16", "F16", 1, Mixture("F16", output="F16"), 16.0, 0.01, embeddings_key="fp16", aliases=("f16",))
Q8_0 = Level("q8_0", "Q8_0", 7, Mixture("Q8_0", output="Q8_0"), 8.5, 0.08)
Q6_K = Level("q6_k", "Q6_K", 18, Mixture("Q6_K"), 6.59, 0.16)
Q5_K_M = Level("q5_k_m", "Q5_K_M", 17, Mixture("Q5_K", more_bits="Q6_K"), 5.71, 0.3)
Q4_K_M = Level("q4_k_m", "Q4_K_M", 15, Mixture("Q4_K", more_bits="Q6_K"), 4.87, 0.6)
Q4_0 = Level("q4_0", "Q4_0", 2, Mixture("Q4_0", with_imatrix="Q4_1"), 4.58, 0.8, is_last_resort=True)

_ROWS = [row for row in list(globals().values()) if isinstance(row, Level)]
LEVELS: dict[str, Level] = {level.key: level for level in sorted(_ROWS, key=lambda row: -row.bits)}
"""All of them by key, the finest first."""
DEFAULT_LEVEL = Q4_K_M
"""What is taken and recommended where nobody chose."""


def parse_level(name: str) -> Level:
    """The level called `name`, in any case. Raises `ValueError` that suggests the nearest known name."""
    names = {alias: level for level in LEVELS.values() for alias in (level.key, *level.aliases)}
    key = name.strip().lower()
    if key in names:
        return names[key]
    near = difflib.get_close_matches(key, [*LEVELS, *(name for name in names if name not in LEVELS)], n=1, cutoff=0.4)
    hint = f": did you mean {near[0]}?" if near else "."
    raise ValueError(f"unknown level {name!r}{hint} Known: {', '.join(LEVELS)}.")


def halves(key: str) -> list[Level]:
    """The levels that a manifest's name combines: "q4_k_m+q8_0" is Q4_K_M, its depth decoder in Q8_0.

    Raises `KeyError` on one that this version does not know.
    """
    return [LEVELS[half] for half in key.split("+")]


def finest_first(keys: Iterable[str]) -> list[str]:
    """A manifest's names in the order of their levels: by the backbone, then by the depth decoder."""
    order = list(LEVELS)
    return sorted(keys, key=lambda key: [order.index(level.key) for level in halves(key)])
