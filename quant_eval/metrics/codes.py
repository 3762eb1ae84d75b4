"""How far two utterances are apart as codes. Knows no audio.

Code sequences of two runs that differ by one early sample share little later on: a distance means something only
beside that of two seeds of one model.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import I64Array
from ..metric import DISTANCE, FREE, ONE_STEP, SHARE, Family

INSERTION, DELETION, SUBSTITUTION = 1.0, 1.0, 1.5
"""Weights. Another sound weighs more than the same sound for 80 ms longer or shorter, and less than both to drop it and
to insert the other: in the middle between 1 and 2. Source: DS-WED (arXiv 2509.19928) weighs the three edits one by one,
but these numbers are ours: its authors' package (dswed 1.0.0) starts with 1, 1, 1, in which all edits are alike.
"""

FLIPS = Family(ONE_STEP, is_per_frame=True)
"""Of the codes of the same frames, drawn twice."""
SEMANTIC, PATHS = Family(FREE), Family(FREE)
"""Of the codes of two utterances: what is said, and where they part."""


@FLIPS.metric(
    "Flips",
    "%",
    "lower",
    SHARE,
    "Codes that differ from the reference's when sampled with the same noise after the same history.",
)
def flip_rate(codes: I64Array, other: I64Array) -> float:
    """Of codes `[frames, codebooks]`. Raises `ValueError` if the shapes differ or there is no code."""
    if codes.shape != other.shape or not codes.size:
        raise ValueError(f"codes must both be [frames, codebooks] of a frame or more: {codes.shape}, {other.shape}")
    return 100 * float((other != codes).mean())


FLIP_RATE = FLIPS["flip_rate"]
"""What the ear may hear of it: other codes."""


@SEMANTIC.metric(
    "Semantic edit distance",
    "",
    "lower",
    DISTANCE,
    "Edit distance of the codebook-0 sequences, per frame: 1 for a code more or less, 1.5 for another one. Two seeds "
    "of one model are far apart as well: to be read as R, over the distance between seeds, where 1 is no more.",
    digits=3,
)
def semantic_wed(
    codes: I64Array,
    other: I64Array,
    *,
    insertion: float = INSERTION,
    deletion: float = DELETION,
    substitution: float = SUBSTITUTION,
) -> float:
    """Weighted edit distance of the semantic codes, per frame of the longer utterance.

    As DS-WED, but over codebook 0 instead of clustered HuBERT features, and over the length, which the original is not.
    Between 0 (equal) and the largest weight. Symmetric if insertion and deletion weigh the same.

    Args:
        codes: `[frames, codebooks]`, or `[frames]` for codebook 0 alone.
        other: The same of the other utterance.
        insertion: Of a code of `other`.
        deletion: Of a code of `codes`.
        substitution: Of one for another.

    Raises:
        ValueError: The codes have another shape, or a weight is negative or not finite.
    """
    weights = insertion, deletion, substitution
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights must be finite and not negative, got {insertion}, {deletion}, {substitution}")
    first, second = _semantic(codes), _semantic(other)
    if not len(first) and not len(second):
        return 0.0
    across: NDArray[np.float64] = np.arange(len(second) + 1, dtype=np.float64) * insertion
    row = across
    for code in first:
        reached: NDArray[np.float64] = row + deletion
        np.minimum(reached[1:], row[:-1] + substitution * (second != code), out=reached[1:])
        # Insertions run along the row: a cell is the best of those to its left plus what lies between.
        row = np.asarray(np.minimum.accumulate(reached - across) + across)
    return float(row[-1]) / max(len(first), len(second))


@PATHS.metric(
    "First divergence",
    "frames",
    "higher",
    DISTANCE,
    "Frames before the first code that differs from the reference's; not gated.",
    ideal=None,
    digits=1,
)
def first_divergence(codes: I64Array, other: I64Array) -> int:
    """Frames before the first in which any code differs; the length of the shorter utterance if none does.

    Raises:
        ValueError: The codes are not both `[frames, codebooks]` with the same codebooks.
    """
    if codes.ndim != 2 or other.ndim != 2 or codes.shape[1] != other.shape[1]:
        raise ValueError(f"codes must be [frames, codebooks] with the same codebooks: {codes.shape}, {other.shape}")
    both = min(len(codes), len(other))
    differs = (codes[:both] != other[:both]).any(axis=1)
    return int(differs.argmax()) if differs.any() else both


def _semantic(codes: I64Array) -> I64Array:
    if codes.ndim not in {1, 2} or (codes.ndim == 2 and not codes.shape[1]):
        raise ValueError(f"codes must be [frames, codebooks] or [frames], not {list(codes.shape)}")
    return codes if codes.ndim == 1 else codes[:, 0]
