"""What an evaluation will cost: clips, speech, disk and time by parts, for people who are about to wait.

It runs no model. The time is the sum over the steps of every clip. The constants are medians on two cores of an AMD
EPYC (AVX2); each says what it was measured of.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...models.mimi import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from ...models.spec import ModelSpec, TransformerSpec
from ...native.nvml import Nvml
from ...runtime.bundle import OpenLevel
from ...runtime.options import EngineOptions
from ..corpus import Prompt, Turn
from ..machine import device
from ..metric import FREE, LOGITS, ONE_STEP
from ..recordings import recorded_s
from .free_controls import CLIPS, RANGE_CLIPS
from .plan import Plan
from .reference_logits import clip_bytes
from .speed import Speed, Weights, speed_of

SPEAKING, REPLAYS, DIVERGENCE, CODEC, PROSODY = "speaking", "replays", "comparing logits", "codec", "prosody"
LOADING, DAMAGED_LEVELS, DAMAGED_CLIPS = "loading", "damaged levels", "damaged clips"
MEMORY, HASHING, STATISTICS, REPORTS = "memory", "hashing", "statistics", "reports"
"""The parts of the time. Loaded, replayed and compared is also what is damaged: all of that is one part."""

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
_LOADED_S, _LOADED_BYTES_S = 0.1, 1e9
"""Of a level, and of its models' bytes, which lie in the file cache since they were hashed. Source: the tiny model, and
1.8 GB of the 8B model's shapes (2.8 s); docs/runtime.md has 1.5 to 6 s for 5.3 GB.
"""
_HEARD_S = 4e-9
"""Of each number that goes into a matrix while it is heard, copied and summed. Source: 16 frames of the 8B model."""
_MEASURED_SPEECH_S = 90.0
"""That a level says while the memory of a GPU is watched. Source: `memory/measured.py`."""
_REMADE_S = 0.12
"""Praat's resynthesis of a second of sound. Source: `benchmarks/measured_cost.py`."""
_HASHED_BYTES_S = 5e8
"""sha256, on a core without instructions for it."""
_COPIED_BYTES_S = 1.5e8
"""Read, changed, written, and hashed again."""
_STATISTICS_S, _REPORTS_S = 2.0, 8.0
"""Of a level, and of all. Source: four levels of the tiny model."""


@dataclass(frozen=True)
class Part:
    """What is done, and how long it takes."""

    name: str
    seconds: float


