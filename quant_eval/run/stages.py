"""The layers of the evaluation: what each finds about one clip, as a record.

The baseline goes first: it says every prompt with every seed ("target" records), and what it said is replayed through
every contender. It knows no files but the clips' audio, and no statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...runtime.audio.reader import read_audio
from ...runtime.audio.writer import AudioWriter
from ...runtime.options import SpeechOptions
from ...runtime.speech import Segment
from ..corpus import Prompt
from ..metrics.codes import first_divergence, semantic_wed
from ..metrics.divergence import Divergence, clip_metrics, divergence, eos_shift
from ..metrics.failures import failures
from ..metrics.table import LAYERS
from ..prosody.compare import compare_aligned, compare_free, measure
from ..prosody.contours import contours
from .candidate import Booth, LoneDepthDecoder
from .record import Record
from .reference_logits import BaseClip, BaseLogits, clip_key
from .teacher_forcing import joined

TARGET, BASIS, FLOOR = "target", "basis", "floor"
"""Of the baseline alone: what it said, what it draws in the coupled layer, and two of its seeds compared."""
LOGITS, COUPLED, FREE = LAYERS


@dataclass(frozen=True)
class Target:
    """What the baseline said, as its record has it."""

    prompt: Prompt
    seed: int
    codes: I64Array
    ended: str
    context: list[Segment]
    is_recording: bool

    @classmethod
    def of(cls, prompt: Prompt, record: Record) -> "Target":
        """From a target record."""
        detail = record.detail
        context = [Segment(text, np.array(codes, np.int64), speaker) for speaker, text, codes in detail["context"]]
        codes = np.array(detail["codes"], np.int64)
        return cls(prompt, record.seed, codes, detail["ended"], context, prompt.audio is not None)


def speak_target(booth: Booth, prompt: Prompt, seed: int, options: SpeechOptions) -> Record:
    """The baseline says the prompt, after the turns before it, or codes the recording that the prompt has."""
    context: list[Segment] = []
    for speaker, text in prompt.before:
        line = Prompt(f"{prompt.id}/{len(context)}", prompt.category, text, speaker)
        said = booth.speak(booth.utterance(line, seed, context, options))
        if len(said.codes):
            context.append(Segment(text, said.codes, speaker))
    if prompt.audio is None:
        take = booth.speak(booth.utterance(prompt, seed, context, options))
        codes, ended = take.codes, take.ended
    else:
        codes, ended = booth.tts.codec.encode(read_audio(prompt.audio)), "eos"
    detail = {
        "codes": codes.tolist(),
        "ended": ended,
        "context": [[segment.speaker, segment.text, segment.codes.tolist()] for segment in context],
    }
    return Record(TARGET, booth.contender.key, prompt.id, seed, {"frames": float(len(codes))}, detail=detail)


def keep_base_logits(
    booth: Booth, target: Target, options: SpeechOptions, store: BaseLogits, settings: dict[str, str]
) -> None:
    """Keep the baseline's logits for a target, if they are not there."""
    utterance = booth.utterance(target.prompt, target.seed, target.context, options)

    def compute() -> BaseClip:
        replayed = booth.replay(utterance, target.codes)
        return BaseClip(replayed, booth.depth_logits(replayed))

    store.obtain(clip_key(booth.tts.level, utterance.blocks, target.codes, settings), compute)


def logits_record(
    booth: Booth,
    target: Target,
    base: BaseClip,
    base_depth: LoneDepthDecoder | None,
    options: SpeechOptions,
) -> Record:
    """Teacher-forced: divergence of every code's distribution; by halves too, given the baseline's depth decoder."""
    utterance = booth.utterance(target.prompt, target.seed, target.context, options)
    replayed = booth.replay(utterance, target.codes)
    depth = booth.depth_logits(replayed)
    reference = base.logits
    found = _divergence(reference, joined(replayed, depth), options)
    ended = target.ended == "eos" and not target.is_recording
    shift = float(eos_shift(base.replayed.logits0[-1:], replayed.logits0[-1:])[0]) if ended else None
    values = clip_metrics(found, shift)
    frames = float(len(target.codes))
    weights = {metric: 1.0 if metric == "eos_shift" else frames for metric in values}
    detail: dict[str, Any] = {
        "kld": [[float(f"{value:.6g}") for value in row] for row in found.kld],
        "same_top": found.same_top.astype(int).tolist(),
    }
    if base_depth is not None:
        halves = {
            "backbone_only": joined(replayed, base_depth.logits(replayed)),
            "decoder_only": joined(base.replayed, booth.depth_logits(base.replayed)),
        }
        for half, logits in halves.items():
            values[half] = float(_divergence(reference, logits, options).kld.mean())
        values["both"] = float(found.kld.mean())
        weights |= dict.fromkeys((*halves, "both"), frames)
    return Record(LOGITS, booth.contender.key, target.prompt.id, target.seed, values, weights, detail)


