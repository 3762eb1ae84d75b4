"""Which rows a step computes: exact, and for any sequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.runtime.lm.passes import with_gaps_filled


@pytest.mark.parametrize(
    ("sequences", "longest", "full", "rows"),
    [
        ([], 7, set(), []),
        ([3], 7, set(), [3]),
        ([0, 1, 2], 7, set(), [0, 1, 2]),
        ([0, 2, 4, 6], 0, set(), [0, 2, 4, 6]),
        ([0, 2, 4, 6], 1, set(), [0, 1, 2, 3, 4, 5, 6]),
        ([0, 2, 5], 1, set(), [0, 1, 2, 5]),
        ([0, 2, 5], 2, {1}, [0, 2, 3, 4, 5]),
        ([0, 2, 5], 2, {4}, [0, 1, 2, 5]),
        ([1, 3], 7, {0, 1, 3, 4}, [1, 2, 3]),
    ],
)
def test_gaps(sequences: list[int], longest: int, full: set[int], rows: list[int]) -> None:
    assert with_gaps_filled(sequences, longest, lambda sequence: sequence not in full) == rows


@given(st.sets(st.integers(0, 30)), st.integers(0, 8), st.sets(st.integers(0, 30)))
def test_nothing_is_lost_and_no_full_sequence_is_taken(asked: set[int], longest: int, full: set[int]) -> None:
    sequences = sorted(asked)
    rows = with_gaps_filled(sequences, longest, lambda sequence: sequence not in full)
    assert rows == sorted(set(rows))
    assert asked <= set(rows) <= asked | set(range(31)) - full
    if asked:
        assert (rows[0], rows[-1]) == (sequences[0], sequences[-1])
