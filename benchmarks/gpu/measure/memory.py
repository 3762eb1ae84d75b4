"""The memory of levels on a GPU: accounted, planned and measured, and what the driver takes by itself."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from miso_gguf.models.memory import level_memory
from miso_gguf.native.buffer import Buffer
from miso_gguf.native.buffer_types import plain_buffer_type
from miso_gguf.native.device import Backends, Device, gpus
from miso_gguf.native.graph import F32, TensorContext
from miso_gguf.native.llama import KvType
from miso_gguf.quant_eval.memory.accounted import CONTEXT, accounted_vram
from miso_gguf.quant_eval.memory.child import LOADED, SPOKEN
from miso_gguf.quant_eval.memory.measured import SPEECH_S, STEADY_S, Measured, measured_vram
from miso_gguf.runtime.bundle import open_level

GOALS_GB = {"q4_0": 4.9, "q4_k_m": 5.3, "q8_0": 9.0, "fp16": 16.2}
_HELD_VALUES = 256


def driver_memory(bundle: Path) -> Measured:
    """What a process takes that holds one small buffer on the GPU: the driver's context.

    cuBLAS, and kernels, which are loaded when they are first launched, count as the level's.
    """
    return measured_vram(bundle, "", command=[sys.executable, str(Path(__file__))])


def levels_memory(bundle: Path, levels: Sequence[str], kv_types: Sequence[KvType], seconds: float) -> dict[str, Any]:
    """Every level with every type of KV cache."""
    driver = driver_memory(bundle)
    return {
        "context": CONTEXT,
        "seconds": seconds,
        "driver_bytes": driver.steady_bytes,
        "driver_why_not": driver.why_not,
        "goals_gb": GOALS_GB,
        "levels": [_level(bundle, level, kv_type, seconds) for level in levels for kv_type in kv_types],
    }


def _level(bundle: Path, level: str, kv_type: KvType, seconds: float = SPEECH_S) -> dict[str, Any]:
    found = open_level(bundle, level)
    accounted = accounted_vram(found, kv_type=kv_type)
    measured = measured_vram(found.directory, level, kv_type=kv_type, context=CONTEXT, seconds=seconds)
    return {
        "level": level,
        "kv_type": kv_type,
        "accounted_bytes": {part.name: part.bytes for part in accounted.parts},
        "accounted_total_bytes": sum(part.bytes for part in accounted.parts),
        "formula_bytes": level_memory(found.manifest, level).vram_bytes if kv_type == "f16" else None,
        "measured_peak_bytes": measured.peak_bytes,
        "measured_steady_bytes": measured.steady_bytes,
        "measured_why_not": measured.why_not,
        "notes": [*accounted.notes, *measured.notes],
    }


def hold_a_buffer(gpu: Device, seconds: float = 2 * STEADY_S) -> None:
    """The child of `driver_memory`. Opening a backend is not enough: CUDA makes its context when memory is taken."""
    with ExitStack() as stack:
        stack.enter_context(Backends(gpu=gpu, threads=1))
        context = TensorContext(1)
        stack.callback(context.close)
        context.new(F32, _HELD_VALUES)
        stack.callback(Buffer(context, plain_buffer_type(gpu), weights=False).close)
        print(json.dumps({"event": LOADED, "device": gpu.description}), flush=True)
        time.sleep(seconds)
        print(json.dumps({"event": SPOKEN}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    hold_a_buffer(gpus()[0])
