"""What computed: the machine and the versions of everything that takes part, for the record of an evaluation.

Nothing here identifies a person or a network: no host name, no user, no address.
"""

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable

from ..core.errors import MisoError
from ..core.units import size_text
from ..native.device import cpu_features, devices, gpus
from ..native.nvml import Nvml, NvmlMissing, opened_nvml
from ..native.threads import default_threads
from ..runtime.fit import cpu_memory
from ..version import __version__

_LIBRARIES = (
    "llama-cpp-python",
    "onnxruntime",
    "numpy",
    "praat-parselmouth",
    "soxr",
    "soundfile",
    "gguf",
    "matplotlib",
    "nvidia-ml-py",
)
"""Distributions whose version may change a number, or a picture, of a report."""
_UNKNOWN = "unknown"
_ABSENT = "not installed"
_CPU = "CPU"


_NO_ARITHMETIC = ("OPENMP",)
"""Features of ggml's CPU backend that say who computes, not how."""


def instructions() -> str:
    """What this build of llama-cpp-python computes with on the CPU: "SSE3 ... AVX2 ... REPACK", or "unknown".

    Two builds that differ here round differently, and then speak differently.
    """
    try:
        return " ".join(name for name in cpu_features() if name not in _NO_ARITHMETIC) or _UNKNOWN
    except MisoError:
        return _UNKNOWN


def device(gpu_layers: int | None) -> str:
    """Where models compute, as `EngineOptions.gpu_layers` asks: "CPU", or what the first GPU is.

    Of a CPU that is all: what matters there is `instructions()`.
    """
    try:
        found = [] if gpu_layers == 0 else gpus()
    except MisoError:
        return _UNKNOWN
    return found[0].description.strip() if found else _CPU


def machine(nvml: Callable[[], Nvml] | None = None, *, gpu_layers: int | None = None) -> dict[str, str]:
    """CPU, cores, memory, GPU with its driver, operating system; device and instructions that compute.

    `nvml` opens NVML; the installed one by default.

    What cannot be found out is "unknown": it never raises.
    """
    cpu = platform.processor() or platform.machine() or _UNKNOWN
    memory = _UNKNOWN
    gpu = "none"
    try:
        cpu = devices()[-1].description.strip() or cpu
        memory = size_text(cpu_memory().total_bytes)
        gpu = ", ".join(f"{device.name}: {device.description}" for device in devices()[:-1]) or gpu
    except (MisoError, OSError):
        gpu = _UNKNOWN
    return {
        "cpu": cpu,
        "cores": f"{os.cpu_count() or _UNKNOWN} logical, {default_threads()} threads by default",
        "memory": memory,
        "gpu": gpu,
        "nvidia": _nvidia(nvml),
        "device": device(gpu_layers),
        "instructions": instructions(),
        "os": f"{platform.system()} {platform.release()} ({platform.machine()})",
    }


def _nvidia(nvml: Callable[[], Nvml] | None) -> str:
    """The GPUs that NVML knows, with the driver; llama-cpp-python may be built without support for them."""
    try:
        with opened_nvml(nvml) as library:
            names = []
            for index in range(library.nvmlDeviceGetCount()):
                handle = library.nvmlDeviceGetHandleByIndex(index)
                total = size_text(int(library.nvmlDeviceGetMemoryInfo(handle).total))
                names.append(f"{_text(library.nvmlDeviceGetName(handle))} ({total})")
            return f"{', '.join(names) or 'none'}, driver {_text(library.nvmlSystemGetDriverVersion())}"
    except NvmlMissing as error:
        return f"none: {error}"


def _text(value: str | bytes) -> str:
    # Older releases of nvidia-ml-py return bytes.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def versions() -> dict[str, str]:
    """Version of miso-gguf, Python, Praat, and each library that computes; "not installed" for an extra that is not."""
    found = {"miso-gguf": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = _ABSENT
    found["praat"] = _praat()
    return found


def _praat() -> str:
    """The Praat inside parselmouth: its algorithms decide what F0 is."""
    try:
        return str(importlib.import_module("parselmouth").PRAAT_VERSION)
    except ImportError:
        return _ABSENT
