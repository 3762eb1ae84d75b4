"""The memory of a level on a GPU, as two numbers: what is allocated, added up, and what a GPU was seen to take.

Accounted: from llama.cpp's log and ggml's buffers, for all layers on the GPU. It needs none: on a CPU the same buffers
are made, and counted as if they were there. The driver's own memory (0.6 GB with CUDA on an H200) is not in it; in what
is measured (`measured.py`) it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...models.memory import GPU_PREFILL_ROWS, kv_bytes
from ...native.buffer import noted_allocations
from ...native.device import Backends, Device, gpus
from ...native.gguf_file import GgufFile
from ...native.llama import KvType, LlamaModel, LlamaOptions
from ...native.llama_log import BufferKind, LoggedBuffer, captured_log, logged_buffers
from ...runtime.bundle import OpenLevel
from ...runtime.lm.depth.decoder import DepthDecoder
from ...runtime.lm.embeddings import Embeddings
from ...runtime.options import SpeechOptions
from ..results import Memory, MemoryPart
from .measured import Measured, measured_vram

CONTEXT = 2048
"""Positions that memory is counted and measured for, where the model has as many."""

_LOG, _GGML = "llama.cpp log", "ggml buffer"
_NEEDED: tuple[BufferKind, ...] = ("model", "kv", "compute")
"""Without one of them there is no sum. The output buffer is some kilobytes."""


@dataclass(frozen=True)
class Accounted:
    """The parts, none if they could not be found; and what a reader must know."""

    parts: list[MemoryPart]
    notes: list[str]


def memory_of(
    level: OpenLevel, *, kv_type: KvType = "f16", measure: Callable[[Path, str], Measured] | None = None
) -> tuple[Memory, list[str]]:
    """Both numbers of a level, and notes about them for people.

    `measure` does the measuring, by default `measured_vram`. Raises `MemoryError` if the level does not fit.
    """
    accounted = accounted_vram(level, kv_type=kv_type)
    if measure is None:
        measured = measured_vram(level.directory, level.key, kv_type=kv_type, context=CONTEXT)
    else:
        measured = measure(level.directory, level.key)
    memory = Memory(
        accounted=accounted.parts,
        measured_peak_bytes=measured.peak_bytes,
        measured_steady_bytes=measured.steady_bytes,
        measured_why_not=measured.why_not,
    )
    return memory, [f"VRAM of {level.key}: {note}" for note in (*accounted.notes, *measured.notes)]


def accounted_vram(level: OpenLevel, *, kv_type: KvType = "f16", gpu: Device | None = None) -> Accounted:
    """What a level allocates on a GPU for one utterance with a context of 2048.

    The level is loaded once: on `gpu`, by default the first if this build of llama-cpp-python has one, else on the CPU.
    The embeddings stay in the host's memory, and are not counted. Raises `MemoryError` if the level does not fit.
    """
    spec = level.manifest.model_spec
    gpu = gpu or next(iter(gpus()), None)
    with captured_log() as lines:
        options, context = LlamaOptions(kv_type=kv_type), min(CONTEXT, spec.max_positions)
        LlamaModel(level.backbone, options, context=context, batch=GPU_PREFILL_ROWS, gpu=gpu).close()
    buffers = logged_buffers(lines)
    missing = [kind for kind in _NEEDED if not any(buffer.kind == kind for buffer in buffers)]
    if missing:
        return Accounted(
            [],
            [
                f"not accounted: llama.cpp's log says nothing of its {', '.join(missing)} buffers in a way that is "
                "understood here. Use llama-cpp-python 0.3.36, or a newer miso-gguf"
            ],
        )
    parts = _backbone_parts(buffers, 0 if gpu else _table_bytes(level.backbone))
    return Accounted([*parts, *_depth_parts(level, gpu)], [])


def _backbone_parts(buffers: list[LoggedBuffer], host_table_bytes: int) -> list[MemoryPart]:
    """What lies on the device, if anything does; else all of it, less the table that would not move there."""
    moved = any(buffer.kind == "model" and not buffer.is_on_host for buffer in buffers)
    counted = [buffer for buffer in buffers if not (moved and buffer.is_on_host and buffer.kind != "output")]

    def part(name: str, kind: BufferKind, source: str = _LOG, less: int = 0) -> MemoryPart:
        total = sum(buffer.size_bytes for buffer in counted if buffer.kind == kind)
        return MemoryPart(name=name, bytes=max(0, total - less), source=source)

    source = _LOG if moved else f"{_LOG}, less token_embd, which stays on the host"
    return [
        part("backbone weights", "model", source, 0 if moved else host_table_bytes),
        part("backbone KV cache", "kv"),
        part("backbone compute", "compute"),
        part("backbone output", "output"),
    ]


def _table_bytes(path: Path) -> int:
    """Of the input table, which llama.cpp leaves in the host's memory: we feed embeddings, and it is never read."""
    with GgufFile(path) as file:
        table = file.tensors.get("token_embd.weight")
        return table.data.nbytes if table is not None else 0


def _depth_parts(level: OpenLevel, gpu: Device | None) -> list[MemoryPart]:
    """The depth decoder, loaded, with its graph for one utterance."""
    spec = level.manifest.model_spec
    projection = Embeddings(level.embeddings, spec).projection
    with noted_allocations() as found, Backends(gpu=gpu, threads=1) as backends:
        device = backends.best.name
        with DepthDecoder(level.decoder, projection, spec, backends) as depth:
            # Saying one frame allocates the graph.
            noise = np.zeros((1, spec.codebooks, spec.audio_vocab), np.float32)
            hidden = np.zeros((1, spec.backbone.embed_dim), np.float32)
            depth.frames(hidden, noise[:, 0], noise, SpeechOptions().top_k)
    host = gpu is None
    sizes = {"weights": 0, "state": 0, "compute": 0}
    for allocation in found:
        if host or allocation.place.startswith(device):
            sizes[allocation.kind] += allocation.size_bytes
    # On a CPU the keys and values are in F32.
    excess = kv_bytes(spec.decoder, spec.codebooks, 32) - kv_bytes(spec.decoder, spec.codebooks, 16) if host else 0
    return [
        MemoryPart(name="depth decoder weights", bytes=sizes["weights"], source=_GGML),
        MemoryPart(
            name="depth decoder KV cache and inputs",
            bytes=max(0, sizes["state"] - excess),
            source=f"{_GGML}, in F16 as on a GPU" if host else _GGML,
        ),
        MemoryPart(name="depth decoder compute", bytes=sizes["compute"], source=_GGML),
    ]
