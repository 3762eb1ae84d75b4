"""Warping against brute force, and in a corridor against the exact path."""

import tracemalloc

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.quant_eval.prosody.warping import warp

Floats = NDArray[np.float64]


def least_cost(first: Floats, second: Floats) -> float:
    """By the recursion's definition, cell by cell."""
    n, m = len(first), len(second)
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    for i in range(n):
        for j in range(m):
            here = float(np.linalg.norm(first[i] - second[j]))
            total[i + 1, j + 1] = here + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return float(total[n, m])


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_the_path_is_a_path_and_none_is_cheaper(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 4, (n, 2)).astype(float), rng.integers(0, 4, (m, 2)).astype(float)
    path = warp(first, second)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [n - 1, m - 1]
    assert {tuple(step) for step in np.diff(path, axis=0).tolist()} <= {(1, 1), (0, 1), (1, 0)}
    cost = np.linalg.norm(first[path[:, 0]] - second[path[:, 1]], axis=1).sum()
    assert cost == pytest.approx(least_cost(first, second))


def test_equal_sequences_give_the_diagonal() -> None:
    same = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(warp(same, same.copy()), np.stack([np.arange(50)] * 2, axis=1))
    steady = np.ones((7, 3))
    np.testing.assert_array_equal(warp(steady, steady), np.stack([np.arange(7)] * 2, axis=1))


def test_a_repetition_is_warped_away() -> None:
    first = np.arange(20.0)[:, None]
    second = np.repeat(first, [1] * 5 + [4] + [1] * 14, axis=0)
    path = warp(first, second)
    np.testing.assert_array_equal(first[path[:, 0]], second[path[:, 1]])


@pytest.mark.parametrize(("first", "second"), [((0, 3), (4, 3)), ((4, 3), (0, 3)), ((4, 3), (4, 2))])
def test_what_cannot_be_warped_is_refused(first: tuple[int, int], second: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="same kind"):
        warp(np.zeros(first), np.zeros(second))


def trajectory(rows: int, seed: int) -> Floats:
    """Goes from one point to the next within 20 rows, as speech does."""
    points = np.random.default_rng(seed).normal(size=(rows // 20 + 2, 5))
    return np.stack([np.interp(np.arange(rows) / 20, np.arange(len(points)), column) for column in points.T], axis=1)


def retimed(first: Floats, rows: int) -> tuple[Floats, NDArray[np.int64]]:
    """The first, uneven in time, and from which of its rows each comes."""
    at = np.sort(np.random.default_rng(1).integers(0, len(first), rows))
    at[0], at[-1] = 0, len(first) - 1
    return first[at], at


@pytest.mark.parametrize("rows", [1300, 1500, 1800])
def test_beyond_the_limit_the_path_in_the_corridor_is_the_exact_one(rows: int) -> None:
    first = trajectory(1500, 0)
    second, _ = retimed(first, rows)
    limited = warp(first, second, most_cells=20_000)
    np.testing.assert_array_equal(limited, warp(first, second))


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32), st.integers(1, 400))
def test_in_a_corridor_it_is_a_path_too(n: int, m: int, seed: int, most_cells: int) -> None:
    rng = np.random.default_rng(seed)
    path = warp(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), most_cells)
    assert (path[0].tolist(), path[-1].tolist()) == ([0, 0], [n - 1, m - 1])
    assert {tuple(step) for step in np.diff(path, axis=0).tolist()} <= {(1, 1), (0, 1), (1, 0)}


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    """4000 rows against as many would be 16 MB."""
    first = trajectory(4000, 2)
    second, at = retimed(first, 4000)
    tracemalloc.start()
    path = warp(first, second, most_cells=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
    assert np.abs(at[path[:, 1]] - path[:, 0]).max() <= 40
