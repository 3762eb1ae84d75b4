"""What ggml allocates for this package, noted while somebody asks. llama.cpp's own buffers are not among it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

AllocationKind = Literal["weights", "state", "compute"]


class Allocation(NamedTuple):
    """One buffer, as ggml made it: padding is part of its size."""

    kind: AllocationKind
    place: str
    """Of a buffer its type ("CPU", "CPU_REPACK", "CUDA0"), of a scheduler's the device."""
    size_bytes: int


_noted: ContextVar[list[Allocation] | None] = ContextVar("noted", default=None)


@contextmanager
def noted_allocations() -> Iterator[list[Allocation]]:
    """The buffers and schedulers that this thread makes within the block, in order. Freeing them takes none away."""
    found: list[Allocation] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def note(allocation: Allocation) -> None:
    """For those who allocate."""
    noted = _noted.get()
    if noted is not None:
        noted.append(allocation)
