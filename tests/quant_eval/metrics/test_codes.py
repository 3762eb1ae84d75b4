"""Edit distance against its definition, divergence by hand."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.quant_eval.metrics.codes import (
    DELETION,
    INSERTION,
    SEMANTIC,
    SUBSTITUTION,
    first_divergence,
    flip_rate,
    semantic_wed,
)

Codes = NDArray[np.int64]
CODES = st.lists(st.integers(0, 3), max_size=8)
WEIGHTS = st.sampled_from([0.5, 1.0, 1.5, 3.0])


def edits(first: list[int], second: list[int], insertion: float, deletion: float, substitution: float) -> float:
    """The recursion of Wagner and Fischer as it is written down."""

    @cache
    def cost(i: int, j: int) -> float:
        if i == 0 or j == 0:
            return i * deletion + j * insertion
        change = 0 if first[i - 1] == second[j - 1] else substitution
        return min(cost(i - 1, j - 1) + change, cost(i - 1, j) + deletion, cost(i, j - 1) + insertion)

    return cost(len(first), len(second))


@settings(deadline=None)
@given(CODES, CODES, WEIGHTS, WEIGHTS, WEIGHTS)
def test_distance_is_its_definition(
    first: list[int], second: list[int], insertion: float, deletion: float, substitution: float
) -> None:
    found = semantic_wed(
        np.array(first, np.int64),
        np.array(second, np.int64),
        insertion=insertion,
        deletion=deletion,
        substitution=substitution,
    )
    assert found * max(len(first), len(second)) == pytest.approx(
        edits(first, second, insertion, deletion, substitution)
    )


@settings(deadline=None)
@given(CODES, CODES)
def test_distance_is_symmetric_and_bounded(first: list[int], second: list[int]) -> None:
    one, other = np.array(first, np.int64), np.array(second, np.int64)
    assert semantic_wed(one, other) == semantic_wed(other, one)
    assert 0 <= semantic_wed(one, other) <= SUBSTITUTION
    assert (semantic_wed(one, other) == 0) == (first == second)


def test_another_sound_weighs_more_than_a_longer_one() -> None:
    base = np.array([1, 2, 3, 4])
    longer, other = np.array([1, 2, 2, 3, 4]), np.array([1, 2, 9, 4])
    assert INSERTION == DELETION < SUBSTITUTION < INSERTION + DELETION
    assert semantic_wed(base, longer) * 5 == INSERTION == semantic_wed(longer, base) * 5
    assert semantic_wed(base, other) * 4 == SUBSTITUTION
    assert "over the distance between seeds" in SEMANTIC["semantic_wed"].definition


def test_only_codebook_0_counts() -> None:
    codes = np.array([[1, 9], [2, 9], [3, 9], [4, 9]])
    other = np.array([[1, 5], [7, 5], [3, 5], [4, 5]])
    assert semantic_wed(codes, other) == SUBSTITUTION / 4
    assert first_divergence(codes, other) == 0


@pytest.mark.parametrize(
    ("codes", "other", "expected"),
    [
        ([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4], [5, 6]], 3),
        ([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 9], [5, 6]], 1),
        ([[1, 2], [3, 4], [5, 6]], [[1, 2]], 1),
        ([[1, 2]], [[8, 2]], 0),
    ],
)
def test_divergence(codes: list[list[int]], other: list[list[int]], expected: int) -> None:
    assert first_divergence(np.array(codes), np.array(other)) == expected


def test_an_utterance_of_nothing() -> None:
    nothing: Codes = np.zeros((0, 8), np.int64)
    assert semantic_wed(nothing, nothing) == 0
    assert semantic_wed(nothing, np.ones((5, 8), np.int64)) == 1
    assert first_divergence(nothing, np.ones((5, 8), np.int64)) == 0


def test_what_are_no_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="codebooks"):
        semantic_wed(np.zeros((2, 2, 2), np.int64), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="same codebooks"):
        first_divergence(np.zeros((2, 8), np.int64), np.zeros((2, 32), np.int64))
    for weight in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            semantic_wed(np.zeros(1, np.int64), np.zeros(1, np.int64), substitution=weight)
    for shapes in (((0, 8), (0, 8)), ((4, 8), (1, 8))):
        with pytest.raises(ValueError, match="of a frame or more"):
            flip_rate(*(np.zeros(shape, np.int64) for shape in shapes))


def test_flips() -> None:
    base = np.array([[1, 2, 3], [4, 5, 6]])
    level = np.array([[1, 2, 9], [4, 0, 9]])
    assert flip_rate(base, level) == 50
    assert flip_rate(base, base) == 0
