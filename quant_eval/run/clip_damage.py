"""The reference's own clips, damaged on purpose: the controls of what is measured on free runs.

Each is as the reference said it but for one thing, which one gate is there to notice. They are measured by the very
functions that measure a level's clips, so a gate that lets them pass is blind.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.arrays import I64Array
from ...models.mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples
from ...runtime.synthesis.stopping import LONGEST_PAUSE_FRAMES, LOOP_FRAMES, LOOP_PASSES, MAX_PERIOD
from ..metrics.failures import ANEW, FAILURES, TAIL_S, Ended, failures
from ..prosody.recording import Prosody
from ..stats.observations import Observations

try:
    import parselmouth  # type: ignore[import-not-found]
except ImportError:
    parselmouth = None

_SIGNIFICANCE = 0.05
_POINTS_S = 0.01
"""Of the pitch contour that is flattened. Source: Praat manual, "Sound: To Manipulation", standard value."""
_KEPT_S = 0.15
_VOICE = (0.75, 1.5)
"""Of the quartiles of F0: where Praat's overlap-add looks for periods. Source: as in `prosody/pitch.py`."""
_ANY_VOICE_HZ = (75.0, 600.0)
"""Praat's standard values."""


@dataclass(frozen=True, eq=False)
class RecordedClip:
    """What one free run gave.

    Attributes:
        prompt: Its id.
        seed: Of the noise.
        samples: Float32 `[n]`, 24 kHz.
        codes: Int64 `[frames, codebooks]`.
        ended: "eos" or "cap".
    """

    prompt: str
    seed: int
    samples: Samples
    codes: I64Array
    ended: Ended

    def failures(self) -> tuple[str, ...]:
        """Kinds, as the free stage finds them."""
        return failures(self.samples, self.codes, self.ended)


def stretched(samples: Samples, heard: Prosody, log_ratio: float) -> Samples:
    """With speech that takes `exp(log_ratio)` times as long, at the same pitch.

    The first and last 150 ms of it stay as they are, where a consonant more or less would count as duration.

    Args:
        samples: Float32 `[n]`, 24 kHz.
        heard: What was measured of them.
        log_ratio: Must leave something between the two ends.

    Raises `ValueError` if it does not.
    """
    beat = heard.rhythm
    kept_s = min(_KEPT_S, beat.duration_s / 4)
    start, end = (round(at_s * SAMPLE_RATE_HZ) for at_s in (beat.start_s + kept_s, beat.end_s - kept_s))
    inner_s = beat.duration_s - 2 * kept_s
    factor = 1 + beat.duration_s * math.expm1(log_ratio) / inner_s if inner_s > 0 else 0.0
    if factor <= 0:
        raise ValueError(
            f"{beat.duration_s:.2f} s of speech cannot be changed by a factor of {math.exp(log_ratio):.3f}"
        )
    with _same_noise():
        made = _praat(_sound(samples[start:end]), "Lengthen (overlap-add)", *_voice_hz(heard), factor)
    return np.concatenate([samples[:start], _samples(made), samples[end:]])


def flattened(samples: Samples, heard: Prosody, log_ratio: float) -> Samples:
    """With `exp(log_ratio)` times the F0 range, in semitones around the median: below 0 it is flatter.

    Arguments as `stretched`. At 0 the sound is made anew as well: what that alone does must not count as damage.
    """
    manipulation = _praat(_sound(samples), "To Manipulation", _POINTS_S, *_voice_hz(heard))
    tier = _praat(manipulation, "Extract pitch tier")
    points = int(_praat(tier, "Get number of points"))
    if not points:
        return samples
    median_hz = float(np.median([_praat(tier, "Get value at index", index + 1) for index in range(points)]))
    _praat(tier, "Formula", f"{median_hz!r} * (self / {median_hz!r}) ^ {math.exp(log_ratio)!r}")
    _praat([tier, manipulation], "Replace pitch tier")
    with _same_noise():
        return _samples(_praat(manipulation, "Get resynthesis (overlap-add)"))


def cut(clip: RecordedClip) -> RecordedClip:
    """Ended where the second half is loudest."""
    tail = round(TAIL_S * SAMPLE_RATE_HZ)
    power = np.convolve(np.square(clip.samples, dtype=np.float64), np.ones(tail), "valid")
    half = len(power) // 2
    end = half + int(np.argmax(power[half:])) + tail
    return replace(clip, samples=clip.samples[:end], ended="eos")


def silenced(clip: RecordedClip) -> RecordedClip:
    """With a silence in the middle that is as long as the runtime bears."""
    middle = len(clip.samples) // 2 // FRAME_SAMPLES * FRAME_SAMPLES
    silence = np.zeros((LONGEST_PAUSE_FRAMES + 1) * FRAME_SAMPLES, np.float32)
    return replace(clip, samples=np.concatenate([clip.samples[:middle], silence, clip.samples[middle:]]))


