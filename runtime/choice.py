"""How a command runs a bundle on this machine: what was asked for, and for the rest what follows from memory.

`fit.py` says what fits; here it becomes a level and the options of its engine. It prints nothing.
"""

import logging
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

from ..models.levels import finest_first
from ..native.device import gpus
from ..native.llama import ALL_LAYERS, KvType
from .bundle import Bundle, OpenLevel
from .fit import MemoryPlan, cpu_memory, memory_here, plan_memory
from .lm.lacking import remark_on
from .options import EngineOptions

log = logging.getLogger(__name__)

AUTO: Final = "auto"
"""A level, type of KV cache or number of streams that nobody chose: what follows from this machine's memory."""

_MOST_STREAMS_ON_GPU = 8
"""What the batcher was measured with, joining and leaving: see docs/gpu.md."""
_MOST_STREAMS_ON_CPU = 4
"""There arithmetic is the limit: with four streams all was said that eight said in the same time, and each of the eight
took twice as long. See docs/runtime.md."""


class Choice(NamedTuple):
    """What to load."""

    level: str
    engine: EngineOptions
    remark: str | None = None
    """What a user wants to know of it, if anything."""


def engine_options(
    *, threads: int | None, gpu_layers: int | None, kv_type: KvType | Literal["auto"], require_gpu: bool, **others: Any
) -> EngineOptions:
    """Where to compute, as far as it was said; `others` are as `EngineOptions` has them. Raises `ValueError`."""
    asked: dict[str, Any] = {
        "threads": threads,
        # None is what there is, so not if there has to be one.
        "gpu_layers": ALL_LAYERS if require_gpu and gpu_layers is None else gpu_layers,
        "kv_type": None if kv_type == AUTO else kv_type,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return EngineOptions(allow_cpu=not require_gpu, **given, **others)


def choose(bundle: Bundle, quant: str, kv_type: KvType | None, engine: EngineOptions) -> Choice:
    """The level, and where to compute: a `quant` of `AUTO` and a `kv_type` of None follow from memory."""
    if quant != AUTO and kv_type is not None:
        return Choice(quant, engine)
    plan = memory_plan(bundle, kv_type, engine)
    if quant == AUTO:
        level, engine = plan.pick.level, replace(engine, kv_type=plan.pick.kv_type)
        if engine.gpu_layers is None:
            engine = replace(engine, gpu_layers=plan.pick.gpu_layers)
    else:
        level = quant
        # With some layers only, what the whole level needs says nothing.
        if engine.gpu_layers in {None, ALL_LAYERS}:
            engine = replace(engine, kv_type=plan.kv_type_for(bundle.key(level)))
    if quant == AUTO and not plan.pick.fits:
        log.warning("%s", plan.advice)
    elif kv_type is None and engine.kv_type != "f16":
        remark = f"{level} fits into this GPU only with a KV cache in {engine.kv_type}, so that is used"
        return Choice(level, engine, remark)
    return Choice(level, engine)


def memory_plan(bundle: Bundle, kv_type: KvType | None, engine: EngineOptions) -> MemoryPlan:
    """What fits where `engine` would compute."""
    return plan_memory(
        bundle.manifest,
        cpu_memory() if engine.gpu_layers == 0 else memory_here(engine.main_gpu),
        kv_type,
        engine.context,
        sequences=engine.sequences,
        voice_cache_bytes=engine.voice_cache_bytes,
    )


def lacks(bundle: Bundle, engine: EngineOptions) -> list[str]:
    """What the GPU that `engine` would compute on has no operations for, a line for each level that is here."""
    found = [] if engine.gpu_layers == 0 else gpus()[engine.main_gpu :][:1]
    if bundle.directory is None:  # of a repository nothing but the manifest is here
        return []
    levels = [OpenLevel(bundle.directory, bundle.manifest, key) for key in finest_first(bundle.manifest.levels)]
    return [line for gpu in found for level in levels if level.is_here and (line := remark_on(level, gpu))]


def streams_that_fit(bundle: Bundle, level: str, engine: EngineOptions) -> int:
    """How many to speak together, at least one: what memory has room for, and no more than brings anything."""
    plan = memory_plan(bundle, engine.kv_type, engine)
    most = _MOST_STREAMS_ON_GPU if plan.room.is_gpu else _MOST_STREAMS_ON_CPU
    return max(1, min(most, plan.streams_of(bundle.key(level))))
