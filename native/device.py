"""ggml's devices: what this machine can compute on, their memory, and those that one graph may use.

It knows no model and no operation (`graph.py`).
"""

import ctypes
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Literal

from ..core.closing import CLOSED, Closing
from ..core.errors import MisoError
from .libraries import ggml_base, ggml_registry, procedure

Kind = Literal["cpu", "gpu"]

_KINDS: dict[int, Kind] = {0: "cpu", 1: "gpu", 2: "gpu"}
"""`enum ggml_backend_dev_type`; others (BLAS, AMX) only help the CPU. Source: ggml-backend.h."""


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
        ggml_base().ggml_backend_dev_memory(self.handle, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value


def devices() -> list[Device]:
    """What this build of llama-cpp-python can compute on: GPUs first, the CPU last."""
    registry, library = ggml_registry(), ggml_base()
    found = []
    for index in range(registry.ggml_backend_dev_count()):
        handle = registry.ggml_backend_dev_get(index)
        kind = _KINDS.get(library.ggml_backend_dev_type(handle))
        if kind is not None:
            name = library.ggml_backend_dev_name(handle).decode()
            found.append(Device(handle, name, library.ggml_backend_dev_description(handle).decode(), kind))
    return sorted(found, key=lambda device: device.kind == "cpu")


def cpu_features() -> list[str]:
    """What the CPU backend of this build was compiled to use, as ggml calls it: "AVX2", "LLAMAFILE", "OPENMP".

    Raises `MisoError` if this build does not say.
    """
    cpu = devices()[-1].handle
    listed = procedure(cpu, "ggml_backend_get_features")(ggml_base().ggml_backend_dev_backend_reg(cpu))
    found: list[str] = []
    for index in count():
        if not (feature := listed[index]).name:
            return found
        if feature.value not in (b"0", b""):
            value = feature.value.decode()
            found.append(feature.name.decode() + ("" if value == "1" else f"={value}"))
    raise AssertionError


def gpus() -> list[Device]:
    """The GPUs among `devices()`."""
    return [device for device in devices() if device.kind == "gpu"]


class Backends(Closing):
    """The devices that one graph may use, the best first and the CPU last. A context manager."""

    def __init__(self, *, gpu: Device | None, threads: int) -> None:
        """Use `gpu`, if given, and the CPU with `threads`. Raises `MisoError` if a device does not open."""
        cpu = devices()[-1]
        self.devices = [gpu, cpu] if gpu else [cpu]
        self.handles: list[int] = []
        with ExitStack() as stack:
            for device in self.devices:
                handle = ggml_base().ggml_backend_dev_init(device.handle, None)
                if not handle:
                    raise MisoError(
                        f"{device.name} ({device.description}) cannot be opened: is another program using it?"
                    )
                stack.callback(ggml_base().ggml_backend_free, handle)
                self.handles.append(handle)
            set_threads = procedure(cpu.handle, "ggml_backend_set_n_threads")
            set_threads(self.handles[-1], threads)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give the devices back. Idempotent. Buffers and schedulers on them must be closed before."""
        self.handles = []
        self._stack.close()

    def check(self) -> None:
        """Raise `MisoError` after `close`: ggml would compute on what is gone."""
        if not self.handles:
            raise MisoError(CLOSED)

    @property
    def best(self) -> Device:
        """Where the graph runs, if it can."""
        return self.devices[0]
