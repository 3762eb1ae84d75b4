"""Which kernels the time of a frame goes to, as CUPTI sees them through torch.profiler. Needs torch with CUDA.

A profiled frame is slower than one that is not: what `speed` measures is the time, this says how it is divided.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from miso_gguf import SpeechOptions
from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.options import EngineOptions
from miso_gguf.runtime.tts import MisoTTS

_WARM_UP_CALLS, _CALLS = 5, 3
_SHOWN_KERNELS = 25
_LONGEST_NAME = 80
_LONGEST_GAP_NS = 100_000
"""A longer one lies between two calls, or is the host's."""

Event = tuple[str, int, int]
"""Name of a kernel or copy, its start and its length in nanoseconds."""


def level_profile(bundle: Path, level: str, *, threads: int, batches: Sequence[int]) -> list[dict[str, Any]]:
    """Both parts of a frame for each number of utterances. Raises `MisoError` without torch or without CUDA."""
    profile = _profiler()
    found = []
    options = EngineOptions(threads=threads, gpu_layers=-1, sequences=max(batches), allow_cpu=False)
    with MisoTTS.load(bundle, level, options=options) as tts:
        about = {"level": level, "device": tts.engine.gpu.description if tts.engine.gpu else "CPU"}
        for batch in batches:
            for part, call in _parts(tts, batch).items():
                for _ in range(_WARM_UP_CALLS):
                    call()
                events, wall_s = profile(call)
                found.append({**about, "batch": batch, "part": part, **summary(events, _CALLS, wall_s)})
    return found


def _parts(tts: MisoTTS, batch: int) -> dict[str, Callable[[], object]]:
    engine, spec = tts.engine, tts.engine.spec
    rng = np.random.default_rng(0)
    codes = list(rng.integers(1, tts.codec.cardinality, (batch, spec.codebooks)))
    hidden = rng.standard_normal((batch, spec.backbone.embed_dim)).astype(np.float32)
    logits = rng.standard_normal((batch, spec.audio_vocab)).astype(np.float32)
    noise = rng.gumbel(size=(batch, spec.codebooks, spec.audio_vocab)).astype(np.float32)
    for sequence in range(batch):
        engine.prefill(sequence, [engine.prompts.text("one two three", 0)])
    return {
        "backbone": lambda: engine.step(list(range(batch)), codes),
        "depth_decoder": lambda: engine.sample(hidden, logits, noise, SpeechOptions().top_k),
    }


def _profiler() -> Callable[[Callable[[], object]], tuple[list[Event], float]]:
    """What calls something and returns what the GPU did meanwhile, and the seconds that all calls took."""
    try:
        import torch  # noqa: PLC0415
        from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415
    except ImportError as error:
        raise MisoError("profile needs the package torch, built for CUDA") from error
    if not torch.cuda.is_available():
        raise MisoError(f"profile needs a GPU that torch can use: torch {torch.__version__} finds none")
    torch.zeros(1, device="cuda")  # CUPTI must know the context before ggml uses it

    def profiled(call: Callable[[], object]) -> tuple[list[Event], float]:
        with profile(activities=[ProfilerActivity.CUDA]) as profiling:
            begin = time.perf_counter()
            for _ in range(_CALLS):
                call()
            wall_s = time.perf_counter() - begin
        results: Any = profiling.profiler
        events = [
            (event.name(), event.start_ns(), event.duration_ns())
            for event in results.kineto_results.events()
            if str(event.device_type()).endswith("CUDA")
        ]
        return events, wall_s

    return profiled


def summary(events: Iterable[Event], calls: int, wall_s: float) -> dict[str, Any]:
    """Of one call of `calls`: how many kernels and copies, how long the GPU was busy, and which of them kept it so."""
    kernels: dict[str, list[int]] = {}
    gaps_ns, last_end = 0, None
    for name, start, length in sorted(events, key=lambda event: event[1]):
        counted = kernels.setdefault(kernel_name(name), [0, 0])
        counted[0] += 1
        counted[1] += length
        if last_end is not None and start > last_end:
            gaps_ns += min(start - last_end, _LONGEST_GAP_NS)
        last_end = max(last_end or 0, start + length)
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])
    return {
        "wall_ms": round(1e3 * wall_s / calls, 2),
        "launches": round(sum(count for count, _ in kernels.values()) / calls),
        "busy_ms": round(sum(total for _, total in kernels.values()) / 1e6 / calls, 3),
        "gaps_ms": round(gaps_ns / 1e6 / calls, 3),
        "by_kernel": [
            {"name": name, "count": round(count / calls), "ms": round(total / 1e6 / calls, 3)}
            for name, (count, total) in longest[:_SHOWN_KERNELS]
        ],
    }


def kernel_name(demangled: str) -> str:
    """Name and template arguments, types of tensors by name, without namespace and arguments; cut to 80 characters."""
    depth, end = 0, len(demangled)
    for index, character in enumerate(demangled):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            end = index
            break
    name = demangled[:end].strip().removeprefix("void ")
    name = re.sub(r"\(ggml_type\)(\d+)", lambda match: GGMLQuantizationType(int(match[1])).name, name)
    name = re.sub(r"&?_INTERNAL_\w+::|^(\w+::)+", "", name)
    return name[:_LONGEST_NAME]
