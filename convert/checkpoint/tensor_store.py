"""What every checkpoint file looks like to the converter: named tensors, read a few rows at a time.

It knows no layout: names are whatever the file calls its tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...core.arrays import F32Array
from .source_path import SourcePath

Shape = tuple[int, ...]

_MAX_NAME = 500


def is_plain_name(name: str) -> bool:
    """Whether a tensor may be called this: names come from strangers and are printed in messages."""
    return name.isprintable() and len(name) <= _MAX_NAME


@dataclass(frozen=True)
class TensorSource:
    """Where an upstream tensor is in a checkpoint of some layout."""

    name: str
    head_dim: int | None = None
    """If set, the layout has the rows in an order of its own within each head of this many."""


class TensorStore(Protocol):
    """Tensors by name, read lazily as float32. Reading is safe from several threads."""

    @property
    def files(self) -> Sequence[SourcePath]:
        """The files behind it, in reading order: what a source hash covers."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape, in PyTorch order."""
        ...

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(index in `files`, byte offset) of one row: reading in this order is reading the disk in order."""
        ...

    def check_dtype(self, name: str) -> None:
        """Raises `CheckpointError` if the tensor is of a type that cannot be read."""
        ...

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` of the first axis, as a new float32 array. A scalar is one row."""
        ...

    def close(self) -> None:
        """Release the files. Idempotent."""
        ...
