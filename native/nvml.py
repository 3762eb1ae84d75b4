"""NVML, NVIDIA's library about its GPUs: the functions that we ask for, and how it is opened. It measures nothing."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from ..core.errors import MisoError


class NvmlMissing(MisoError):  # noqa: N818  (as common as it is)
    """There is no NVML, or no GPU that it answers for."""


class MemoryInfo(Protocol):
    """Bytes of a GPU."""

    @property
    def total(self) -> int: ...  # noqa: D102
    @property
    def used(self) -> int: ...  # noqa: D102


class ProcessInfo(Protocol):
    """A process that has the GPU open."""

    @property
    def pid(self) -> int: ...  # noqa: D102


class Nvml(Protocol):
    """What we use of `pynvml`, by its names. Source: the NVML API reference."""

    @property
    def NVMLError(self) -> type[Exception]: ...  # noqa: D102, N802

    def nvmlInit(self) -> None: ...  # noqa: D102, N802
    def nvmlShutdown(self) -> None: ...  # noqa: D102, N802
    def nvmlSystemGetDriverVersion(self) -> str | bytes: ...  # noqa: D102, N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...  # noqa: D102, N802
    def nvmlDeviceGetName(self, handle: Any, /) -> str | bytes: ...  # noqa: D102, N802
    def nvmlDeviceGetUUID(self, handle: Any, /) -> str | bytes: ...  # noqa: D102, N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any, /) -> MemoryInfo: ...  # noqa: D102, N802
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any, /) -> Sequence[ProcessInfo]: ...  # noqa: D102, N802


class NvmlClocks(Nvml, Protocol):
    """What tells a GPU's memory bandwidth. Older releases of `pynvml` lack some of it."""

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetMemoryBusWidth(self, handle: Any, /) -> int: ...  # noqa: D102, N802


MEMORY_CLOCK = 2
"""`NVML_CLOCK_MEM`. Source: nvml.h."""


def installed_nvml() -> Nvml:
    """The one that is installed. Raises `NvmlMissing` if nvidia-ml-py is not."""
    try:
        return cast(Nvml, importlib.import_module("pynvml"))
    except ImportError as error:
        raise NvmlMissing("nvidia-ml-py is not installed: pip install 'miso-gguf[eval]'") from error


@contextmanager
def opened_nvml(get: Callable[[], Nvml] | None = None) -> Iterator[Nvml]:
    """NVML for a while. Raises `NvmlMissing` where there is none, or if it fails within."""
    nvml = (get or installed_nvml)()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NvmlMissing(f"no NVIDIA GPU, or no driver for it ({error})") from error
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise NvmlMissing(f"the NVIDIA driver does not answer ({error})") from error
    finally:
        nvml.nvmlShutdown()