def _divergence(base: F32Array, level: F32Array, options: SpeechOptions) -> Divergence:
    return divergence(base, level, temperature=options.temperature or 1.0, top_k=options.top_k)


def coupled_record(booth: Booth, target: Target, basis: Sequence[Sequence[int]], options: SpeechOptions) -> Record:
    """One-step: the same noise on the same history; the sound is aligned with the baseline's frame by frame."""
    codes, base_codes = coupled(booth, target, options), np.array(basis, np.int64)
    reference, test = (booth.sound(_audible(drawn, target.codes)) for drawn in (base_codes, codes))
    heard = contours(reference)
    values = {
        "flip_rate": 100 * float((codes != base_codes).mean()),
        **compare_aligned(heard, contours(test, heard.pitch_range)),
    }
    frames = float(len(codes))
    detail = {"flips": (codes != base_codes).sum(axis=0).tolist(), "frames": len(codes)}
    weights = dict.fromkeys(values, frames)
    return Record(COUPLED, booth.contender.key, target.prompt.id, target.seed, values, weights, detail)


def basis_record(booth: Booth, target: Target, options: SpeechOptions) -> Record:
    """What the baseline itself draws in the coupled layer."""
    codes = coupled(booth, target, options)
    detail = {"codes": codes.tolist()}
    return Record(BASIS, booth.contender.key, target.prompt.id, target.seed, {}, detail=detail)


def _audible(drawn: I64Array, spoken: I64Array) -> I64Array:
    """For the ear, the frame that was spoken stands in for an EOS frame; as flips, all its codes count."""
    return np.where(drawn.any(axis=1, keepdims=True), drawn, spoken)


def coupled(booth: Booth, target: Target, options: SpeechOptions) -> I64Array:
    """The codes that a contender draws in the coupled layer."""
    utterance = booth.utterance(target.prompt, target.seed, target.context, options)
    return booth.coupled(booth.replay(utterance, target.codes), utterance)


def free_record(booth: Booth, target: Target, options: SpeechOptions, audio: Path) -> Record:
    """A run of its own, with the same noise; compared with what the baseline said."""
    utterance = booth.utterance(target.prompt, target.seed, target.context, options)
    take = booth.speak(utterance)
    samples = booth.sound(take.codes) if len(take.codes) else np.zeros(1920, np.float32)
    reference = booth.sound(target.codes)
    name = f"{booth.contender.key}-{target.prompt.id}-{target.seed}.wav"
    audio.mkdir(parents=True, exist_ok=True)
    with AudioWriter(audio / name) as writer:
        writer.write(samples)
    kinds = failures(samples, take.codes, _ended(take.ended))
    base_kinds = failures(reference, target.codes, _ended(target.ended))
    first = measure(reference)
    second = measure(samples, first.contours.pitch_range)
    values = {
        **compare_free(first, second),
        "semantic_wed": semantic_wed(target.codes, take.codes),
        "first_divergence": float(first_divergence(target.codes, take.codes)),
        "new_failures": 100.0 if set(kinds) - set(base_kinds) else 0.0,
    }
    detail = {
        "codes": take.codes.tolist(),
        "ended": take.ended,
        "failures": list(kinds),
        "wall_s": take.wall_s,
        "first_s": take.first_s,
        "audio_s": len(samples) / 24000,
        "scalars": second.scalars(),
        "f0_hz": [round(float(value), 1) for value in second.contours.f0_hz],
    }
    files = {"audio": name}
    return Record(FREE, booth.contender.key, target.prompt.id, target.seed, values, {}, detail, files)


def _ended(ended: str) -> Any:
    return "cap" if ended == "cap" else "eos"


def floor_record(booth: Booth, one: Target, other: Target) -> Record:
    """The noise floor: two seeds of the baseline, compared as a level is with it."""
    first = measure(booth.sound(one.codes))
    second = measure(booth.sound(other.codes), first.contours.pitch_range)
    values = {**compare_free(first, second), "semantic_wed": semantic_wed(one.codes, other.codes)}
    return Record(FLOOR, booth.contender.key, one.prompt.id, one.seed, values)
