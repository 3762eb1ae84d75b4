"""What an evaluation will cost: clips, speech, disk and time, for people who are about to wait. It runs no model.

The time is the sum over the steps of every clip. The constants are medians on two cores of an AMD EPYC (AVX2); each
says what it was measured of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...models.mimi import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from ...native.nvml import Nvml
from ...runtime.bundle import OpenLevel
from ...runtime.options import EngineOptions
from ..corpus import Prompt
from ..machine import device
from ..metric import FREE, LOGITS, ONE_STEP
from .free_controls import CLIPS
from .plan import Plan
from .reference_logits import clip_bytes
from .speed import Speed, Weights, speed_of

_CHARACTERS_PER_S = 14.0
"""Of English read aloud."""
_CHARACTERS_PER_TOKEN = 4.0

_CODEC_FRAME_S, _CODEC_BYTE_S = 0.9e-3, 76e-12
"""Of a frame among many, and for each byte of the decoder's graph. Source: docs/mimi.md (9.6 ms, 114 MB); the tiny."""
_LOGIT_S = 60e-9
"""Of each logit that is compared with another. Source: `divergence` of 20 frames of the 8B model."""
_CONTOURS_S = 0.035
"""Praat's F0 and intensity of a second of sound. Source: 16 clips of the tiny model."""
_VOICE_S = 0.06
"""That, rhythm, and the quality of the voice. Source: the same."""
_WARP_S = 2.2e-3
"""Dynamic time warping of two clips of a second; it grows with the square. Source: the same."""
_HASHED_BYTES_S = 5e8
"""sha256, on a core without instructions for it."""
_COPIED_BYTES_S = 1.5e8
"""Read, changed, written, and hashed again."""
_STATISTICS_S, _REPORTS_S = 2.0, 8.0
"""Of a level, and of all. Source: four levels of the tiny model."""


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        clips: To be done: see `Plan.clips`.
        audio_s: That will be spoken.
        wall_s: Of the time; None if it cannot be known.
        said: Of what the time is the sum, or why there is none.
        logits_bytes: Of the reference's logits.
        copies_bytes: Of the largest damaged level: one at a time is there.
        audio_bytes: Of clips: those that are spoken freely, and the first seed's of the one-step stage.
    """

    clips: int
    audio_s: float
    wall_s: float | None
    said: str
    logits_bytes: int
    copies_bytes: int
    audio_bytes: int

    @property
    def disk_bytes(self) -> int:
        """All that is written."""
        return self.logits_bytes + self.copies_bytes + self.audio_bytes


def estimate_cost(plan: Plan, processes: int = 1, *, nvml: Callable[[], Nvml] | None = None) -> Cost:
    """From texts' lengths and files' sizes, and how fast this machine is. `nvml` opens NVML, as `speed_of`."""
    plans = [plan] if plan.finer is None else [plan, plan.finer]
    spec = plan.reference.files.manifest.model_spec
    seed_s = sum(map(_spoken_s, plan.corpus.prompts))
    spoken_s = len(plan.seeds) * seed_s
    candidates = sum(len(each.candidates) for each in plans)
    clips_s = candidates * spoken_s if FREE in plan.stages else 0.0
    one_step_s = len(plan.candidates) * seed_s if ONE_STEP in plan.stages else 0.0
    copies = [damage.copied_bytes for damage in plan.damages]
    on_gpu = plan.settings["device"] != device(0)
    speed = speed_of(spec, plan.engine, processes, on_gpu=on_gpu, nvml=nvml)
    wall_s, said = None, speed
    if isinstance(speed, Speed):
        wall_s = sum(_work_s(each, speed) for each in plans) / processes + _alone_s(plans, sum(copies))
        said = _included(plan)
    return Cost(
        clips=plan.clips(),
        audio_s=len(plans) * spoken_s + clips_s,
        wall_s=wall_s,
        said=str(said),
        logits_bytes=len(plans) * _logits_bytes(plan) if LOGITS in plan.stages else 0,
        copies_bytes=max(copies, default=0),
        audio_bytes=round((clips_s + one_step_s) * SAMPLE_RATE_HZ * 2),
    )


def hearing_cost(
    level: OpenLevel, said: Sequence[Prompt], engine: EngineOptions, *, nvml: Callable[[], Nvml] | None = None
) -> tuple[float, float | str]:
    """Of a level that says prompts and replays them: seconds of speech, and of time; or why that cannot be known."""
    weights = Weights.of(level)
    on_gpu = device(engine.gpu_layers) != device(0)
    speed = speed_of(level.manifest.model_spec, engine, 1, on_gpu=on_gpu, nvml=nvml)
    audio_s = sum(map(_spoken_s, said))
    if not isinstance(speed, Speed):
        return audio_s, speed
    clips = [_Clip(prompt, speed, 0.0, 0.0) for prompt in said]
    spoken_s = sum(clip.speak_s(weights) for clip in clips if clip.prompt.audio is None)
    return audio_s, spoken_s + sum(clip.replay_s(weights) for clip in clips)


def _logits_bytes(plan: Plan) -> int:
    spec = plan.reference.files.manifest.model_spec
    frames = [round(_spoken_s(prompt) * FRAME_RATE_HZ) for prompt in plan.corpus.prompts]
    return len(plan.seeds) * sum(clip_bytes(spec, each) for each in frames)


def _included(plan: Plan) -> str:
    parts = ["speaking", "codec", "Praat", "hashing", "statistics", "reports"]
    if {LOGITS, ONE_STEP} & set(plan.stages):
        parts.insert(1, "replays")
    if plan.damages:
        parts.append("damaged copies")
    if plan.finer is not None:
        parts.append(f"{plan.reference.name} against {plan.finer.reference.name}")
    return ", ".join(parts)


def _alone_s(plans: list[Plan], copies_bytes: int) -> float:
    """What one process does: before the clips, between them and after them."""
    plan = plans[0]
    levels = [each.files for one in plans for each in (one.reference, *one.everyone)]
    files = {path for each in levels for path in (each.backbone, each.decoder, each.embeddings, each.codec_decoder)}
    hashed_s = sum(path.stat().st_size for path in files) / _HASHED_BYTES_S
    statistics_s = _STATISTICS_S * len(plan.candidates) + _REPORTS_S
    return hashed_s + copies_bytes / _COPIED_BYTES_S + _damaged_clips_s(plan) + statistics_s


def _damaged_clips_s(plan: Plan) -> float:
    """A dozen clips, made anew, and stretched and flattened for each level: see `free_controls.py`."""
    if not plan.controls or FREE not in plan.stages:
        return 0.0
    one_s = sum(map(_spoken_s, plan.corpus.prompts)) / len(plan.corpus.prompts)
    return (2 * len(plan.candidates) + 1) * CLIPS * (one_s * _VOICE_S + one_s**2 * _WARP_S)


def _work_s(plan: Plan, speed: Speed) -> float:
    """All clips of a plan, without its finer one, in one process."""
    reference = plan.reference.files
    spec = reference.manifest.model_spec
    codec_s = _CODEC_FRAME_S + reference.codec_decoder.stat().st_size * _CODEC_BYTE_S
    logits_s = spec.codebooks * spec.audio_vocab * _LOGIT_S
    base = Weights.of(reference)
    weights = {each.key: Weights.of(each.files) for each in plan.everyone}
    replays = (LOGITS in plan.stages) + (ONE_STEP in plan.stages)
    total = 0.0
    for prompt in plan.corpus.prompts:
        clip = _Clip(prompt, speed, codec_s, logits_s)
        total += len(plan.seeds) * (clip.speak_s(base) + replays * clip.replay_s(base))
        if FREE in plan.stages:  # the noise floor
            total += (len(plan.seeds) - 1) * clip.compare_s
        for candidate in plan.everyone:
            own, stages = weights[candidate.key], plan.stages_of(candidate, prompt)
            has_halves = candidate != plan.reference and not plan.is_damaged(candidate)
            one_s = clip.logits_s(own, base if has_halves else None) if LOGITS in stages else 0.0
            one_s += clip.one_step_s(own) if ONE_STEP in stages else 0.0
            one_s += clip.free_s(own) if FREE in stages else 0.0
            total += len(plan.seeds_of(candidate, prompt)) * one_s
    return total


@dataclass(frozen=True)
class _Clip:
    """What one clip of a prompt takes, in seconds."""

    prompt: Prompt
    speed: Speed
    codec_frame_s: float
    divergence_frame_s: float

    @cached_property
    def audio_s(self) -> float:
        return _spoken_s(self.prompt)

    @cached_property
    def frames(self) -> float:
        return self.audio_s * FRAME_RATE_HZ

    @cached_property
    def rows(self) -> float:
        """Of the prompt: its text, and the turns before it as text and speech."""
        before = sum(len(text) for _, text in self.prompt.before)
        tokens = (len(self.prompt.text) + before) / _CHARACTERS_PER_TOKEN
        return tokens + before / _CHARACTERS_PER_S * FRAME_RATE_HZ

    @property
    def sound_s(self) -> float:
        """The reference's clip and the level's."""
        return 2 * self.frames * self.codec_frame_s

    @property
    def compare_s(self) -> float:
        """Two clips that part."""
        return self.sound_s + 2 * self.audio_s * _VOICE_S + self.audio_s**2 * _WARP_S

    def speak_s(self, weights: Weights) -> float:
        return self.frames * self.speed.frame_s(weights) + self.speed.rows_s(weights, backbone=self.rows)

    def replay_s(self, weights: Weights) -> float:
        return self.speed.rows_s(weights, backbone=self.frames + self.rows, depth=self.frames)

    def logits_s(self, weights: Weights, base: Weights | None) -> float:
        """With each half beside the other one of the reference, unless it is the reference."""
        once = self.replay_s(weights) + self.frames * self.divergence_frame_s
        if base is None:
            return once
        halves = self.speed.rows_s(base, depth=self.frames) + self.speed.rows_s(weights, depth=self.frames)
        return once + halves + 2 * self.frames * self.divergence_frame_s

    def one_step_s(self, weights: Weights) -> float:
        return self.replay_s(weights) + self.sound_s + 2 * self.audio_s * _CONTOURS_S

    def free_s(self, weights: Weights) -> float:
        return self.speak_s(weights) + self.compare_s


def _spoken_s(prompt: Prompt) -> float:
    return len(prompt.text) / _CHARACTERS_PER_S
