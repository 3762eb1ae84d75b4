"""Where the states of streams lie that decode together: rows of shared arrays, copied only when the company changes.

A stream's state is 8 MB: joining and parting states at every call would cost as much as decoding some of the rows. This
module knows nothing of what the arrays mean.
"""

import threading
import weakref
from collections.abc import Sequence

import numpy as np

from .onnx import State


class Row:
    """The state of one stream: one row of arrays that may hold other streams' rows too."""

    __slots__ = ("__weakref__", "place")

    def __init__(self, arrays: State, index: int) -> None:
        # One attribute, so that another thread never sees the arrays of one place and the index of another.
        self.place = arrays, index


def joined(rows: Sequence[Row]) -> tuple[list[int], State]:
    """The states of `rows` as one, and their order in it. Nothing is copied where they lie side by side."""
    places = [row.place for row in rows]
    batches: dict[int, int] = {}
    keys = [(batches.setdefault(id(arrays), len(batches)), index) for arrays, index in places]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    arrays, start = places[order[0]]
    if [keys[number] for number in order] == [(0, start + count) for count in range(len(rows))]:
        return order, [array[start : start + len(rows)] for array in arrays]
    apart = [[array[index : index + 1] for array in arrays] for arrays, index in (places[number] for number in order)]
    return order, [np.concatenate(parts) for parts in zip(*apart, strict=True)]


class Rows:
    """The rows that calls of one codec gave. May be used from several threads."""

    def __init__(self) -> None:
        self._batches: list[list[weakref.ref[Row]]] = []
        self._lock = threading.Lock()

    def parted(self, arrays: State, count: int) -> list[Row]:
        """The rows of what a call with `count` rows gave."""
        rows = [Row(arrays, index) for index in range(count)]
        with self._lock:
            self._batches.append([weakref.ref(row) for row in rows])
        return rows

    def tidy(self) -> None:
        """Let go of arrays of which half the rows or fewer are still somebody's: those rows are copied out.

        After it all arrays together are less than twice what the streams need, also where one ended without a word.
        """
        with self._lock:
            kept = []
            for batch in self._batches:
                alive = [row for ref in batch if (row := ref()) is not None]
                if 2 * len(alive) > len(batch):
                    kept.append(batch)
                    continue
                for row in alive:
                    arrays, index = row.place
                    row.place = [array[index : index + 1].copy() for array in arrays], 0
            self._batches = kept
