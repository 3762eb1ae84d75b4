"""The quantisation levels: what each is called, and what llama.cpp calls it.

A level is a recipe for a whole file (llama.cpp's *ftype*); which type each tensor gets is `convert/mixture.py`.
"""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One level. `key` names it in commands and manifests, `label` in file names and tables."""

    key: str
    label: str
    ftype: int
    """llama.cpp's `enum llama_ftype`, written as `general.file_type`. Source: llama.h."""
    base_type: str
    """The ggml type of most tensors."""
    embeddings_key: str
    """The level of the embeddings file that goes with it: tables are looked up, and shared by several levels."""

    @property
    def embeddings(self) -> "Level":
        """The level of the embeddings file."""
        return LEVELS[self.embeddings_key]


F32 = Level("f32", "F32", 0, "F32", "f32")
FP16 = Level("fp16", "F16", 1, "F16", "fp16")
Q8_0 = Level("q8_0", "Q8_0", 7, "Q8_0", "q8_0")
Q4_K_M = Level("q4_k_m", "Q4_K_M", 15, "Q4_K", "q8_0")
Q4_0 = Level("q4_0", "Q4_0", 2, "Q4_0", "q8_0")

LEVELS: dict[str, Level] = {level.key: level for level in (F32, FP16, Q8_0, Q4_K_M, Q4_0)}
"""The finest first."""
_ALIASES = {"f16": "fp16", "fp32": "f32"}


def parse_level(name: str) -> Level:
    """The level called `name`, in any case. Raises `ValueError` that suggests the nearest known name."""
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if key in LEVELS:
        return LEVELS[key]
    near = difflib.get_close_matches(key, [*LEVELS, *_ALIASES], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"unknown quantisation {name!r}: {hint}Known: {', '.join(LEVELS)}.")