def looped(clip: RecordedClip) -> RecordedClip:
    """With its last frames said again and again."""
    period = min(MAX_PERIOD, len(clip.codes), LOOP_FRAMES // LOOP_PASSES)
    passes = -(-max(LOOP_FRAMES, LOOP_PASSES * period) // period)
    return replace(clip, codes=np.concatenate([clip.codes, *[clip.codes[-period:]] * passes]))


def endless(clip: RecordedClip) -> RecordedClip:
    """Stopped at the longest possible length, and not by itself."""
    return replace(clip, ended="cap")


BREAKS: dict[str, Callable[[RecordedClip], RecordedClip]] = {
    "runaway": endless,
    "truncated_tail": cut,
    "silent": silenced,
    "looping": looped,
}
"""By kind of failure, what makes a clip fail in just that way."""
assert BREAKS.keys() == set(FAILURES)


@dataclass(frozen=True)
class Broken:
    """Clips of which some were made to fail.

    Attributes:
        count: How many.
        detected: How many of these have the kind of failure that was made.
        measured: By metric: as a level's clips, beside the whole ones.
    """

    count: int
    detected: int
    measured: dict[str, Observations]


def broken(clips: Sequence[RecordedClip], kind: str, margin: float) -> Broken | None:
    """Make as many clips fail in one way as `fewest_new` says for a margin in percent.

    None where there are no clips. Those that fail by themselves stay what they are.
    """
    whole = [(clip, clip.failures()) for clip in by_prompts(clips)]
    healthy = [clip for clip, kinds in whole if not kinds]
    if not healthy:
        return None
    chosen = healthy[: fewest_new(len(whole), margin / 100)]
    found = {(clip.prompt, clip.seed): BREAKS[kind](clip).failures() for clip in chosen}
    rows: dict[str, list[tuple[str, int, float]]] = {}
    for clip, kinds in whole:
        after = found.get((clip.prompt, clip.seed), kinds)
        for metric, value in ANEW.values(kinds, after).items():
            rows.setdefault(metric, []).append((clip.prompt, clip.seed, value))
    detected = sum(kind in kinds for kinds in found.values())
    return Broken(len(chosen), detected, {metric: observed_once(each) for metric, each in rows.items()})


def fewest_new(clips: int, margin: float) -> int:
    """How many of so many clips must fail to be twice the margin (0 to 1), and enough to tell from it.

    The exact test of a count is taken against the margin, and what could be cured without having been seen; all clips,
    where that is not enough.
    """
    share = min(1.0, margin + 1 - _SIGNIFICANCE ** (1 / clips))
    for count in range(max(1, math.ceil(2 * margin * clips)), clips):
        tail = sum(math.comb(clips, k) * share**k * (1 - share) ** (clips - k) for k in range(count, clips + 1))
        if tail <= _SIGNIFICANCE:
            return count
    return clips


def by_prompts(clips: Sequence[RecordedClip]) -> list[RecordedClip]:
    """In an order in which all prompts come before any is there twice."""

    def turns() -> Iterator[tuple[int, str, RecordedClip]]:
        seen: dict[str, int] = {}
        for clip in sorted(clips, key=lambda clip: (clip.prompt, clip.seed)):
            seen[clip.prompt] = seen.get(clip.prompt, -1) + 1
            yield seen[clip.prompt], clip.prompt, clip

    return [clip for _, _, clip in sorted(turns(), key=lambda turn: turn[:2])]


def observed_once(rows: Sequence[tuple[str, int, float]]) -> Observations:
    """Prompt, seed and value of each clip; clips count alike."""
    prompts, seeds, values = zip(*rows, strict=True)
    return Observations(np.array(prompts), np.array(seeds), np.array(values), np.ones(len(rows)))


def _voice_hz(heard: Prosody) -> tuple[float, float]:
    """Between which F0 a voice lies, low and high."""
    voiced = heard.contours.f0_hz[heard.contours.voiced]
    if not len(voiced):
        return _ANY_VOICE_HZ
    first, third = np.percentile(voiced, [25, 75])
    return _VOICE[0] * float(first), _VOICE[1] * float(third)


@contextmanager
def _same_noise() -> Iterator[None]:
    """Praat draws where pulses lie in what is unvoiced: here always the same."""
    parselmouth.praat.run("random_initializeWithSeedUnsafelyButPredictably (0)")
    try:
        yield
    finally:
        parselmouth.praat.run("random_initializeSafelyAndUnpredictably ()")


def _sound(samples: Samples) -> Any:
    return parselmouth.Sound(samples.astype(np.float64), SAMPLE_RATE_HZ)


def _samples(sound: Any) -> Samples:
    found: Samples = np.asarray(sound.values, np.float64)[0].astype(np.float32)
    return found


def _praat(*arguments: object) -> Any:
    return parselmouth.praat.call(*arguments)
