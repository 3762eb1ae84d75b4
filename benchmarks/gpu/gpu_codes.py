"""Whether a GPU computes what the CPU computes: greedy codes, logits; and how the depth decoder's graph runs there.

On the tiny model that speaks, so that a difference would be heard.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from miso_gguf import SpeechOptions
from miso_gguf.models.arrays import F32Array, I64Array
from miso_gguf.native import llama
from miso_gguf.runtime.replay import Replay
from miso_gguf.runtime.tts import MisoTTS

SENTENCES = (
    "Hello there. This is very good.",
    "Where is the red house?",
    "The old man walked home.",
    "We have seven green apples.",
    "Is this your blue car?",
    "No one knows what she said.",
)
_CAPTURED = "CUDA graph warmup complete"
_REUSED = "reused"


def level_codes(bundle: Path, level: str, *, gpu_layers: int, threads: int) -> dict[str, Any]:
    """What `gpu_layers` on the GPU (0: the CPU once more) make of the sentences, against what the CPU makes of them."""
    options = SpeechOptions(temperature=0.0, split_sentences=False)
    with MisoTTS.load(bundle, level, threads=threads, gpu_layers=0) as cpu:
        spoken = [cpu.generate_codes(text, options=options) for text in SENTENCES]
        expected = [_logits(cpu, text, codes) for text, codes in zip(SENTENCES, spoken, strict=True)]
    with (
        traced() as lines,
        MisoTTS.load(bundle, level, threads=threads, gpu_layers=gpu_layers, allow_cpu=False) as tts,
    ):
        found = [tts.generate_codes(text, options=options) for text in SENTENCES]
        logits = [_logits(tts, text, codes) for text, codes in zip(SENTENCES, spoken, strict=True)]
        device = tts.engine.gpu.description if tts.engine.gpu else "CPU"
        splits = tts.engine.depth.splits
    return {
        "level": level,
        "device": device,
        "sentences": len(SENTENCES),
        "frames": sum(map(len, spoken)),
        "sentences_equal": sum(map(np.array_equal, found, spoken)),
        "first_difference": [_first_difference(*pair) for pair in zip(found, spoken, strict=True)],
        "frames_equal_before": sum(_equal_frames(*pair) for pair in zip(found, spoken, strict=True)),
        "logits": _errors(np.concatenate(logits), np.concatenate(expected)),
        "depth_graph_splits": splits,
        "cuda_graphs_captured": sum(_CAPTURED in line for line in lines),
        "cuda_graph_launches_seen": sum(_REUSED in line for line in lines),
    }


def _logits(tts: MisoTTS, text: str, codes: I64Array) -> F32Array:
    """Of every code, teacher-forced: [T, codebooks, V]."""
    utterance = tts.utterance(text, options=SpeechOptions(temperature=0.0))
    replay = Replay(tts.engine, as_spoken=True)
    return replay.all_logits(replay.run(utterance.blocks, codes))


def _first_difference(found: I64Array, expected: I64Array) -> list[int] | None:
    """[frame, codebook] of the first code that differs; a frame beyond the shorter one's end differs at codebook 0."""
    frames = min(len(found), len(expected))
    different = np.argwhere(found[:frames] != expected[:frames])
    if len(different):
        return [int(index) for index in different[0]]
    return None if len(found) == len(expected) else [frames, 0]


def _equal_frames(found: I64Array, expected: I64Array) -> int:
    first = _first_difference(found, expected)
    return len(expected) if first is None else first[0]


def _errors(found: F32Array, expected: F32Array) -> dict[str, float]:
    """`relative` is the norm of the difference over the norm of what is expected."""
    difference = (found - expected).astype(np.float64)
    return {
        "max_abs_error": float(np.abs(difference).max()),
        "relative_error": float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64))),
        "top1_agreement": float((found.argmax(-1) == expected.argmax(-1)).mean()),
    }


@contextmanager
def traced() -> Iterator[list[str]]:
    """All that ggml logs within the block, its debugging too."""
    lines: list[str] = []
    handler = logging.Handler(llama.TRACE)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level, propagates = llama.log.level, llama.log.propagate
    llama.log.addHandler(handler)
    llama.log.setLevel(llama.TRACE)
    llama.log.propagate = False
    try:
        yield lines
    finally:
        llama.log.removeHandler(handler)
        llama.log.setLevel(level)
        llama.log.propagate = propagates
