"""The quantisation levels, a row each: what a level is called, what it is made of, and what it may cost.

A level is a mixture for a whole file (llama.cpp's *ftype*): see `mixtures.py`. Its types are rows of `tensor_types.py`.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from . import mixtures
from .mixtures import Mixture


@dataclass(frozen=True)
class Level:
    """One level. `key` names it in commands and manifests, `label` in file names and tables."""

    key: str
    label: str
    ftype: int
    """llama.cpp's `enum llama_ftype`, written as `general.file_type`. Source: llama.h."""
    mixture: Mixture
    bits: float
    """Bits per weight of backbone and depth decoder of the 8B model."""
    max_logits_error: float
    """RMS error of logits over their RMS that `verify` allows. Files that were mixed up give about 1.4.

    Random weights, the worst case there is (no layer repairs another's error), stay below two thirds: docs/bundle.md.
    """
    embeddings_key: str = "q8_0"
    """The level of the embeddings file that goes with it: tables are looked up, and shared by several levels."""
    is_last_resort: bool = False
    """Whether it loses more than its size saves: `auto` takes it on a CPU only where nothing else fits.

    These are from 0.07 nats on, more than twice what the default loses: see `LEVELS`.
    """
    needs_imatrix: bool = False
    """Whether it is made with an importance matrix only.

    llama.cpp insists on one for IQ3_XXS and IQ3_XS alone. IQ3_S and IQ3_M without one nobody has measured.
    """
    aliases: tuple[str, ...] = ()

    @property
    def embeddings(self) -> "Level":
        """The level of the embeddings file."""
        return LEVELS[self.embeddings_key]


F32 = Level("f32", "F32", 0, mixtures.F32, 32.0, 1e-4, embeddings_key="f32", aliases=("fp32",))
FP16 = Level("fp16", "F16", 1, mixtures.F16, 16.0, 0.01, embeddings_key="fp16", aliases=("f16",))
BF16 = Level("bf16", "BF16", 32, mixtures.BF16, 16.0, 0.04, embeddings_key="bf16")
Q8_0 = Level("q8_0", "Q8_0", 7, mixtures.Q8_0, 8.5, 0.08)
Q6_K = Level("q6_k", "Q6_K", 18, mixtures.Q6_K, 6.59, 0.16)
Q5_K_M = Level("q5_k_m", "Q5_K_M", 17, mixtures.Q5_K_M, 5.71, 0.3, aliases=("q5_k",))
Q5_K_S = Level("q5_k_s", "Q5_K_S", 16, mixtures.Q5_K_S, 5.56, 0.3)
Q5_1 = Level("q5_1", "Q5_1", 9, mixtures.Q5_1, 6.04, 0.3)
Q5_0 = Level("q5_0", "Q5_0", 8, mixtures.Q5_0, 5.56, 0.3)
Q4_K_M = Level("q4_k_m", "Q4_K_M", 15, mixtures.Q4_K_M, 4.87, 0.6, aliases=("q4_k",))
Q4_K_S = Level("q4_k_s", "Q4_K_S", 14, mixtures.Q4_K_S, 4.62, 0.6)
IQ4_NL = Level("iq4_nl", "IQ4_NL", 25, mixtures.IQ4_NL, 4.64, 0.6)
IQ4_XS = Level("iq4_xs", "IQ4_XS", 30, mixtures.IQ4_XS, 4.41, 0.8)
Q4_1 = Level("q4_1", "Q4_1", 3, mixtures.Q4_1, 5.07, 0.6, is_last_resort=True)
Q4_0 = Level("q4_0", "Q4_0", 2, mixtures.Q4_0, 4.58, 0.8, is_last_resort=True)
Q3_K_L = Level("q3_k_l", "Q3_K_L", 13, mixtures.Q3_K_L, 4.28, 0.8, is_last_resort=True)
Q3_K_M = Level("q3_k_m", "Q3_K_M", 12, mixtures.Q3_K_M, 3.95, 0.8, is_last_resort=True, aliases=("q3_k",))
IQ3_M = Level("iq3_m", "IQ3_M", 27, mixtures.IQ3_M, 3.69, 0.9, is_last_resort=True, needs_imatrix=True)
IQ3_S = Level("iq3_s", "IQ3_S", 26, mixtures.IQ3_S, 3.57, 1.0, is_last_resort=True, needs_imatrix=True)
IQ3_XS = Level("iq3_xs", "IQ3_XS", 22, mixtures.IQ3_XS, 3.39, 1.0, is_last_resort=True, needs_imatrix=True)
IQ3_XXS = Level("iq3_xxs", "IQ3_XXS", 23, mixtures.IQ3_XXS, 3.18, 1.2, is_last_resort=True, needs_imatrix=True)
Q3_K_S = Level("q3_k_s", "Q3_K_S", 11, mixtures.Q3_K_S, 3.55, 1.0, is_last_resort=True)
Q2_K = Level("q2_k", "Q2_K", 10, mixtures.Q2_K, 3.07, 1.2, is_last_resort=True)

_ROWS = [row for row in list(globals().values()) if isinstance(row, Level)]
LEVELS: dict[str, Level] = {level.key: level for level in _ROWS}
"""All of them by key, the finest first: what loses least, which is not always what has most bits.

Source: the divergences of Llama 3 8B in the README of llama.cpp's tools/perplexity.
"""
_LIKE = 0.4
"""Likeness, 0 to 1, from which on a name may be a slip of another."""
DEFAULT_LEVEL = Q4_K_M
"""What is taken and recommended where nobody chose."""


def parse_level(name: str) -> Level:
    """The level called `name`, in any case. Raises `ValueError` that suggests the nearest known name."""
    names = {alias: level for level in LEVELS.values() for alias in (level.key, *level.aliases)}
    key = name.strip().lower()
    if key in names:
        return names[key]
    # Of several that are as near, as q4_k_m and q4_k_s are to q4_k, the finest.
    order = [*LEVELS, *(name for name in names if name not in LEVELS)]
    likeness = {each: difflib.SequenceMatcher(None, each, key).ratio() for each in order}
    near = max(order, key=likeness.__getitem__)
    hint = f": did you mean {near}?" if likeness[near] >= _LIKE else "."
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
