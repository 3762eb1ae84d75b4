"""One level, measured: its distance to FP16, its memory, what a frame reads and how long that takes, as a row.

It knows loaded levels, and neither commands nor where bundles come from. Times are of two levels in turns, round by
round, so that a busy machine slows both alike.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from calls import TOP_K, text_block
from teacher_forced import Clip, diverged, observed, with_interval

from miso_gguf.models.levels import LEVELS
from miso_gguf.models.memory import level_memory
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.quant_eval.metric import DISTANCE, SHARE
from miso_gguf.quant_eval.run.candidate import LoadedCandidate
from miso_gguf.runtime.bundle import OpenLevel

PAST = 60
"""Positions before the frame that is timed: a short prompt."""

Row = dict[str, Any]
Call = Callable[[], object]


@dataclass(frozen=True)
class Turns:
    """How to time: how often each call takes its turn, and with how many threads that was."""

    rounds: int
    threads: int


def measured_row(loaded: LoadedCandidate, base: LoadedCandidate, clips: Sequence[Clip], turns: Turns) -> Row:
    """All of a level. `base` is what its times are held against: of another level, or the same one loaded twice."""
    timed = times(loaded, base, turns)  # first: both have done nothing yet
    return {
        "level": loaded.candidate.level,
        "label": LEVELS[loaded.candidate.level].label,
        **distances(loaded, clips),
        **sizes(loaded.candidate.files),
        "backbone_bytes": backbone_bytes(loaded.candidate.files),
        "depth_bytes": loaded.tts.engine.depth.streamed_bytes,
        **timed,
    }


def distances(loaded: LoadedCandidate, clips: Sequence[Clip]) -> Row:
    """KLD in nats and top-1 in percent, against what FP16 gave for the same codes."""
    found = [diverged(clip, {"level": loaded}, [("level", "level")])[0] for clip in clips]
    return {
        "prompts": len({clip.target.prompt.id for clip in clips}),
        "clips": len(clips),
        "frames": sum(clip.frames for clip in clips),
        "kld_cb0": with_interval(observed(clips, [each.kld[:, 0] for each in found]), limits=DISTANCE),
        "kld_rest": with_interval(observed(clips, [each.kld[:, 1:] for each in found]), limits=DISTANCE),
        "top1_percent": with_interval(observed(clips, [100 * each.same_top for each in found]), limits=SHARE),
    }


def sizes(level: OpenLevel) -> Row:
    """VRAM of a full offload, accounted: no GPU is needed for it."""
    memory = level_memory(level.manifest, level.key)
    return {"bits_per_weight": round(memory.bits_per_weight, 4), "vram_bytes": memory.vram_bytes}


def backbone_bytes(level: OpenLevel) -> int:
    """Bytes of weights that a step of the backbone reads: all but the table, whose rows come from the embeddings."""
    with GgufFile(level.backbone) as file:
        return sum(tensor.data.nbytes for name, tensor in file.tensors.items() if name != "token_embd.weight")


def times(loaded: LoadedCandidate, base: LoadedCandidate, turns: Turns) -> Row:
    """Medians in milliseconds, and medians of the ratios within each round."""
    calls = {
        (side, part): call
        for side, each in (("level", loaded), ("base", base))
        for part, call in frame_calls(each).items()
    }
    seconds = take_turns(calls, turns.rounds)
    row: Row = {"base": base.candidate.level, "rounds": turns.rounds, "threads": turns.threads}
    for part in ("backbone", "depth"):
        own, other = np.array(seconds["level", part]), np.array(seconds["base", part])
        row |= {
            f"{part}_ms": round(float(np.median(own)) * 1e3, 3),
            f"{part}_base_ms": round(float(np.median(other)) * 1e3, 3),
            f"{part}_over_base": round(float(np.median(own / other)), 3),
        }
    return row


def frame_calls(loaded: LoadedCandidate) -> dict[str, Call]:
    """The parts of a frame, each as it is in the frame loop, after a prompt of `PAST` positions."""
    engine, spec, rng = loaded.tts.engine, loaded.tts.engine.spec, np.random.default_rng(0)
    codes = rng.integers(1, loaded.tts.codec.cardinality, (1, spec.codebooks))
    hidden = rng.standard_normal((1, spec.backbone.embed_dim), np.float32)
    logits = rng.standard_normal((1, spec.audio_vocab), np.float32)
    noise = rng.gumbel(size=(1, spec.codebooks, spec.audio_vocab)).astype(np.float32)
    engine.prefill(0, [text_block(spec, PAST, rng)])
    return {
        "backbone": lambda: engine.step([0], [codes[0]]),
        "depth": lambda: engine.sample(hidden, logits, noise, TOP_K),
    }


def take_turns(calls: Mapping[Any, Call], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each call, round by round, after one that is not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds
