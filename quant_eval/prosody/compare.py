"""How the prosody of a recording differs from that of another: melody, loudness, rhythm, pauses, voice.

`measure_both` within the pitch range of both, and compare them: frame by frame where they were decoded from aligned
frames (`compare_aligned`), or as two renditions of one text (`compare_free`). A metric that has no value, because
nothing is voiced or there is no pause, is absent: never NaN. A recording against itself gives exact zeros, and exactly
1 for the correlation.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...core.arrays import I64Array
from ..metric import DIFFERENCE, DISTANCE, FREE, ONE_STEP, SHARE, Family
from .cepstra import distortion_db
from .contours import Contours
from .recording import Prosody
from .sound import STEP_S, F64Array
from .warping import warp

GROSS_CENTS = 200.0
"""A jointly voiced step that is further off is a gross pitch error, and is left out of the F0 error: a single octave
error in 250 steps would be 76 cents of RMS, and hide all that is fine."""
MIN_JOINT_STEPS = 10
"""0.1 s: fewer jointly voiced steps have no F0 error."""
MIN_RANGE_SEMITONES = 0.5
"""Of a reference: a narrower F0 range is a monotone, and its loss means nothing."""
FLAT_SEMITONES = 0.1
"""A narrower F0 range counts as this, so that entirely flat speech has a finite loss."""
ENERGY_RANGE_DB = 40.0
"""Below the recording's own mean level: what is quieter counts as this quiet."""

ALIGNED = Family(ONE_STEP, is_per_frame=True)
"""Of the contours of two recordings that were decoded from aligned frames."""
RENDITIONS = Family(FREE)
"""Of two renditions of one text, each with its own timing: melody, rhythm, sound."""
VOICES = Family(FREE)
"""Of the voices of two renditions."""


def compare_aligned(reference: Contours, test: Contours) -> dict[str, float]:
    """`ALIGNED`, by key. Raises `ValueError` if they differ in length or in pitch range."""
    _check_range(reference, test)
    if reference.steps != test.steps:
        raise ValueError(
            f"aligned recordings must be equally long, not {reference.steps} and {test.steps} steps of 10 ms. "
            "Use compare_free for renditions of their own timing."
        )
    return ALIGNED.values(reference, test)


def compare_free(reference: Prosody, test: Prosody) -> dict[str, float]:
    """`RENDITIONS` and `VOICES`, by key. Raises `ValueError` if they differ in pitch range."""
    _check_range(reference.contours, test.contours)
    pair = Pair(reference, test)
    return {**RENDITIONS.values(pair), **VOICES.values(pair)}


def _check_range(reference: Contours, test: Contours) -> None:
    if reference.pitch_range != test.pitch_range:
        raise ValueError(
            f"F0 was looked for in {reference.pitch_range} and in {test.pitch_range}: "
            "measure both recordings within one range, with measure_both or contours_of_both"
        )


@ALIGNED.metric(
    "F0 error",
    "cents",
    "lower",
    (0.0, GROSS_CENTS),
    "RMS of 1200 log2(F0 ratio) where both are voiced, frame-aligned, without gross pitch errors.",
    digits=1,
)
def lf0_rmse(reference: Contours, test: Contours) -> float | None:
    """Absent below `MIN_JOINT_STEPS` of such."""
    return _fine_error(*_jointly_voiced(reference, test))


@ALIGNED.metric(
    "F0 correlation",
    "",
    "higher",
    (-1.0, 1.0),
    "Pearson correlation of log F0 where both are voiced.",
    ideal=1.0,
    digits=3,
)
def lf0_corr(reference: Contours, test: Contours) -> float | None:
    """Of all of them; absent below `MIN_JOINT_STEPS`, and where one of the two is a monotone."""
    first, second = _jointly_voiced(reference, test)
    if len(first) < MIN_JOINT_STEPS:
        return None
    first, second = first - first.mean(), second - second.mean()
    # Sums and not dot products, which may round by where an array lies: equal contours must give exactly 1.
    spreads = float(np.square(first).sum()), float(np.square(second).sum())
    one_cent = len(first) / 1200**2
    if min(spreads) < one_cent:
        return None
    return float((first * second).sum()) / math.sqrt(spreads[0] * spreads[1])


@ALIGNED.metric("Voicing error", "%", "lower", SHARE, "Steps of 10 ms voiced in only one of the two, of all.")
def vuv_error(reference: Contours, test: Contours) -> float:
    """Always there."""
    return 100 * float((reference.voiced != test.voiced).mean())


@ALIGNED.metric("Gross pitch error", "%", "lower", SHARE, "Jointly voiced steps more than 200 cents off.")
def gross_pitch_error(reference: Contours, test: Contours) -> float | None:
    """Absent below `MIN_JOINT_STEPS`."""
    first, second = _jointly_voiced(reference, test)
    if len(first) < MIN_JOINT_STEPS:
        return None
    return 100 * float((1200 * np.abs(second - first) > GROSS_CENTS).mean())


@ALIGNED.metric(
    "Energy error",
    "dB",
    "lower",
    DISTANCE,
    "RMS difference of intensity, each relative to its own mean power, down to 40 dB below it.",
)
def energy_rmse(reference: Contours, test: Contours) -> float | None:
    """Over the steps where either is above that; absent if one cannot be heard."""
    relative = []
    for level_db in (reference.intensity_db, test.intensity_db):
        mean_power = float(np.power(10, level_db / 10).mean())
        if mean_power < _INAUDIBLE_POWER:
            return None
        relative.append(np.maximum(level_db - 10 * math.log10(mean_power), -ENERGY_RANGE_DB))
    heard = (relative[0] > -ENERGY_RANGE_DB) | (relative[1] > -ENERGY_RANGE_DB)
    return float(np.sqrt(np.square(relative[1] - relative[0])[heard].mean()))


_INAUDIBLE_POWER = 1.0
"""Of Praat's intensity, whose 0 dB are the threshold of hearing; full scale is at about 91 dB."""


def _jointly_voiced(reference: Contours, test: Contours) -> tuple[F64Array, F64Array]:
    """log2 F0 of both where both are voiced."""
    both = reference.voiced & test.voiced
    return np.log2(reference.f0_hz[both]), np.log2(test.f0_hz[both])


@dataclass(frozen=True)
class Pair:
    """Two renditions of one text, within one pitch range."""

    reference: Prosody
    test: Prosody

    @cached_property
    def path(self) -> I64Array:
        """Pairs of steps, from the first sound to the last, along `warp`; empty where one is silent."""
        first, second = _extent(self.reference), _extent(self.test)
        if first.start == first.stop or second.start == second.stop:
            return np.zeros((0, 2), np.int64)
        path = warp(self.reference.cepstra[first], self.test.cepstra[second])
        return np.asarray(path + np.array([first.start, second.start]))

    def sounding(self) -> I64Array:
        """Those pairs of the path that lie in no pause."""
        keep = np.ones(len(self.path), np.bool_)
        for column, prosody in enumerate((self.reference, self.test)):
            middle_s = (self.path[:, column] + 0.5) * STEP_S
            for pause in prosody.rhythm.pauses:
                keep &= (middle_s < pause.start_s) | (middle_s >= pause.start_s + pause.length_s)
        return self.path[keep]


def _extent(prosody: Prosody) -> slice:
    return slice(math.floor(prosody.rhythm.start_s / STEP_S + 0.01), math.ceil(prosody.rhythm.end_s / STEP_S - 0.01))


@RENDITIONS.metric(
    "Duration",
    "ln",
    "zero",
    DIFFERENCE,
    "ln(duration / reference's), of speech and pauses, without outer silence.",
    digits=3,
)
def dur_ratio(pair: Pair) -> float | None:
    """From the first sound to the last."""
    return _log_ratio(pair.reference.rhythm.duration_s, pair.test.rhythm.duration_s)


@RENDITIONS.metric(
    "F0 range",
    "ln",
    "zero",
    DIFFERENCE,
    "ln of the ratio of the F0 ranges (5th to 95th percentile, in semitones); below 0 is flattened.",
    digits=3,
)
def f0_range(pair: Pair) -> float | None:
    """Absent if the reference is a monotone."""
    reference, test = pair.reference.f0_range_semitones, pair.test.f0_range_semitones
    if reference is None or test is None or reference < MIN_RANGE_SEMITONES:
        return None
    return math.log(max(test, FLAT_SEMITONES) / reference)


@RENDITIONS.metric("F0 median", "cents", "zero", DIFFERENCE, "1200 log2 of the ratio of median F0.", digits=1)
def f0_median(pair: Pair) -> float | None:
    """Absent where one is unvoiced."""
    reference, test = pair.reference.f0_median_hz, pair.test.f0_median_hz
    return 1200 * math.log2(test / reference) if reference and test else None


