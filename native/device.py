"""ggml's devices: where weights lie and graphs run. Memory of a device, buffers on it, and the scheduler over several.

It knows no model and no operation (`graph.py`).
"""

import ctypes
import mmap
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from ..models.errors import MisoError
from .allocations import Allocation, note
from .closing import Closing
from .graph import F32, Graph, Tensor, TensorContext
from .libraries import bind
from .llama import load_library

Kind = Literal["cpu", "gpu"]

_KINDS: dict[int, Kind] = {0: "cpu", 1: "gpu", 2: "gpu"}
"""`enum ggml_backend_dev_type`; others (BLAS, AMX) only help the CPU. Source: ggml-backend.h."""


@lru_cache(maxsize=1)
def _base() -> ctypes.CDLL:
    p, size, i = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return bind(
        "ggml-base",
        {
            "ggml_backend_dev_name": (ctypes.c_char_p, [p]),
            "ggml_backend_dev_description": (ctypes.c_char_p, [p]),
            "ggml_backend_dev_memory": (None, [p, ctypes.POINTER(size), ctypes.POINTER(size)]),
            "ggml_backend_dev_type": (i, [p]),
            "ggml_backend_dev_init": (p, [p, ctypes.c_char_p]),
            "ggml_backend_dev_buffer_type": (p, [p]),
            "ggml_backend_dev_backend_reg": (p, [p]),
            "ggml_backend_dev_supports_op": (ctypes.c_bool, [p, p]),
            "ggml_backend_reg_get_proc_address": (p, [p, ctypes.c_char_p]),
            "ggml_backend_free": (None, [p]),
            "ggml_backend_buft_name": (ctypes.c_char_p, [p]),
            "ggml_backend_buft_alloc_buffer": (p, [p, size]),
            "ggml_backend_buffer_free": (None, [p]),
            "ggml_backend_buffer_get_base": (p, [p]),
            "ggml_backend_buffer_get_size": (size, [p]),
            "ggml_backend_buffer_clear": (None, [p, ctypes.c_uint8]),
            "ggml_backend_buffer_set_usage": (None, [p, i]),
            "ggml_backend_alloc_ctx_tensors_from_buft": (p, [p, p]),
            "ggml_backend_tensor_set": (None, [p, p, size, size]),
            "ggml_backend_tensor_get": (None, [p, p, size, size]),
            "ggml_backend_sched_new": (p, [ctypes.POINTER(p), p, i, size, ctypes.c_bool, ctypes.c_bool]),
            "ggml_backend_sched_free": (None, [p]),
            "ggml_backend_sched_alloc_graph": (ctypes.c_bool, [p, p]),
            "ggml_backend_sched_graph_compute": (i, [p, p]),
            "ggml_backend_sched_get_n_splits": (i, [p]),
            "ggml_backend_sched_get_buffer_size": (size, [p, p]),
        },
    )


@lru_cache(maxsize=1)
def _registry() -> ctypes.CDLL:
    library = bind(
        "ggml",
        {
            "ggml_backend_load_all": (None, []),
            "ggml_backend_dev_count": (ctypes.c_size_t, []),
            "ggml_backend_dev_get": (ctypes.c_void_p, [ctypes.c_size_t]),
        },
    )
    library.ggml_backend_load_all()
    return library


