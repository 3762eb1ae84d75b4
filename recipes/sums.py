"""The squares of what goes into each matrix of a part, summed by column and step in float64.

A step is a position of a frame in the depth decoder, which multiplies the same matrices with another kind of input at
each: the backbone's hidden state first, then the code before. The backbone has one. Matrices with the same input share
their sums. It knows no engine and no files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..convert.imatrix import HALVES
from ..core.arrays import F32Array, I64Array
from ..core.errors import MisoError
from ..models.spec import ModelSpec
from ..models.tensors import Part, gguf_tensors
from .imatrix_file import Entry

F64Array = NDArray[np.float64]

_MOST = float(np.finfo(np.float32).max)
"""That a file can hold."""
_SAME_INPUT = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}
"""Matrices of a layer, and the one whose input is theirs."""


def multiplied(spec: ModelSpec, part: Part) -> dict[str, int]:
    """The matrices of a part that are multiplied with, with their columns; tables are only looked up."""
    tensors = [tensor for tensor in gguf_tensors(spec) if tensor.part == part]
    return {t.name: t.shape[-1] for t in tensors if len(t.shape) == 2 and t.name != "token_embd.weight"}


def leader(name: str) -> str:
    """The matrix that is watched for `name`: itself, or the one with the same input."""
    return ".".join(_SAME_INPUT.get(piece, piece) for piece in name.split("."))


def steps_of(spec: ModelSpec, part: Part) -> int:
    """How many steps a part has."""
    return spec.codebooks if part == "decoder" else 1


@dataclass(frozen=True)
class PartSums:
    """The sums of one part so far, by the names of the watched matrices: [steps, columns], and the rows [steps]."""

    names: tuple[str, ...]
    """Of all matrices that are multiplied with."""
    sums: dict[str, F64Array]
    counts: dict[str, I64Array]

    @classmethod
    def empty(cls, spec: ModelSpec, part: Part) -> "PartSums":
        """Of a part of which nothing was seen."""
        columns, steps = multiplied(spec, part), steps_of(spec, part)
        watched = [name for name in columns if leader(name) == name]
        return cls(
            tuple(columns),
            {name: np.zeros((steps, columns[name])) for name in watched},
            {name: np.zeros(steps, np.int64) for name in watched},
        )

    def add(self, name: str, rows: F32Array, step: int | None = None) -> None:
        """Add rows [n, columns] of one step; without one, [n, steps, columns] of all.

        Raises `MisoError` if they are not finite, or too large for a file: what follows would be no importance.
        """
        where = slice(None) if step is None else step
        sums = self.sums[name][where] + np.square(rows, dtype=np.float64).sum(axis=0)
        if not (sums <= _MOST).all():
            raise MisoError(f"{name} was multiplied with NaN or infinity: the level is damaged, or overflows")
        self.sums[name][where] = sums
        self.counts[name][where] += len(rows)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Of every matrix, as its file has it."""
        for name in self.names:
            sums, counts = self.sums[leader(name)], self.counts[leader(name)]
            yield name, Entry.of(sums, counts.astype(np.float64))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All numbers, by names of their own."""
        return {
            **{f"{name}/sums": values for name, values in self.sums.items()},
            **{f"{name}/counts": values for name, values in self.counts.items()},
        }

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over what `arrays` had. Raises `ValueError` or `KeyError` if that was of other matrices."""
        for name, mine in self.arrays().items():
            found = arrays[name]
            if (found.shape, found.dtype) != (mine.shape, mine.dtype):
                raise ValueError(f"{name} is {found.dtype} {list(found.shape)}")
            np.copyto(mine, found)


def empty_sums(spec: ModelSpec) -> dict[Part, PartSums]:
    """Of both parts."""
    return {part: PartSums.empty(spec, part) for part in HALVES}