Share = tuple[str, float]
"""Seconds that are added to the part of that name."""


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        clips: To be done: see `Plan.clips`.
        audio_s: That will be spoken.
        parts: Of the time, the largest first; none if it cannot be known.
        why_not: Why there are none, else "".
        logits_bytes: Of the reference's logits.
        copies_bytes: Of the largest damaged level: one at a time is there.
        audio_bytes: Of clips: those that are spoken freely, and the first seed's of the one-step stage.
    """

    clips: int
    audio_s: float
    parts: tuple[Part, ...]
    why_not: str
    logits_bytes: int
    copies_bytes: int
    audio_bytes: int

    @property
    def wall_s(self) -> float | None:
        """Of the time; None if it cannot be known."""
        return sum(part.seconds for part in self.parts) if self.parts else None

    @property
    def disk_bytes(self) -> int:
        """All that is written."""
        return self.logits_bytes + self.copies_bytes + self.audio_bytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "wall_s": self.wall_s, "disk_bytes": self.disk_bytes}


def estimate_cost(
    plan: Plan,
    processes: int = 1,
    *,
    vram: bool = False,
    instruments: Mapping[str, float] = {},
    scores: int = 0,
    speed: Speed | None = None,
    nvml: Callable[[], Nvml] | None = None,
) -> Cost:
    """From texts' lengths and files' sizes, and how fast a machine is.

    Args:
        plan: What is to be done.
        processes: That share the clips.
        vram: Whether the memory of each level is looked at.
        instruments: That hear clips of free runs, each with the seconds that it takes for a second of sound.
        scores: How many clips each of them hears.
        speed: Of each process, on another machine; None for this one.
        nvml: Opens NVML, as `speed_of`.
    """
    plans = [plan] if plan.finer is None else [plan, plan.finer]
    spoken_s = sum(len(plan.seeds_for(prompt)) * _spoken_s(prompt) for prompt in plan.corpus.prompts)
    free_s = len(plan.seeds) * sum(map(_spoken_s, plan.corpus.spoken))
    clips_s = free_s * sum(len(each.candidates) for each in plans) if FREE in plan.stages else 0.0
    one_step_s = len(plan.candidates) * sum(map(_spoken_s, plan.corpus.prompts)) if ONE_STEP in plan.stages else 0.0
    copies = [damage.copied_bytes for damage in plan.damages]
    spec, on_gpu = plan.reference.files.manifest.model_spec, plan.settings["device"] != device(0)
    known = speed or speed_of(spec, plan.engine, processes, on_gpu=on_gpu, nvml=nvml)
    parts: dict[str, float] = defaultdict(float)
    if isinstance(known, Speed):
        for name, seconds in _all_shares(plan, known, processes, vram=vram):
            parts[name] += seconds
        heard_s = scores * free_s / max(1, len(plan.seeds) * len(plan.corpus.spoken))
        for name, per_second in instruments.items():
            parts[name] += per_second * heard_s
    largest_first = sorted((Part(*part) for part in parts.items() if part[1]), key=lambda part: -part.seconds)
    return Cost(
        clips=plan.clips(),
        audio_s=len(plans) * spoken_s + clips_s,
        parts=tuple(largest_first),
        why_not="" if isinstance(known, Speed) else known,
        logits_bytes=len(plans) * _logits_bytes(plan) if LOGITS in plan.stages else 0,
        copies_bytes=max(copies, default=0),
        audio_bytes=round((clips_s + one_step_s) * SAMPLE_RATE_HZ * 2),
    )


def hearing_cost(
    level: OpenLevel, said: Sequence[Prompt], engine: EngineOptions, *, nvml: Callable[[], Nvml] | None = None
) -> tuple[float, float | str]:
    """Of a level that says prompts and replays them to be heard: seconds of speech, and of time.

    Or why that cannot be known. Loading is in it, and what is copied, summed, and kept after each clip.
    """
    weights = Weights.of(level)
    on_gpu = device(engine.gpu_layers) != device(0)
    speed = speed_of(level.manifest.model_spec, engine, 1, on_gpu=on_gpu, nvml=nvml)
    audio_s = sum(map(_spoken_s, said))
    if not isinstance(speed, Speed):
        return audio_s, speed
    clips = [_Clip(prompt, speed, 0.0, 0.0) for prompt in said]
    spoken_s = sum(clip.speak_s(weights) for clip in clips if not clip.prompt.is_recording)
    replayed_s = sum(clip.replay_s(weights) + clip.heard_s(level.manifest.model_spec) for clip in clips)
    return audio_s, _load_s(level) + spoken_s + replayed_s


def _logits_bytes(plan: Plan) -> int:
    spec = plan.reference.files.manifest.model_spec
    frames = [
        round(_spoken_s(prompt) * FRAME_RATE_HZ) for prompt in plan.corpus.prompts for _ in plan.seeds_for(prompt)
    ]
    return sum(clip_bytes(spec, each) for each in frames)


def _all_shares(plan: Plan, speed: Speed, processes: int, *, vram: bool) -> Iterator[Share]:
    """Of everything but instruments. Clips are shared by the processes, of which each loads every level."""
    for name, seconds in _clip_shares(plan, speed):
        yield name, seconds / processes
    yield LOADING, sum(_load_s(each.files) for each in plan.candidates) + _load_s(plan.reference.files)
    yield (
        DAMAGED_LEVELS,
        sum(damage.copied_bytes / _COPIED_BYTES_S + _load_s(damage.candidate.files) for damage in plan.damages),
    )
    yield DAMAGED_CLIPS, _damaged_clips_s(plan)
    if plan.finer is not None:
        judged = f"{plan.reference.name} against {plan.finer.reference.name}"
        loads_s = _load_s(plan.reference.files) + _load_s(plan.finer.reference.files)
        yield judged, sum(seconds for _, seconds in _clip_shares(plan.finer, speed)) / processes + loads_s
    if vram:
        for each in plan.candidates:
            yield MEMORY, _memory_s(each.files, speed)
    files = {path for each in _files(plan) for path in (*_models(each), each.codec_decoder)}
    yield HASHING, sum(path.stat().st_size for path in files) / _HASHED_BYTES_S
    yield STATISTICS, _STATISTICS_S * len(plan.candidates)
    yield REPORTS, _REPORTS_S


def _files(plan: Plan) -> list[OpenLevel]:
    finer = [] if plan.finer is None else [plan.finer.reference]
    return [each.files for each in (plan.reference, *plan.everyone, *finer)]


def _models(level: OpenLevel) -> tuple[Path, Path, Path]:
    return level.backbone, level.decoder, level.embeddings


def _load_s(level: OpenLevel) -> float:
    return _LOADED_S + sum(path.stat().st_size for path in _models(level)) / _LOADED_BYTES_S


def _memory_s(level: OpenLevel, speed: Speed) -> float:
    """Loaded for what is allocated; on a GPU once more, and it speaks."""
    if not speed.on_gpu:
        return _load_s(level)
    return 2 * _load_s(level) + _MEASURED_SPEECH_S * FRAME_RATE_HZ * speed.frame_s(Weights.of(level))


def _damaged_clips_s(plan: Plan) -> float:
    """Some clips stretched, some flattened, for each level, and flattened by nothing: see `free_controls.py`."""
    if not plan.controls or FREE not in plan.stages:
        return 0.0
    spoken = plan.corpus.spoken
    one_s = sum(map(_spoken_s, spoken)) / len(spoken)
    clips = len(spoken) * len(plan.seeds)
    levels = len(plan.candidates) - (plan.finer is None)
    remade = min(clips, CLIPS) * levels + min(clips, RANGE_CLIPS) * (levels + 1)
    return remade * (one_s * (_REMADE_S + 2 * _VOICE_S) + one_s**2 * _WARP_S)


def _clip_shares(plan: Plan, speed: Speed) -> Iterator[Share]:
    """All clips of a plan, without its finer one, in one process."""
    reference = plan.reference.files
    spec = reference.manifest.model_spec
    codec_s = _CODEC_FRAME_S + reference.codec_decoder.stat().st_size * _CODEC_BYTE_S
    logits_s = spec.codebooks * spec.audio_vocab * _LOGIT_S
    base = Weights.of(reference)
    weights = {each.key: Weights.of(each.files) for each in plan.everyone}
    replays = (LOGITS in plan.stages) + (ONE_STEP in plan.stages)
    for prompt in plan.corpus.prompts:
        clip = _Clip(prompt, speed, codec_s, logits_s)
        seeds = len(plan.seeds_for(prompt))
        said_s = 0.0 if prompt.is_recording else clip.speak_s(base)
        yield SPEAKING, seeds * (said_s + clip.before_s(base))
        yield REPLAYS, seeds * replays * clip.replay_s(base)
        if FREE in plan.stages and not prompt.is_recording:  # the noise floor
            yield from _times(seeds - 1, clip.compared())
        for candidate in plan.everyone:
            own, stages = weights[candidate.key], plan.stages_of(candidate, prompt)
            is_damaged = plan.is_damaged(candidate)
            has_halves = candidate != plan.reference and not is_damaged
            shares: list[Share] = []
            if LOGITS in stages:
                shares += clip.logits(own, base if has_halves else None)
            if ONE_STEP in stages:
                shares += clip.one_step(own)
            if FREE in stages:
                shares += clip.free(own)
            found = _times(len(plan.seeds_of(candidate, prompt)), shares)
            yield from ((DAMAGED_LEVELS, seconds) for _, seconds in found) if is_damaged else found


def _times(count: int, shares: list[Share]) -> Iterator[Share]:
    return ((name, count * seconds) for name, seconds in shares)


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
        before = self.prompt.before
        characters = len(self.prompt.text) + sum(len(turn.text) for turn in before)
        return characters / _CHARACTERS_PER_TOKEN + sum(map(_spoken_s, before)) * FRAME_RATE_HZ

    def speak_s(self, weights: Weights) -> float:
        return self.frames * self.speed.frame_s(weights) + self.speed.rows_s(weights, backbone=self.rows)

    def before_s(self, weights: Weights) -> float:
        """The turns before it, which only the reference says."""
        said_s = sum(_spoken_s(turn) for turn in self.prompt.before if turn.audio is None)
        return said_s * FRAME_RATE_HZ * self.speed.frame_s(weights)

    def replay_s(self, weights: Weights) -> float:
        return self.speed.rows_s(weights, backbone=self.frames + self.rows, depth=self.frames)

    def sound(self) -> Share:
        """The reference's clip and the level's."""
        return CODEC, 2 * self.frames * self.codec_frame_s

    def compared(self) -> list[Share]:
        """Two clips that part."""
        return [self.sound(), (PROSODY, 2 * self.audio_s * _VOICE_S + self.audio_s**2 * _WARP_S)]

    def heard_s(self, spec: ModelSpec) -> float:
        """Of a replay, beside it."""
        row, frame = _columns(spec.backbone), spec.codebooks * _columns(spec.decoder)
        copied_s = ((self.frames + self.rows) * row + self.frames * frame) * _HEARD_S
        return copied_s + 8 * (row + frame) / _COPIED_BYTES_S

    def logits(self, weights: Weights, base: Weights | None) -> list[Share]:
        """With each half beside the other one of the reference, unless it is the reference."""
        shares = [(REPLAYS, self.replay_s(weights)), (DIVERGENCE, self.frames * self.divergence_frame_s)]
        if base is not None:
            halves_s = self.speed.rows_s(base, depth=self.frames) + self.speed.rows_s(weights, depth=self.frames)
            shares += [(REPLAYS, halves_s), (DIVERGENCE, 2 * self.frames * self.divergence_frame_s)]
        return shares

    def one_step(self, weights: Weights) -> list[Share]:
        return [(REPLAYS, self.replay_s(weights)), self.sound(), (PROSODY, 2 * self.audio_s * _CONTOURS_S)]

    def free(self, weights: Weights) -> list[Share]:
        return [(SPEAKING, self.speak_s(weights)), *self.compared()]


def _columns(spec: TransformerSpec) -> int:
    """Of all matrices of the layers, those with one input once."""
    return spec.layers * (2 * spec.embed_dim + spec.heads * spec.head_dim + spec.ffn_dim)


def _spoken_s(said: Prompt | Turn) -> float:
    return len(said.text) / _CHARACTERS_PER_S if said.audio is None else recorded_s(said.audio)
