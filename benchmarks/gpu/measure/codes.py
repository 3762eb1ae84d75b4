"""Whether a GPU computes what the CPU computes: greedy codes, logits; and how the depth decoder's graph runs there.

On the tiny model that speaks, so that a difference would be heard.
"""

from pathlib import Path
from typing import Any

import numpy as np

from miso_gguf import SpeechOptions
from miso_gguf.core.arrays import F32Array, I64Array
from miso_gguf.native.llama_log import captured_log
from miso_gguf.native.messages import TRACE
from miso_gguf.quant_eval.run.teacher_forcing import Replay
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.options import EngineOptions
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


def level_codes(bundle: Path, level: str, *, gpu_layers: int, threads: int) -> dict[str, Any]:
    """What `gpu_layers` on the GPU (0: the CPU once more) make of the sentences, against what the CPU makes of them."""
    options = SpeechOptions(temperature=0.0, split_sentences=False)
    with MisoTTS.load(bundle, level, threads=threads, gpu_layers=0) as cpu:
        spoken = [cpu.generate_codes(text, options=options) for text in SENTENCES]
        expected = [_logits(cpu, text, codes) for text, codes in zip(SENTENCES, spoken, strict=True)]
    insist = EngineOptions(threads=threads, gpu_layers=gpu_layers, allow_cpu=False)
    with MisoTTS.load(bundle, level, options=insist) as tts:
        captured = _is_captured(tts.engine)
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
        "depth_graph_captured": captured,
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


def _is_captured(engine: Engine) -> bool:
    """Whether ggml says that it captures the depth decoder's graph: one that is new to it, for two utterances."""
    spec = engine.spec
    hidden = np.zeros((2, spec.backbone.embed_dim), np.float32)
    noise = np.zeros((2, spec.codebooks, spec.audio_vocab), np.float32)
    with captured_log(TRACE) as lines:
        for _ in range(3):
            engine.sample(hidden, noise[:, 0], noise, top_k=SpeechOptions().top_k)
    return any(_CAPTURED in line for line in lines)
