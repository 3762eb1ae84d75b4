"""The stages of the evaluation: what each finds about one clip, as a record.

The reference goes first: it says every prompt with every seed ("target" records), and what it said is replayed through
every candidate. It knows no files but the clips' audio, and no statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.reader import read_audio
from ...runtime.audio.samples import Samples
from ...runtime.audio.writer import AudioWriter
from ...runtime.options import SpeechOptions
from ...runtime.speech import Segment
from ..corpus import Prompt
from ..fit import newest_that_fit
from ..metric import FREE, LOGITS, ONE_STEP, RECORDED
from ..metrics.codes import FLIPS, PATHS, SEMANTIC
from ..metrics.divergence import Divergence, EosChange, clip_metrics, divergence, eos_change
from ..metrics.failures import ANEW, failures
from ..metrics.table import frame_weights
from ..prosody.compare import compare_aligned, compare_free
from ..prosody.contours import contours_of_both
from ..prosody.recording import measure_both
from .candidate import DepthDecoderOnly, LoadedCandidate
from .record import Record
from .reference_logits import ReferenceClip, ReferenceLogits, clip_key
from .teacher_forcing import Replayed, joined

TARGET, BASIS, FLOOR = "target", "basis", "floor"
"""Of the reference alone: what it said, what it draws in the one-step stage, and two of its seeds compared."""


@dataclass(frozen=True)
class Target:
    """What the reference said, as its record has it."""

    prompt: Prompt
    seed: int
    codes: I64Array
    ended: str
    context: list[Segment]

    @classmethod
    def of(cls, prompt: Prompt, record: Record) -> "Target":
        """From a target record."""
        detail = record.detail
        context = [Segment(text, np.array(codes, np.int64), speaker) for speaker, text, codes in detail["context"]]
        codes = np.array(detail["codes"], np.int64)
        return cls(prompt, record.seed, codes, detail["ended"], context)

    def named(self, values: dict[str, float]) -> dict[str, float]:
        """What was found by teacher forcing, under its names: those of recordings are their own."""
        return {f"{key}{RECORDED}": value for key, value in values.items()} if self.prompt.is_recording else values


def speak_target(loaded: LoadedCandidate, prompt: Prompt, seed: int, options: SpeechOptions) -> Record:
    """The reference says the prompt, after the turns before it. Of what has a recording that is coded instead."""
    context: list[Segment] = []
    for turn in prompt.before:
        if turn.audio is not None:
            heard = loaded.tts.codec.encode(read_audio(turn.audio))
        else:
            line = Prompt(f"{prompt.id}/{len(context)}", prompt.category, turn.text, turn.speaker)
            heard = loaded.speak(loaded.utterance(line, seed, context, options)).codes
        if len(heard):
            context.append(Segment(turn.text, heard, turn.speaker))
    if prompt.audio is None:
        take = loaded.speak(loaded.utterance(prompt, seed, context, options))
        codes, ended = take.codes, take.ended
    else:
        codes, ended = loaded.tts.codec.encode(read_audio(prompt.audio)), "eos"
        engine = loaded.tts.engine
        context = newest_that_fit(context, prompt, len(codes), engine.prompts, engine.spec)
    detail = {
        "codes": codes.tolist(),
        "ended": ended,
        "context": [[segment.speaker, segment.text, segment.codes.tolist()] for segment in context],
    }
    return Record(TARGET, loaded.candidate.key, prompt.id, seed, {"frames": float(len(codes))}, detail=detail)


def keep_reference_logits(
    loaded: LoadedCandidate, target: Target, options: SpeechOptions, store: ReferenceLogits, settings: dict[str, str]
) -> None:
    """Keep the reference's logits for a target, if they are not there."""
    utterance = loaded.utterance(target.prompt, target.seed, target.context, options)

    def compute() -> ReferenceClip:
        replayed = loaded.replay(utterance, target.codes)
        return ReferenceClip(replayed, loaded.depth_logits(replayed))

    store.obtain(clip_key(loaded.tts.level, utterance.blocks, target.codes, settings), compute)


def logits_record(
    loaded: LoadedCandidate,
    target: Target,
    base: ReferenceClip,
    reference_depth: DepthDecoderOnly | None,
    options: SpeechOptions,
) -> Record:
    """Teacher-forced: divergence of every code's distribution; by halves too, given the reference's depth decoder."""
    utterance = loaded.utterance(target.prompt, target.seed, target.context, options)
    replayed = loaded.replay(utterance, target.codes)
    depth = loaded.depth_logits(replayed)
    reference = base.logits
    found = _divergence(reference, joined(replayed, depth), options)
    # Who recorded it decided where a recording stops.
    eos = None if target.prompt.is_recording else _eos_change(base, replayed, target, options)
    values = target.named(clip_metrics(replace(found, eos=eos)))
    weights = frame_weights(values, len(target.codes))
    detail: dict[str, Any] = {
        "kld": [[float(f"{value:.6g}") for value in row] for row in found.kld],
        "same_top": found.same_top.astype(int).tolist(),
    }
    if reference_depth is not None:
        halves = {
            "backbone_only": joined(replayed, reference_depth.logits(replayed)),
            "decoder_only": joined(base.replayed, loaded.depth_logits(base.replayed)),
        }
        klds = {half: float(_divergence(reference, logits, options).kld.mean()) for half, logits in halves.items()}
        named = target.named({**klds, "both": float(found.kld.mean())})
        values |= named
        weights |= dict.fromkeys(named, float(len(target.codes)))
    return Record(LOGITS, loaded.candidate.key, target.prompt.id, target.seed, values, weights, detail)


