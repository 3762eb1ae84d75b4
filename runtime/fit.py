"""Which level of a bundle to run here: what each takes by context, what there is, and the choice that follows.

`plan_memory` is a function of a manifest and a number of bytes. Nothing is loaded, and all sizes are accounted, not
measured: see `models/memory.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BundleError
from ..models.levels import DEFAULT_LEVEL, finest_first, halves
from ..models.manifest import BY_NEWER, UPGRADE, Manifest
from ..models.memory import kv_bytes, level_memory
from ..models.spec import ModelSpec
from ..native.device import devices, gpus
from ..native.llama import MOST_SEQUENCES, KvType

MARGIN_BYTES = 400_000_000
"""Left free: cuBLAS and the code of kernels (0.1 to 0.2 GB on an H200; CUDA's context is open when free memory is asked
for), or Python and the codec's session."""

_KV_BITS: dict[KvType, float] = {"f32": 32, "f16": 16, "q8_0": 8.5}
_Q8_0_BLOCK = 32
"""Values that share a scale: llama.cpp keeps a cache in Q8_0 only for heads of whole blocks."""
_LAYER_SPREAD = 1.06
"""The last layers, which llama.cpp puts on the GPU first, have more bits than the average of a mixture."""


_SHOWN_IN_FULL = 6
"""Levels of which a table shows every context and KV cache: some two dozen rows, which a terminal has."""


@dataclass(frozen=True)
class Room:
    """The memory that a level can have."""

    device: str
    free_bytes: int
    total_bytes: int
    is_gpu: bool


@dataclass(frozen=True)
class Need:
    """What one level takes with one type of KV cache at one context."""

    level: str
    kv_type: KvType
    context: int
    """Positions of prompt and speech together."""
    weights_bytes: int
    kv_cache_bytes: int
    """Of all sequences."""
    voice_cache_bytes: int
    """States of voices, which are in the memory of the CPU."""
    compute_bytes: int
    spare_bytes: int
    """What is left of the room, after the margin; negative: what is missing."""
    streams: int
    """Sequences that fit, each with a KV cache: how many can be spoken together. Not more than llama.cpp can hold."""

    @property
    def needed_bytes(self) -> int:
        """All of it, without the margin."""
        return self.weights_bytes + self.kv_cache_bytes + self.voice_cache_bytes + self.compute_bytes

    @property
    def fits(self) -> bool:
        """Whether the room is enough."""
        return self.spare_bytes >= 0


@dataclass(frozen=True)
class Pick:
    """The level to run."""

    level: str
    kv_type: KvType
    fits: bool
    gpu_layers: int | None = None
    """How many of the backbone's layers go to the GPU; None: no need to say."""


@dataclass(frozen=True)
class MemoryPlan:
    """What fits, and what to do."""

    room: Room
    context: int
    """Positions that the choice is for."""
    needs: list[Need]
    """By level, the finest first, then type of the KV cache, the finer first, then context."""
    layers: int
    """Of the backbone."""
    pick: Pick

    @property
    def advice(self) -> str:
        """The choice as a sentence."""
        layers, kv_type = self.pick.gpu_layers, self.pick.kv_type
        options = "" if kv_type == "f16" else f" --kv-type {kv_type}"
        options += "" if layers is None else f" --gpu-layers {layers}"
        choice = f"{self.pick.level} with{options}" if options else self.pick.level
        if self.pick.fits:
            reason = "" if self.room.is_gpu else ": a CPU reads all of it for every frame, the less the faster"
            return choice + reason
        if layers is None:
            return f"{choice}: needs the least, and that is still more than there is; it will be very slow"
        rest = f"{layers} of {self.layers} layers have room, the CPU computes the others" if layers else "on the CPU"
        return f"{choice}: none fits whole; {rest}"

    @property
    def shown(self) -> list[Need]:
        """For a table: all needs; of many levels one each, at the context and with the KV cache that it would get."""
        if len({need.level for need in self.needs}) <= _SHOWN_IN_FULL:
            return self.needs
        found: dict[str, Need] = {}
        for need in self.needs:
            if need.context == self.context and (need.level not in found or need.fits > found[need.level].fits):
                found[need.level] = need
        return list(found.values())

    def kv_type_for(self, level: str) -> KvType:
        """The KV cache for a level that somebody chose: F16, unless it fits with a smaller one only."""
        chosen = (need for need in self.needs if (need.level, need.context) == (level, self.context))
        return next((need.kv_type for need in chosen if need.fits), "f16")

    def streams_of(self, level: str) -> int:
        """How many sequences of a level fit, with the first type of KV cache."""
        return next((n.streams for n in self.needs if (n.level, n.context) == (level, self.context)), 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "room": asdict(self.room),
            "margin_bytes": MARGIN_BYTES,
            "context": self.context,
            "levels": [{**asdict(n), "needed_bytes": n.needed_bytes, "fits": n.fits} for n in self.needs],
            "pick": asdict(self.pick),
        }


