"""Dynamic time warping: which row of one sequence corresponds to which of another. Knows no sound.

Exact for what fits a stated number of cells. What is longer is warped coarsely first, and then in a corridor about the
coarse path, so that memory has a limit.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import I64Array
from .sound import F64Array

MOST_CELLS = 36_000_000
"""Of an exact path, one byte and about 0.1 us each: a minute against a minute of steps of 10 ms."""
CORRIDOR_ROWS = 100
"""To either side of the coarse path, from its point on: 1 s, or one step of it if that is more."""

_COARSE_CELLS = 4_000_000
"""Of the coarse path of what is longer: ten minutes against ten in steps of 0.3 s."""


def warp(first: F64Array, second: F64Array, most_cells: int = MOST_CELLS) -> I64Array:
    """The path of least total distance from the beginnings of two sequences to their ends.

    Each step goes on by one in one sequence or in both, and costs the Euclidean distance of where it leads; of equal
    ways the one with fewer steps is preferred, so equal sequences give the diagonal. Source: Sakoe and Chiba (IEEE
    Trans. ASSP 26, 1978), with unit weights. Up to `most_cells` pairs of rows without any window: one byte each. Beyond
    that the least path inside a corridor of 100 rows to either side of the path of the sequences' means over several
    rows. Source: Salvador and Chan, "FastDTW" (Intelligent Data Analysis 11, 2007), with two resolutions. Ten minutes
    against ten, in steps of 10 ms, take 60 MB.

    Args:
        first: Float64 `[n, k]`.
        second: Float64 `[m, k]`.
        most_cells: n x m up to which it is exact.

    Returns:
        Pairs of indices, int64 `[steps, 2]`.

    Raises:
        ValueError: A sequence is empty, or they differ in their columns.
    """
    n, m = len(first), len(second)
    if not n or not m or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"warping needs two sequences of the same kind, not {first.shape} and {second.shape}")
    if n * m <= most_cells:
        return _least_path(first, second, np.zeros(n, np.int64), np.full(n, m))
    together = math.ceil(math.sqrt(n * m / min(most_cells, _COARSE_CELLS)))
    coarse = warp(_means(first, together), _means(second, together), most_cells)
    return _least_path(first, second, *_corridor(coarse, together, n, m))


def _means(rows: F64Array, together: int) -> F64Array:
    """Over so many rows each, the last over what is left."""
    starts = np.arange(0, len(rows), together)
    counts = np.diff(np.append(starts, len(rows)))
    return np.asarray(np.add.reduceat(rows, starts, axis=0) / counts[:, None])


def _corridor(coarse: I64Array, together: int, n: int, m: int) -> tuple[I64Array, I64Array]:
    """Of each row of the first sequence: which rows of the second are looked at, from and up to. Both only rise."""
    low, high = np.full(n, m), np.zeros(n, np.int64)
    beside = max(CORRIDOR_ROWS, together)
    for row, column in coarse * together:
        # Lengthwise too, so that the corridor is as wide where the path runs straight up or down.
        rows = slice(max(row - beside, 0), row + together + beside)
        low[rows] = np.minimum(low[rows], column - beside)
        high[rows] = np.maximum(high[rows], column + together + beside)
    return np.clip(low, 0, m - 1), np.clip(high, 1, m)


def _least_path(first: F64Array, second: F64Array, low: I64Array, high: I64Array) -> I64Array:
    """The path among the cells (i, j) with low[i] <= j < high[i], anti-diagonal by anti-diagonal.

    Both limits rise with i, so the rows of an anti-diagonal's cells are a range, which moves by at most one.
    """
    n, m = len(first), len(second)
    starts = np.concatenate([[0], np.cumsum(high - low)])
    came_from = np.zeros(starts[-1], np.int8)
    offsets = starts[:-1] - low  # of cell (i, j): offsets[i] + j
    rows = np.arange(n)
    entered, left = rows + low, rows + high
    diagonals = np.arange(n + m - 1)
    lowest = np.searchsorted(left, diagonals, side="right")
    highest = np.searchsorted(entered, diagonals, side="right")
    # Totals of three anti-diagonals, by row plus one; beside a range's ends they are infinite.
    before, last, total = (np.full(n + 2, np.inf) for _ in range(3))
    before[0] = 0.0
    for diagonal in diagonals:
        from_row, to_row = lowest[diagonal], highest[diagonal]
        ahead = second[diagonal - to_row + 1 : diagonal - from_row + 1][::-1]
        distance = np.sqrt(np.square(first[from_row:to_row] - ahead).sum(axis=1))
        ways = np.stack([before[from_row:to_row], last[from_row:to_row], last[from_row + 1 : to_row + 1]])
        best = ways.argmin(axis=0)
        came_from[offsets[from_row:to_row] + diagonal - rows[from_row:to_row]] = best
        total[from_row] = total[to_row + 1] = np.inf
        total[from_row + 1 : to_row + 1] = ways[best, rows[: to_row - from_row]] + distance
        before, last, total = last, total, before
    return _walked_back(came_from, offsets, n, m)


def _walked_back(came_from: NDArray[np.int8], offsets: I64Array, n: int, m: int) -> I64Array:
    path = []
    i, j = n - 1, m - 1
    while i >= 0 and j >= 0:
        path.append((i, j))
        step = came_from[offsets[i] + j]
        i, j = i - (step != 2), j - (step != 1)
    return np.array(path[::-1], np.int64)
