"""Memory on a device, for the tensors of a context: made, copied to and from, and noted while somebody asks.

llama.cpp's own buffers are not among what is noted: see `llama_log.py`.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .graph import Tensor, TensorContext
from .libraries import ggml_base

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


class Buffer:
    """Memory for all tensors of a context, on one device. `close` frees it, and the context with the tensors."""

    def __init__(self, tensors: TensorContext, buffer_type: int, *, weights: bool) -> None:
        """Allocate. Raises `MemoryError` with the device's name if it is full."""
        library = ggml_base()
        self._tensors = tensors
        self._handle = library.ggml_backend_alloc_ctx_tensors_from_buft(tensors.handle, buffer_type)
        self.name: str = library.ggml_backend_buft_name(buffer_type).decode()
        if not self._handle:
            raise MemoryError(f"{self.name} is full: free some of its memory, or choose a smaller level")
        if weights:
            library.ggml_backend_buffer_set_usage(self._handle, _USAGE_WEIGHTS)
        self.size_bytes = int(library.ggml_backend_buffer_get_size(self._handle))
        if sys.platform == "linux" and self.name.startswith("CPU"):
            _use_huge_pages(library.ggml_backend_buffer_get_base(self._handle), self.size_bytes)
        if not weights:
            library.ggml_backend_buffer_clear(self._handle, 0)
        note(Allocation("weights" if weights else "state", self.name, self.size_bytes))

    def close(self) -> None:
        """Free it. Idempotent; the tensors in it are void from then on."""
        handle, self._handle = self._handle, None
        if handle:
            self._tensors.close()
            ggml_base().ggml_backend_buffer_free(handle)


_USAGE_WEIGHTS = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS. Source: ggml-backend.h.


def _use_huge_pages(address: int, size: int) -> None:
    """Ask for 2 MB pages: the weights are streamed once a step, and page walks cost bandwidth. A hint: may fail."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = address + size - first
    if length > 0:
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        libc.madvise(first, length, mmap.MADV_HUGEPAGE)


def write_tensor(tensor: Tensor, data: npt.NDArray[np.generic]) -> None:
    """Copy `data`, all bytes of the tensor, to where the tensor lies."""
    data = np.ascontiguousarray(data)
    _check_size(tensor, data)
    ggml_base().ggml_backend_tensor_set(tensor.pointer, data.ctypes.data, 0, data.nbytes)


def read_tensor(tensor: Tensor, out: npt.NDArray[np.generic]) -> None:
    """Copy all bytes of the tensor into `out`."""
    _check_size(tensor, out)
    ggml_base().ggml_backend_tensor_get(tensor.pointer, out.ctypes.data, 0, out.nbytes)


def _check_size(tensor: Tensor, data: npt.NDArray[np.generic]) -> None:
    if data.nbytes != tensor.size_bytes or not data.flags.c_contiguous:
        raise ValueError(f"{tensor.qtype.name} {list(tensor.shape)} takes {tensor.size_bytes} bytes, not {data.nbytes}")
    if not TensorContext.is_placed(tensor):
        raise ValueError(f"{tensor.qtype.name} {list(tensor.shape)} has no memory: its graph does not use it")