def plan_memory(
    manifest: Manifest,
    room: Room,
    kv_type: KvType | None = None,
    wanted_context: int | None = None,
    *,
    sequences: int = 1,
    voice_cache_bytes: int = 0,
) -> MemoryPlan:
    """What each level of the bundle takes, and which to run. Raises `BundleError` if it has none.

    Each of the `sequences` takes a KV cache; `voice_cache_bytes` is as `EngineOptions` has it.

    On a GPU it is the finest that fits at `wanted_context`, by default the model's own. Without a `kv_type` its KV
    cache is in F16, or if need be in Q8_0, which costs less quality than a coarser level. On a CPU it is the default,
    else the smallest, because every frame reads all of it; a last resort, then the finest, only if nothing else fits.
    """
    spec = manifest.model_spec
    levels = finest_first(manifest.levels)
    if not levels:
        if manifest.newer_levels:
            raise BundleError(f"{', '.join(manifest.newer_names)}, all levels of this bundle: {BY_NEWER}. {UPGRADE}.")
        raise BundleError(
            f"this bundle has no level. Add one with miso-convert, for example --quant {DEFAULT_LEVEL.key}."
        )
    wanted = min(wanted_context or spec.max_positions, spec.max_positions)
    contexts = sorted({max(1, spec.max_positions // 2), wanted, spec.max_positions})
    kv_types = [kv_type] if kv_type else _kv_types(spec, room)
    voices = 0 if room.is_gpu else voice_cache_bytes
    needs = [
        _need(manifest, level, context, room, each, sequences, voices)
        for level in levels
        for each in kv_types
        for context in contexts
    ]
    candidates = [need for need in needs if need.context == wanted]
    fitting = [need for need in candidates if need.fits]
    if fitting:
        best = fitting[0] if room.is_gpu else _best_on_cpu(fitting)
        pick = Pick(best.level, best.kv_type, fits=True)
    else:
        smallest = min(candidates, key=lambda need: need.needed_bytes)
        layers = _layers_that_fit(manifest, smallest, room, sequences) if room.is_gpu else None
        # Without a layer on the GPU it is a CPU that computes.
        pick = Pick(smallest.level, smallest.kv_type if layers else kv_types[0], fits=False, gpu_layers=layers)
    return MemoryPlan(room, wanted, needs, spec.backbone.layers, pick)


def _kv_types(spec: ModelSpec, room: Room) -> Sequence[KvType]:
    """What to try if nobody chose, the finest first."""
    return ("f16", "q8_0") if room.is_gpu and spec.backbone.head_dim % _Q8_0_BLOCK == 0 else ("f16",)


def _best_on_cpu(fitting: Sequence[Need]) -> Need:
    """`fitting` are the finest first."""
    good = [need for need in fitting if not any(half.is_last_resort for half in halves(need.level))]
    if not good:
        return fitting[0]
    return min(good, key=lambda need: (need.level != DEFAULT_LEVEL.key, need.weights_bytes))


def _need(
    manifest: Manifest, level: str, context: int, room: Room, kv_type: KvType, sequences: int, voices: int
) -> Need:
    spec, memory = manifest.model_spec, level_memory(manifest, level)
    weights = memory.backbone_bytes + memory.decoder_bytes
    if not room.is_gpu:
        weights += memory.embeddings_bytes + manifest.files[manifest.codec.decoder].size_bytes
    one = kv_bytes(spec.backbone, context, _KV_BITS[kv_type]) + kv_bytes(spec.decoder, spec.codebooks)
    kv_cache = sequences * one
    needed = weights + kv_cache + voices + memory.compute_bytes
    spare = room.free_bytes - MARGIN_BYTES - needed
    streams = min(max(0, sequences + spare // one), MOST_SEQUENCES)
    return Need(level, kv_type, context, weights, kv_cache, voices, memory.compute_bytes, spare, streams)


def _layers_that_fit(manifest: Manifest, need: Need, room: Room, sequences: int) -> int:
    """How many layers of the backbone go beside the depth decoder, which is on the GPU whole."""
    spec, memory = manifest.model_spec, level_memory(manifest, need.level)
    layers, decoder_kv = spec.backbone.layers, sequences * kv_bytes(spec.decoder, spec.codebooks)
    one_layer = (memory.backbone_bytes * _LAYER_SPREAD + need.kv_cache_bytes - decoder_kv) / layers
    left = room.free_bytes - MARGIN_BYTES - memory.decoder_bytes - memory.compute_bytes - decoder_kv
    return max(0, min(layers, int(left / one_layer)))


def memory_here(main_gpu: int = 0) -> Room:
    """The memory of this machine's GPU, or of the CPU if this build of llama-cpp-python finds no such GPU."""
    found = gpus()
    if main_gpu < len(found):
        gpu = found[main_gpu]
        return Room(f"{gpu.name} ({gpu.description})", *gpu.memory(), is_gpu=True)
    return cpu_memory()


def cpu_memory() -> Room:
    """The memory of the machine."""
    cpu = devices()[-1]
    free, total = cpu.memory()
    return Room(f"{cpu.name} ({cpu.description})", _available_bytes(free), total, is_gpu=False)


def _available_bytes(otherwise: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """What Linux says that programs can have; ggml calls all memory free there."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return otherwise
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), otherwise)
