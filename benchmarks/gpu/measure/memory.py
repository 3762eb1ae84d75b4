"""The memory of levels on a GPU: accounted, planned and measured, and what the driver takes by itself."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miso_gguf.models.memory import level_memory
from miso_gguf.native.device import Backends, gpus
from miso_gguf.native.llama import KvType
from miso_gguf.quant_eval.memory.accounted import CONTEXT, accounted_vram
from miso_gguf.quant_eval.memory.child import LOADED, SPOKEN
from miso_gguf.quant_eval.memory.measured import SPEECH_S, STEADY_S, Measured, measured_vram
from miso_gguf.runtime.bundle import open_level

GOALS_GB = {"q4_0": 4.9, "q4_k_m": 5.3, "q8_0": 9.0, "fp16": 16.2}


def driver_memory(bundle: Path) -> Measured:
    """What a process takes that opens the GPU and allocates nothing: the driver's context.

    Kernels are loaded when they are first launched, so their code counts as the level's.
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


def _open_only() -> None:
    """The child of `driver_memory`."""
    with Backends(gpu=gpus()[0], threads=1):
        print(json.dumps({"event": LOADED, "device": gpus()[0].description}), flush=True)
        time.sleep(2 * STEADY_S)
        print(json.dumps({"event": SPOKEN}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _open_only()
