"""Where the time of a frame goes on a device: its parts and the gaps between them, first audio, several utterances.

Every figure is a median over rounds that take turns. A frame is 80 ms of audio.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miso_gguf import SpeechOptions, Voice
from miso_gguf.core.arrays import F32Array, I64Array
from miso_gguf.models.mimi import FRAME_RATE_HZ
from miso_gguf.native.buffer import Buffer
from miso_gguf.native.buffer_types import plain_buffer_type
from miso_gguf.native.device import Backends
from miso_gguf.native.graph import F32, Graph, TensorContext
from miso_gguf.native.scheduler import Scheduler
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.protocol import Result
from miso_gguf.runtime.options import EngineOptions
from miso_gguf.runtime.tts import MisoTTS

FRAME_S = 1 / FRAME_RATE_HZ
PROMPT_TOKENS = 30
VOICE_S = 10.0
_WARM_UP_FRAMES = 4
"""ggml captures a CUDA graph at the second run that looks like the first."""
_COPIED_BYTES = 1 << 30


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    frames: int = 100
    rounds: int = 20
    batches: Sequence[int] = (1, 2, 4, 8)
    copied_bytes: int = _COPIED_BYTES


def level_speed(bundle: Path, level: str, *, gpu_layers: int, threads: int, effort: Effort) -> dict[str, Any]:
    """All figures of one level, as a dictionary for JSON. Times in milliseconds unless their names say otherwise."""
    begin = time.perf_counter()
    files = open_level(bundle, level)
    options = EngineOptions(threads=threads, gpu_layers=gpu_layers, sequences=max(effort.batches), allow_cpu=False)
    with MisoTTS.load(bundle, level, options=options) as tts:
        load_s = time.perf_counter() - begin
        device = tts.engine.gpu.description if tts.engine.gpu else "CPU"
        streamed = {"backbone": files.backbone.stat().st_size, "depth_decoder": tts.engine.depth.streamed_bytes}
        return {
            "level": level,
            "device": device,
            "threads": threads,
            "codec_threads": tts.codec.threads,
            "load_s": round(load_s, 2),
            "cuda_graphs": os.environ.get("GGML_CUDA_DISABLE_GRAPHS") is None,
            "streamed_bytes": streamed,
            "copy_gb_per_s": round(copy_bandwidth(tts, threads, effort), 1),
            "parts_ms": parts(tts, effort),
            "first_audio_ms": first_audio(tts, effort),
            "stream": stream(tts, effort),
            "batches": [batch(tts, size, effort) for size in effort.batches],
        }


def copy_bandwidth(tts: MisoTTS, threads: int, effort: Effort) -> float:
    """GB/s of a copy in the device's memory by ggml, what is read and what is written counted."""
    count = effort.copied_bytes // 4
    with ExitStack() as stack:
        backends = stack.enter_context(Backends(gpu=tts.engine.gpu, threads=threads))
        context, graph = TensorContext(2), Graph(2)
        stack.callback(context.close)
        stack.callback(graph.close)
        source, target = context.new(F32, count), context.new(F32, count)
        stack.callback(Buffer(context, plain_buffer_type(backends.best), weights=False).close)
        graph.expand(graph.copy(source, target))
        scheduler = Scheduler(backends, graph)
        stack.callback(scheduler.close)
        return 2 * effort.copied_bytes / median_s(scheduler.compute, effort.rounds) / 1e9


def parts(tts: MisoTTS, effort: Effort) -> dict[str, float]:
    """The parts of a frame as the frame loop calls them, one after another, and what of each is not computing."""
    spec = tts.engine.spec
    rng = np.random.default_rng(0)
    codes = rng.integers(1, tts.codec.cardinality, (1, spec.codebooks))
    hidden = rng.standard_normal((1, spec.backbone.embed_dim)).astype(np.float32)
    logits = rng.standard_normal((1, spec.audio_vocab)).astype(np.float32)
    noise = rng.gumbel(size=(1, spec.codebooks, spec.audio_vocab)).astype(np.float32)
    tts.engine.prefill(0, [tts.engine.prompts.text("one two three", 0)])
    decoder = tts.codec.stream()
    calls: dict[str, Callable[[], object]] = {
        "backbone": lambda: tts.engine.step([0], [codes[0]]),
        "depth decoder": lambda: tts.engine.sample(hidden, logits, noise, SpeechOptions().top_k),
        "codec": lambda: decoder.decode(codes),
    }
    return {name: round(1e3 * value, 3) for name, value in medians(calls, effort.rounds).items()}


