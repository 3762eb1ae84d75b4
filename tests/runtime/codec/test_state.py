"""Rows of shared state: every stream finds its own, nothing is copied or kept that need not be."""

import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.runtime.codec.onnx import State
from miso_gguf.runtime.codec.state import Row, Rows, joined


def state(*values: int) -> State:
    """A state of two arrays, as a call with so many rows gives it; any change in place is an error."""
    arrays: State = [np.array(values, np.int64), np.stack([np.full((2, 3), value, np.float32) for value in values])]
    for array in arrays:
        array.flags.writeable = False
    return arrays


def values(arrays: State) -> list[int]:
    numbers, blocks = arrays
    assert (blocks == numbers[:, None, None]).all()
    return [int(number) for number in numbers]


def value(row: Row) -> int:
    order, arrays = joined([row])
    assert order == [0]
    return values(arrays)[0]


def advance(rows: Rows, members: list[Row], numbers: Sequence[int], codes: Sequence[int]) -> None:
    """What `Codec.decode_together` does, on a graph that remembers all that it was given."""
    order, arrays = joined([members[number] for number in numbers])
    after = state(*(3 * old + codes[place] for old, place in zip(values(arrays), order, strict=True)))
    for place, row in zip(order, rows.parted(after, len(order)), strict=True):
        members[numbers[place]] = row
    rows.tidy()


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data(), count=st.integers(1, 6))
def test_every_stream_goes_on_from_its_own_state(data: st.DataObject, count: int) -> None:
    rows, start = Rows(), state(1)
    members, alone = [Row(start, 0) for _ in range(count)], [1] * count
    turn = st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True)
    # 13 turns come to 7 million at most, which single precision holds exactly.
    for number, turns in enumerate(data.draw(st.lists(turn, max_size=13))):
        codes = [number + member for member in turns]
        advance(rows, members, turns, codes)
        for member, code in zip(turns, codes, strict=True):
            alone[member] = 3 * alone[member] + code
        assert [value(row) for row in members] == alone


@pytest.mark.parametrize(
    ("asked", "shared"),
    [([0, 1, 2, 3], True), ([3, 1, 0, 2], True), ([0, 1, 2], True), ([3, 2], True), ([1], True), ([0, 2], False)],
)
def test_rows_that_lie_side_by_side_are_not_copied(asked: list[int], shared: bool) -> None:
    arrays = state(5, 6, 7, 8)
    rows = Rows().parted(arrays, 4)
    order, together = joined([rows[index] for index in asked])
    assert [np.shares_memory(array, each) for array, each in zip(arrays, together, strict=True)] == [shared] * 2
    assert values(together) == [5 + asked[place] for place in order]


def test_the_order_of_rows_hangs_on_what_is_asked_and_not_on_where_memory_lies() -> None:
    store = Rows()
    first, second = store.parted(state(1, 2), 2), store.parted(state(3, 4), 2)
    assert values(joined([second[1], first[0], second[0], first[1]])[1]) == [3, 4, 1, 2]
    assert values(joined([first[1], second[0], first[0], second[1]])[1]) == [1, 2, 3, 4]


def test_new_streams_share_their_start() -> None:
    start = state(1)
    order, together = joined([Row(start, 0), Row(start, 0)])
    assert (order, values(together)) == ([0, 1], [1, 1])


@pytest.mark.parametrize("staying", [0, 1, 2, 3, 4])
def test_few_that_stay_do_not_keep_the_arrays_of_many(staying: int) -> None:
    store, arrays = Rows(), state(5, 6, 7, 8)
    kept = [weakref.ref(array) for array in arrays]
    rows = store.parted(arrays, 4)
    del arrays, rows[staying:]
    assert all(ref() is not None for ref in kept) == bool(staying)
    store.tidy()
    assert [ref() is not None for ref in kept] == [staying > 2] * 2
    assert [value(row) for row in rows] == [5, 6, 7, 8][:staying]
    store.tidy()
    assert [value(row) for row in rows] == [5, 6, 7, 8][:staying]
    assert len(store._batches) == (staying > 2), "and nothing is kept of what is over"