@RENDITIONS.metric(
    "Speech rate", "ln", "zero", DIFFERENCE, "ln of the ratio of syllables a second, pauses not counted.", digits=3
)
def speech_rate(pair: Pair) -> float | None:
    """Syllables are counted by their nuclei."""
    return _log_ratio(pair.reference.speech_rate, pair.test.speech_rate)


@RENDITIONS.metric(
    "Pause rate",
    "1/s",
    "zero",
    DIFFERENCE,
    "Difference of pauses of 150 ms and more, a second of speech without pauses.",
    digits=3,
)
def pause_rate(pair: Pair) -> float | None:
    """Absent without speech."""
    return _difference(pair.reference.pause_rate, pair.test.pause_rate)


@RENDITIONS.metric("Pause length", "s", "zero", DIFFERENCE, "Difference of the mean length of pauses.", digits=3)
def pause_mean(pair: Pair) -> float | None:
    """Absent unless both have pauses, as the next."""
    return _difference(pair.reference.pause_mean_s, pair.test.pause_mean_s)


@RENDITIONS.metric(
    "Pause floor",
    "dB",
    "lower",
    DIFFERENCE,
    "Difference of the level in pauses, relative to each clip's peak level.",
    digits=1,
)
def pause_floor(pair: Pair) -> float | None:
    """Less of it is better, and it can be negative."""
    return _difference(pair.reference.pause_floor_db, pair.test.pause_floor_db)


@RENDITIONS.metric(
    "F0 error, warped",
    "cents",
    "lower",
    (0.0, GROSS_CENTS),
    "lf0_rmse after dynamic time warping of MFCCs.",
    digits=1,
)
def lf0_rmse_dtw(pair: Pair) -> float | None:
    """Along the pair's path."""
    first = pair.reference.contours.f0_hz[pair.path[:, 0]]
    second = pair.test.contours.f0_hz[pair.path[:, 1]]
    both = (first > 0) & (second > 0)
    return _fine_error(np.log2(first[both]), np.log2(second[both]))


@RENDITIONS.metric("Mel-cepstral distortion", "dB", "lower", DISTANCE, "After time warping, outside pauses; not gated.")
def mcd(pair: Pair) -> float | None:
    """Along the pair's path, over what sounds in both."""
    return distortion_db(pair.reference.cepstra, pair.test.cepstra, pair.sounding())


DISTORTION = RENDITIONS["mcd"]
"""How much a clip's sound differs: the worst clips are found by it."""
DURATION, RANGE = RENDITIONS["dur_ratio"], RENDITIONS["f0_range"]
"""Whose gates are shown clips that were stretched, and flattened."""


@VOICES.metric("Jitter", "%", "zero", DIFFERENCE, "Difference of Praat's local jitter; not gated.")
def jitter(pair: Pair) -> float | None:
    """Absent where Praat finds none, as the others."""
    return _difference(pair.reference.voice.jitter_percent, pair.test.voice.jitter_percent)


@VOICES.metric("Shimmer", "%", "zero", DIFFERENCE, "Difference of Praat's local shimmer; not gated.")
def shimmer(pair: Pair) -> float | None:
    """See `jitter`."""
    return _difference(pair.reference.voice.shimmer_percent, pair.test.voice.shimmer_percent)


@VOICES.metric("HNR", "dB", "zero", DIFFERENCE, "Difference of the mean harmonics-to-noise ratio; not gated.", digits=1)
def hnr(pair: Pair) -> float | None:
    """See `jitter`."""
    return _difference(pair.reference.voice.hnr_db, pair.test.voice.hnr_db)


def _fine_error(first: F64Array, second: F64Array) -> float | None:
    """In cents, of log2 F0 where both are voiced, without gross errors."""
    cents = 1200 * (second - first)
    fine = cents[np.abs(cents) <= GROSS_CENTS]
    return float(np.sqrt(np.square(fine).mean())) if len(fine) >= MIN_JOINT_STEPS else None


def _log_ratio(reference: float | None, test: float | None) -> float | None:
    return math.log(test / reference) if reference and test else None


def _difference(reference: float | None, test: float | None) -> float | None:
    return None if reference is None or test is None else test - reference