@dataclass(frozen=True)
class Device:
    """One device of this machine."""

    handle: int
    name: str
    """As ggml calls it: "CPU", "CUDA0"."""
    description: str
    kind: Kind

    def memory(self) -> tuple[int, int]:
        """Free and total bytes, now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _base().ggml_backend_dev_memory(self.handle, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value


def devices() -> list[Device]:
    """What this build of llama-cpp-python can compute on: GPUs first, the CPU last."""
    registry, base = _registry(), _base()
    found = []
    for index in range(registry.ggml_backend_dev_count()):
        handle = registry.ggml_backend_dev_get(index)
        kind = _KINDS.get(base.ggml_backend_dev_type(handle))
        if kind is not None:
            name = base.ggml_backend_dev_name(handle).decode()
            found.append(Device(handle, name, base.ggml_backend_dev_description(handle).decode(), kind))
    return sorted(found, key=lambda device: device.kind == "cpu")


def gpus() -> list[Device]:
    """The GPUs among `devices()`."""
    return [device for device in devices() if device.kind == "gpu"]


class Backends(Closing):
    """The devices that one graph may use, the best first and the CPU last. A context manager."""

    def __init__(self, *, gpu: Device | None, threads: int) -> None:
        """Use `gpu`, if given, and the CPU with `threads`. Raises `MisoError` if a device does not open."""
        load_library()  # sends ggml's log to `logging`
        cpu = devices()[-1]
        self.devices = [gpu, cpu] if gpu else [cpu]
        self.handles: list[int] = []
        with ExitStack() as stack:
            for device in self.devices:
                handle = _base().ggml_backend_dev_init(device.handle, None)
                if not handle:
                    raise MisoError(
                        f"{device.name} ({device.description}) cannot be opened: is another program using it?"
                    )
                stack.callback(_base().ggml_backend_free, handle)
                self.handles.append(handle)
            set_threads = _procedure(cpu, "ggml_backend_set_n_threads", None, ctypes.c_void_p, ctypes.c_int)
            set_threads(self.handles[-1], threads)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give the devices back. Idempotent. Buffers and schedulers on them must be closed before."""
        self._stack.close()

    def buffer_type(self) -> int:
        """The plain memory of the best device."""
        return int(_base().ggml_backend_dev_buffer_type(self.devices[0].handle))

    def matrix_buffer_type(self, qtype: GGMLQuantizationType, columns: int, rows: int) -> int:
        """The memory in which the best device multiplies fastest with a matrix of this type and shape.

        On the CPU that may be one that interleaves rows for its vector units (ggml's CPU_REPACK). A matrix in it can
        only be multiplied with: not read, not looked up by row.
        """
        device = self.devices[0]
        for buffer_type in _extra_buffer_types(device):
            if _can_multiply(device, buffer_type, qtype, columns, rows):
                return buffer_type
        return self.buffer_type()


def _procedure(device: Device, name: str, result: object, *arguments: object) -> Any:
    """A function that a backend offers by name only."""
    registry = _base().ggml_backend_dev_backend_reg(device.handle)
    address = _base().ggml_backend_reg_get_proc_address(registry, name.encode())
    if not address:
        raise MisoError(f"{device.name} has no {name}")
    return ctypes.CFUNCTYPE(result, *arguments)(address)  # type: ignore[arg-type]


