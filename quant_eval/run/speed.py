"""How fast this machine computes a model: for an estimate, before anything is loaded. It runs no model.

A CPU's memory bandwidth is measured here and now, that of a GPU asked of its driver.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ...models.spec import ModelSpec
from ...native.gguf_file import GgufFile
from ...native.nvml import MEMORY_CLOCK, Nvml, NvmlClocks, NvmlMissing, opened_nvml
from ...runtime.bundle import OpenLevel
from ...runtime.options import EngineOptions

_READ_BYTES = 1 << 27
"""More than a cache holds."""
_FLOOR_BANDWIDTH = 1e9

_CPU_EFFICIENCY = 0.7
"""Of the read bandwidth, while one row is computed. Source: docs/runtime.md, 72 to 75 %, AVX2."""
_MACS_PER_CORE_S = 3e10
"""While many rows are. Source: docs/runtime.md, on two cores: a prefill of 10 rows a second, 7e9 weights each."""
_STEP_S = 3e-3
"""Of a frame, beside its weights. Source: the tiny model, whose weights stay in the cache."""
_ROW_S = 1e-3
"""The same of a row among many, in either half."""

_GPU_EFFICIENCY, _LAUNCH_S = 0.46, 2.5e-6
"""Of the bandwidth, and of each kernel. Source: docs/gpu.md, fitted to an H200."""
_LAUNCHES_PER_LAYER = 30
"""Source: docs/gpu.md: 4680 for 32 layers, and 4 layers 31 times."""
_GPU_ROW = 0.25
"""Time of a row among eight, of a frame's. Source: docs/gpu.md, several utterances in step."""


@dataclass(frozen=True)
class Weights:
    """What a frame reads and multiplies: the backbone once, the depth decoder's layers for every code but the first."""

    backbone_bytes: int
    depth_bytes: int
    backbone_macs: int
    depth_macs: int

    @classmethod
    def of(cls, level: OpenLevel) -> "Weights":
        """Those of a level, from the headers of its files."""
        (backbone, head), (layers, heads) = map(_matrices, (level.backbone, level.decoder))
        steps = level.manifest.model_spec.codebooks - 1
        return cls(
            backbone_bytes=backbone[0] + head[0],
            depth_bytes=steps * layers[0] + heads[0],
            backbone_macs=backbone[1] + head[1],
            depth_macs=steps * layers[1] + heads[1],
        )


def _matrices(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes and number of weights: of all layers, and of the output, which in a depth decoder is a head for a code."""
    with GgufFile(path) as file:
        tensors = [(name, found.data.nbytes, int(np.prod(found.shape))) for name, found in file.tensors.items()]
    return _summed(tensors, "blk."), _summed(tensors, "output.weight")


def _summed(tensors: list[tuple[str, int, int]], prefix: str) -> tuple[int, int]:
    found = [each for each in tensors if each[0].startswith(prefix)]
    return sum(size for _, size, _ in found), sum(count for _, _, count in found)


@dataclass(frozen=True)
class Speed:
    """How fast one process is.

    Attributes:
        bytes_s: Of weights that are streamed.
        step_s: Of a frame, beside its weights.
        macs_s: While many rows are computed, of a CPU.
        row: Time of a row among many, of a frame's, of a GPU.
    """

    bytes_s: float
    step_s: float
    macs_s: float | None = None
    row: float | None = None

    @classmethod
    def of_cpu(cls, bandwidth: float, threads: int, processes: int = 1) -> "Speed":
        """Of each of so many processes with so many threads that read `bandwidth` bytes a second together."""
        return cls(_CPU_EFFICIENCY * bandwidth / processes, _STEP_S, macs_s=_MACS_PER_CORE_S * threads)

    @classmethod
    def of_gpu(cls, bandwidth: float, spec: ModelSpec, processes: int = 1) -> "Speed":
        """Of each of so many processes on a GPU whose memory gives `bandwidth` bytes a second."""
        launches = _LAUNCHES_PER_LAYER * (spec.backbone.layers + (spec.codebooks - 1) * spec.decoder.layers)
        return cls(_GPU_EFFICIENCY * bandwidth / processes, launches * _LAUNCH_S * processes, row=_GPU_ROW)

    @property
    def on_gpu(self) -> bool:
        """Whether it is one's."""
        return self.macs_s is None

    def frame_s(self, weights: Weights) -> float:
        """One frame of free speech."""
        return (weights.backbone_bytes + weights.depth_bytes) / self.bytes_s + self.step_s

    def rows_s(self, weights: Weights, *, backbone: float = 0, depth: float = 0) -> float:
        """So many rows of either half, among many."""
        if self.macs_s is None:  # on a GPU
            streamed = backbone * weights.backbone_bytes + depth * weights.depth_bytes
            return (self.row or 1.0) * (streamed / self.bytes_s + max(backbone, depth) * self.step_s)
        macs = backbone * weights.backbone_macs + depth * weights.depth_macs
        return macs / self.macs_s + (backbone + depth) * _ROW_S


def speed_of(
    spec: ModelSpec, engine: EngineOptions, processes: int, *, on_gpu: bool, nvml: Callable[[], Nvml] | None = None
) -> Speed | str:
    """Of each of so many processes that compute a model side by side; or why it cannot be known.

    `nvml` opens NVML; the installed one by default.
    """
    if not on_gpu:
        return Speed.of_cpu(read_bandwidth(engine.threads * processes), engine.threads, processes)
    layers = spec.backbone.layers
    if engine.gpu_layers is not None and 0 <= engine.gpu_layers < layers:
        return f"no estimate of the time with {engine.gpu_layers} of {layers} layers on a GPU"
    try:
        bandwidth = gpu_bandwidth(engine.main_gpu, nvml)
    except NvmlMissing as error:
        return f"no estimate of the time on a GPU whose memory bandwidth is not known ({error})"
    return Speed.of_gpu(bandwidth, spec, processes)


def gpu_bandwidth(index: int, nvml: Callable[[], Nvml] | None = None) -> float:
    """Bytes a second of a GPU's memory, as its driver gives clock and width of the bus. Raises `NvmlMissing`."""
    with opened_nvml(nvml) as opened:
        library = cast(NvmlClocks, opened)
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            clock_hz = 1e6 * library.nvmlDeviceGetMaxClockInfo(handle, MEMORY_CLOCK)
            bits = library.nvmlDeviceGetMemoryBusWidth(handle)
        except AttributeError as error:
            raise NvmlMissing(f"nvidia-ml-py is too old: {error}") from error
        if not clock_hz or not bits:
            raise NvmlMissing("the driver does not say")
        # Twice a tick, as the driver counts them: an RTX 4090 has 10501 MHz, 384 bits, and 1008 GB/s.
        return 2 * clock_hz * bits / 8


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read together, the best of three times."""
    data = np.ones((threads, _READ_BYTES // 8 // threads), np.int64)
    fastest = _FLOOR_BANDWIDTH
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, data))
        for _ in range(3):
            begin = time.perf_counter()
            list(pool.map(np.max, data))
            fastest = max(fastest, data.nbytes / (time.perf_counter() - begin))
    return fastest
