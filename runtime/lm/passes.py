"""Which rows a step computes for llama.cpp to read the weights once: those that are asked for, and some in between.

Where each sequence has a cache of its own, llama.cpp computes in one pass what belongs to sequences that follow each
other without a gap, in ascending order: [0, 1, 3] is two passes. Source: llama-batch.cpp, `split_equal`. It knows no
model.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

LONGEST_GAP = 13
"""Sequences in a row that a GPU computes for nothing, rather than read the weights once more.

Two lone rows and so many between them are 15, which take less than two passes at Q4_K_M on an H200; 16 take as long
(docs/gpu.md). Between more rows, or on a slower card, a gap might be longer.
"""


def with_gaps_filled(sequences: Sequence[int], longest: int, has_room: Callable[[int], bool]) -> list[int]:
    """`sequences`, ascending, and the sequences of every gap of at most `longest` in which all have room for a row.

    A row that nobody asked for costs its arithmetic, a gap another reading of the weights: on a GPU the row is nearly
    free, on a CPU it is the row that costs.
    """
    rows = list(sequences[:1])
    for before, after in pairwise(sequences):
        gap = range(before + 1, after)
        if len(gap) <= longest and all(map(has_room, gap)):
            rows.extend(gap)
        rows.append(after)
    return rows