def _extra_buffer_types(device: Device) -> list[int]:
    if device.kind != "cpu":
        return []
    listed = _procedure(device, "ggml_backend_dev_get_extra_bufts", ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(
        device.handle
    )
    found: list[int] = []
    while listed and (entry := listed[len(found)]):
        found.append(entry)
    return found


def _can_multiply(device: Device, buffer_type: int, qtype: GGMLQuantizationType, columns: int, rows: int) -> bool:
    """Ask with a trial operation on an empty buffer, as llama.cpp does."""
    base, graph = _base(), Graph(4)
    buffer = base.ggml_backend_buft_alloc_buffer(buffer_type, 0)
    try:
        weights = graph.new(qtype, columns, rows)
        product = graph.mul_mat(weights, graph.new(F32, columns, 1))
        graph.place(weights, buffer)
        return bool(base.ggml_backend_dev_supports_op(device.handle, product.pointer))
    finally:
        base.ggml_backend_buffer_free(buffer)
        graph.close()


class Buffer:
    """Memory for all tensors of a context, on one device. `close` frees it; the context must outlive it."""

    def __init__(self, tensors: TensorContext, buffer_type: int, *, weights: bool) -> None:
        """Allocate. Raises `MemoryError` with the device's name if it is full."""
        base = _base()
        self._handle = base.ggml_backend_alloc_ctx_tensors_from_buft(tensors.handle, buffer_type)
        if not self._handle:
            raise MemoryError(f"{base.ggml_backend_buft_name(buffer_type).decode()} has no room for the depth decoder")
        if weights:
            base.ggml_backend_buffer_set_usage(self._handle, _USAGE_WEIGHTS)
        self.size_bytes = int(base.ggml_backend_buffer_get_size(self._handle))
        self.name: str = base.ggml_backend_buft_name(buffer_type).decode()
        if sys.platform == "linux" and self.name.startswith("CPU"):
            _use_huge_pages(base.ggml_backend_buffer_get_base(self._handle), self.size_bytes)
        if not weights:
            base.ggml_backend_buffer_clear(self._handle, 0)
        note(Allocation("weights" if weights else "state", self.name, self.size_bytes))

    def close(self) -> None:
        """Free it. Idempotent."""
        if self._handle:
            _base().ggml_backend_buffer_free(self._handle)
            self._handle = None


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
    _base().ggml_backend_tensor_set(tensor.pointer, data.ctypes.data, 0, data.nbytes)


def read_tensor(tensor: Tensor, out: npt.NDArray[np.generic]) -> None:
    """Copy all bytes of the tensor into `out`."""
    _check_size(tensor, out)
    _base().ggml_backend_tensor_get(tensor.pointer, out.ctypes.data, 0, out.nbytes)


def _check_size(tensor: Tensor, data: npt.NDArray[np.generic]) -> None:
    if data.nbytes != tensor.size_bytes or not data.flags.c_contiguous:
        raise ValueError(f"{tensor.qtype.name} {list(tensor.shape)} takes {tensor.size_bytes} bytes, not {data.nbytes}")
    if not TensorContext.is_placed(tensor):
        raise ValueError(f"{tensor.qtype.name} {list(tensor.shape)} has no memory: its graph does not use it")


class Scheduler:
    """Runs one graph again and again; what the best device lacks is computed on the CPU. `close` frees its memory."""

    def __init__(self, backends: Backends, graph: Graph) -> None:
        """Allocate all that `graph` needs. Raises `MemoryError` if a device is full."""
        base, count = _base(), len(backends.handles)
        self._graph = graph
        self._backends = backends
        handles = (ctypes.c_void_p * count)(*backends.handles)
        # It wants room for nodes and leaves; a node of ours has at most two leaves of its own.
        self._handle = base.ggml_backend_sched_new(handles, None, count, 3 * graph.nodes + 64, False, True)
        if not base.ggml_backend_sched_alloc_graph(self._handle, graph.graph):
            self.close()
            raise MemoryError("no room for the depth decoder's graph")
        for place, size_bytes in self.buffer_bytes.items():
            note(Allocation("compute", place, size_bytes))

    @property
    def splits(self) -> int:
        """Pieces that the graph was cut into: 1 if a single device computes all of it."""
        return int(_base().ggml_backend_sched_get_n_splits(self._handle))

    @property
    def buffer_bytes(self) -> dict[str, int]:
        """Device name -> bytes of compute buffer."""
        sizes = [int(_base().ggml_backend_sched_get_buffer_size(self._handle, h)) for h in self._backends.handles]
        return {device.name: size for device, size in zip(self._backends.devices, sizes, strict=True)}

    def compute(self) -> None:
        """Run the graph to its end."""
        status = _base().ggml_backend_sched_graph_compute(self._handle, self._graph.graph)
        if status != 0:
            raise MisoError(f"ggml could not compute the depth decoder's graph (status {status})")

    def close(self) -> None:
        """Free it. Idempotent."""
        if self._handle:
            _base().ggml_backend_sched_free(self._handle)
            self._handle = None