def _divergence(base: F32Array, level: F32Array, options: SpeechOptions) -> Divergence:
    return divergence(base, level, temperature=options.temperature or 1.0, top_k=options.top_k)


def _eos_change(base: ReferenceClip, level: Replayed, target: Target, options: SpeechOptions) -> EosChange:
    return eos_change(
        base.replayed.logits0,
        level.logits0,
        stopped=target.ended == "eos",
        temperature=options.temperature or 1.0,
        top_k=options.top_k,
    )


def one_step_record(
    loaded: LoadedCandidate,
    target: Target,
    basis: Sequence[Sequence[int]],
    options: SpeechOptions,
    audio: Path | None = None,
) -> Record:
    """One-step: the same noise on the same history; the sound is aligned with the reference's frame by frame.

    It is kept in the folder `audio`, if one is given, to be listened to.
    """
    codes, base_codes = _one_step(loaded, target, options), np.array(basis, np.int64)
    reference, test = (loaded.sound(_audible(drawn, target.codes)) for drawn in (base_codes, codes))
    values = target.named({**FLIPS.values(base_codes, codes), **compare_aligned(*contours_of_both(reference, test))})
    detail = {"flips": (codes != base_codes).sum(axis=0).tolist(), "frames": len(codes)}
    weights = frame_weights(values, len(codes))
    name = f"{loaded.candidate.key}-{target.prompt.id}-{target.seed}"
    files = {} if audio is None else {"audio": _kept(test, audio, f"{name}.{ONE_STEP}.wav")}
    return Record(ONE_STEP, loaded.candidate.key, target.prompt.id, target.seed, values, weights, detail, files)


def _kept(samples: Samples, folder: Path, name: str) -> str:
    """The name of the file that samples were written to, as 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    with AudioWriter(folder / name) as writer:
        writer.write(samples)
    return name


def basis_record(loaded: LoadedCandidate, target: Target, options: SpeechOptions) -> Record:
    """What the reference itself draws in the one-step stage."""
    codes = _one_step(loaded, target, options)
    detail = {"codes": codes.tolist()}
    return Record(BASIS, loaded.candidate.key, target.prompt.id, target.seed, {}, detail=detail)


def _audible(drawn: I64Array, spoken: I64Array) -> I64Array:
    """For the ear, the frame that was spoken stands in for an EOS frame; as flips, all its codes count."""
    return np.where(drawn.any(axis=1, keepdims=True), drawn, spoken)


def _one_step(loaded: LoadedCandidate, target: Target, options: SpeechOptions) -> I64Array:
    """The codes that a candidate draws in the one-step stage."""
    utterance = loaded.utterance(target.prompt, target.seed, target.context, options)
    return loaded.one_step(loaded.replay(utterance, target.codes), utterance)


def free_record(loaded: LoadedCandidate, target: Target, options: SpeechOptions, audio: Path) -> Record:
    """A run of its own, with the same noise; compared with what the reference said."""
    utterance = loaded.utterance(target.prompt, target.seed, target.context, options)
    take = loaded.speak(utterance)
    samples = loaded.sound(take.codes) if len(take.codes) else np.zeros(1920, np.float32)
    reference = loaded.sound(target.codes)
    name = _kept(samples, audio, f"{loaded.candidate.key}-{target.prompt.id}-{target.seed}.wav")
    kinds = failures(samples, take.codes, _ended(take.ended))
    base_kinds = failures(reference, target.codes, _ended(target.ended))
    first, second = measure_both(reference, samples)
    values = {
        **compare_free(first, second),
        **SEMANTIC.values(target.codes, take.codes),
        **PATHS.values(target.codes, take.codes),
        **ANEW.values(base_kinds, kinds),
    }
    detail = {
        "codes": take.codes.tolist(),
        "ended": take.ended,
        "failures": list(kinds),
        "wall_s": take.wall_s,
        "first_s": take.first_s,
        "audio_s": len(samples) / SAMPLE_RATE_HZ,
        "scalars": second.scalars(),
        "f0_hz": [round(float(value), 1) for value in second.contours.f0_hz],
    }
    files = {"audio": name}
    return Record(FREE, loaded.candidate.key, target.prompt.id, target.seed, values, {}, detail, files)


def _ended(ended: str) -> Any:
    return "cap" if ended == "cap" else "eos"


def floor_record(loaded: LoadedCandidate, one: Target, other: Target) -> Record:
    """The noise floor: two seeds of the reference, compared as a level is with it."""
    first, second = measure_both(loaded.sound(one.codes), loaded.sound(other.codes))
    values = {**compare_free(first, second), **SEMANTIC.values(one.codes, other.codes)}
    return Record(FLOOR, loaded.candidate.key, one.prompt.id, one.seed, values)