def first_audio(tts: MisoTTS, effort: Effort) -> dict[str, float]:
    """TTFA of a text of 30 tokens: without a voice, with one that is computed first, and with one that is kept."""
    rng = np.random.default_rng(1)
    frames = min(round(VOICE_S * FRAME_RATE_HZ), tts.engine.spec.max_positions // 2)
    voice = Voice(rng.integers(1, tts.codec.cardinality, (frames, tts.engine.spec.codebooks)), "What the voice says.")
    texts = [_text_of(tts, PROMPT_TOKENS, word) for word in ("one", "two")]
    found: dict[str, list[float]] = {"no voice": [], "new voice": [], "kept voice": []}
    for _ in range(max(3, effort.rounds // 4)):
        for name, text, chosen in zip(found, (texts[0], *texts), (None, voice, voice), strict=True):
            if name != "kept voice":
                for sequence in range(tts.engine.backbone.sequences):
                    tts.engine.prefill(sequence, [tts.engine.prompts.text("unrelated", 9)])
            options = SpeechOptions(max_seconds=2 * FRAME_S, split_sentences=False)
            with tts.stream(text, voice=chosen, options=options) as spoken:
                found[name].append(next(spoken).elapsed_s)
    return {name: round(1e3 * float(np.median(values)), 2) for name, values in found.items()}


def _text_of(tts: MisoTTS, tokens: int, word: str) -> str:
    words = [word] * tokens
    while len(tts.engine.prompts.text(" ".join(words), 0)) > tokens and len(words) > 1:
        words.pop()
    return " ".join(words) + "."


def stream(tts: MisoTTS, effort: Effort) -> dict[str, Any]:
    """One utterance as a user hears it, the codec beside the models: RTF, and the record of the speech."""
    text = " ".join(["word"] * max(5, effort.frames // 3))
    options = SpeechOptions(max_seconds=effort.frames * FRAME_S, split_sentences=False, retry=False)
    with tts.stream(text, options=options) as spoken:
        for _ in spoken:
            pass
    return {key: value for key, value in spoken.speech.as_dict().items() if key != "sentences"}


class Turns:
    """When a batcher's turns with a full batch began and ended, and what of each was backbone and depth decoder."""

    def __init__(self, engine: Engine, size: int) -> None:
        self._engine, self._size = engine, size
        self._step, self._sample = engine.step, engine.sample
        self.ends: list[float] = []
        self.backbone_s: list[float] = []
        self.depth_s: list[float] = []
        self._backbone_s = 0.0

    def __enter__(self) -> "Turns":
        vars(self._engine).update(step=self._timed_step, sample=self._timed_sample)
        return self

    def __exit__(self, *_: object) -> None:
        del self._engine.step, self._engine.sample

    def _timed_step(self, sequences: Sequence[int], codes: Sequence[I64Array]) -> Result:
        begin = time.perf_counter()
        result = self._step(sequences, codes)
        self._backbone_s = time.perf_counter() - begin
        return result

    def _timed_sample(
        self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: int | Sequence[int]
    ) -> I64Array:
        begin = time.perf_counter()
        codes = self._sample(hidden, logits, noise, top_k)
        if len(codes) == self._size:
            self.ends.append(time.perf_counter())
            self.backbone_s.append(self._backbone_s)
            self.depth_s.append(self.ends[-1] - begin)
        return codes


def batch(tts: MisoTTS, size: int, effort: Effort) -> dict[str, Any]:
    """`size` utterances in step, without the codec: where the time of a turn goes, and what comes out."""
    seconds = (effort.frames + _WARM_UP_FRAMES) * FRAME_S
    options = SpeechOptions(max_seconds=seconds, split_sentences=False)
    text = " ".join(["word"] * max(5, effort.frames // 2))
    utterances = [tts.utterance(f"{text} {index}", options=options) for index in range(size)]
    with Turns(tts.engine, size) as turns:
        tickets = [tts.engine.batcher.admit(each, buffer=each.max_frames) for each in utterances]
        for ticket in tickets:
            for _ in ticket:
                pass
    # The first of them took part in a prefill.
    walls, backbones, depths = (
        column[_WARM_UP_FRAMES:] for column in (np.diff(turns.ends), turns.backbone_s[1:], turns.depth_s[1:])
    )
    wall, backbone, depth = (1e3 * float(np.median(column)) for column in (walls, backbones, depths))
    noise = 1e3 * tickets[0].times.host_s / tickets[0].times.frames
    return {
        "batch": size,
        "frames": len(walls),
        "step_ms": round(wall, 3),
        "backbone_ms": round(backbone, 3),
        "depth_ms": round(depth, 3),
        "noise_ms": round(noise, 3),
        "gap_ms": round(wall - backbone - depth - noise, 3),
        "rtf_each": round(1e-3 * wall / FRAME_S, 4),
        "audio_s_per_s": round(1e3 * size * FRAME_S / wall, 2),
    }


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns; the first rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + _WARM_UP_FRAMES):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= _WARM_UP_FRAMES:
                times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values)) for name, values in times.items()}


def median_s(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of one call."""
    return medians({"": call}, rounds)[""]
