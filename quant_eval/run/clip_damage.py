"""The reference's own clips, damaged on purpose: the controls of what is measured on free runs.

Each is as the reference said it but for one thing, which one gate is there to notice. They are measured by the very
functions that measure a level's clips, so a gate that lets them pass is blind.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...core.arrays import I64Array
from ...models.mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples
from ...runtime.synthesis.stopping import LONGEST_PAUSE_FRAMES, LOOP_FRAMES, LOOP_PASSES, MAX_PERIOD
from ..metrics.failures import ANEW, FAILURES, TAIL_S, Ended, failures
from ..prosody.compare import compare_free
from ..prosody.contours import PitchRange, parselmouth, speaker_range
from ..prosody.recording import Prosody, measure
from ..stats.observations import Observations

CLIPS = 12
"""That are stretched and flattened: by the same amount each, so that a dozen is as good as a hundred."""
_SIGNIFICANCE = 0.05
_POINTS_S = 0.01
"""Of the pitch contour that is flattened. Source: Praat manual, "Sound: To Manipulation", standard value."""
_EDGE_S = 0.02


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


def stretched(samples: Samples, log_ratio: float) -> Samples:
    """As slow as `exp(log_ratio)` times, at the same pitch."""
    whole = _sound(samples)
    found = speaker_range(samples)
    made = _praat(whole, "Lengthen (overlap-add)", found.floor_hz, found.ceiling_hz, math.exp(log_ratio))
    return _samples(made)


def flattened(samples: Samples, log_ratio: float, within: PitchRange | None = None) -> Samples:
    """With `exp(log_ratio)` times the F0 range, in semitones around the median: below 0 it is flatter."""
    found = within or speaker_range(samples)
    manipulation = _praat(_sound(samples), "To Manipulation", _POINTS_S, found.floor_hz, found.ceiling_hz)
    tier = _praat(manipulation, "Extract pitch tier")
    points = int(_praat(tier, "Get number of points"))
    if not points:
        return samples
    median_hz = float(np.median([_praat(tier, "Get value at index", index + 1) for index in range(points)]))
    _praat(tier, "Formula", f"{median_hz!r} * (self / {median_hz!r}) ^ {math.exp(log_ratio)!r}")
    _praat([tier, manipulation], "Replace pitch tier")
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


class Renditions:
    """Clips beside what becomes of them when the sound of each is changed in one way."""

    def __init__(self, clips: Sequence[RecordedClip]) -> None:
        """Of `CLIPS` clips, as different prompts as there are."""
        self._clips = by_prompts(clips)[:CLIPS]
        self._measured: list[Prosody] = [measure(clip.samples) for clip in self._clips]

    def after(self, change: Callable[[Samples], Samples]) -> dict[str, Observations]:
        """By metric: `compare_free` of each changed clip with itself; empty without clips."""
        rows: dict[str, list[tuple[str, int, float]]] = {}
        for clip, reference in zip(self._clips, self._measured, strict=True):
            changed = measure(change(clip.samples), reference.contours.pitch_range)
            for metric, value in compare_free(reference, changed).items():
                rows.setdefault(metric, []).append((clip.prompt, clip.seed, value))
        return {metric: _observations(found) for metric, found in rows.items()}


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
    return Broken(len(chosen), detected, {metric: _observations(each) for metric, each in rows.items()})


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


def _observations(rows: Sequence[tuple[str, int, float]]) -> Observations:
    prompts, seeds, values = zip(*rows, strict=True)
    return Observations(np.array(prompts), np.array(seeds), np.array(values), np.ones(len(rows)))


def _sound(samples: Samples) -> "parselmouth.Sound":
    return parselmouth.Sound(samples.astype(np.float64), SAMPLE_RATE_HZ)


def _samples(sound: "parselmouth.Sound") -> Samples:
    found: Samples = np.asarray(sound.values, np.float64)[0].astype(np.float32)
    return found


def _praat(*arguments: object) -> "parselmouth.Data":
    return parselmouth.praat.call(*arguments)
