"""F0 over time: where to look for it, what is voiced at all, and in which octave. Knows nothing of loudness.

Passes of Praat's autocorrelation method. The first, in a range, has the best resolution in time that the range allows.
The second reaches an octave lower, for F0 that fell below the range, which the first would double. The third hears the
residual, which has no formants, and says only whether there is a voice.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples
from .sound import STEP_S, F64Array, padded, praat, whole_steps

BoolArray = NDArray[np.bool_]

_PITCH_PERIODS = 3.0
"""Periods of the lowest F0 in Praat's analysis window. Source: Praat manual, "Sound: To Pitch (raw ac)"."""
_OCTAVE_COST = 0.06
"""How much better an octave lower must fit. With Praat's standard of 0.01, a range that reaches an octave further down
halves up to 45 % of the steps of the tiny model's rough voice; from 0.03 on none, and real drops are found still."""
_VOICING_THRESHOLD = 0.38
"""Praat's standard of 0.45, less what the octave cost takes of a speaker's middle, which lies 1.3 octaves below the
ceiling: so that as much is voiced as with the standard cost."""
_MIN_VOICED_STEPS = 10
"""0.1 s. Fewer say nothing about a speaker."""
_LOWEST_HZ, _HIGHEST_HZ = 40.0, 1000.0
_LOWEST_OCTAVE_HZ = 30.0
"""Of the second pass: an octave below a low voice, in a window of 0.1 s."""

_LOW_RATE_HZ = 4000
"""For the octave and for the residual: enough of a voice's harmonics lie below 2 kHz, and it takes a quarter of the
time."""
_RESIDUAL_POLES = 8
"""Two formants lie below 2 kHz, and the voice's harmonics are strong there. Source: Markel, "The SIFT algorithm for
fundamental frequency estimation" (IEEE Trans. Audio Electroacoust. 20, 1972): linear prediction of few poles at 2 kHz
there, at twice that here, since voices are higher than his."""
_RESIDUAL_WINDOW_S, _RESIDUAL_STEP_S = 0.03, 0.005
_RESIDUAL_THRESHOLDS = {"voicing_threshold": 0.35, "silence_threshold": 0.005}
"""Praat's standards of 0.45 and 0.03 are for sounds. The residual has spikes, below which voices were taken for
silence; so set, not one of 6305 voiced steps of 38 clips is lost, and none of noise through formants of 60 Hz found."""
_NEAR_STEPS = 5
"""50 ms: the residual's window is longer than the sound's, so where its voice ends is not exact."""


@dataclass(frozen=True)
class PitchRange:
    """Where F0 is looked for, in Hz. Raises `ValueError` unless 40 <= floor < ceiling <= 1000."""

    floor_hz: float
    ceiling_hz: float

    def __post_init__(self) -> None:
        if not _LOWEST_HZ <= self.floor_hz < self.ceiling_hz <= _HIGHEST_HZ:
            raise ValueError(
                f"a pitch range must lie in 40 to 1000 Hz, low to high, not {self.floor_hz} to {self.ceiling_hz}"
            )


WIDE_RANGE = PitchRange(40.0, 800.0)
"""All speakers, an octave below low ones and an octave above high ones."""

_FLOOR_OF_Q1, _CEILING_OF_Q3 = 0.75, 2.5
"""Of the quartiles of F0. Source: Hirst, "The analysis by synthesis of speech melody" (2011), after De Looze and Hirst
(Speech Prosody 2008): 0.75 and 1.5, and 2.5 for expressive speech, which an octave upwards is within."""


@dataclass(frozen=True)
class Voice:
    """Of one recording, whatever the range: all that its F0 is found from.

    Attributes:
        whole: From `whole_steps`.
        low: The same at 4 kHz.
        is_there: Where the residual is periodic within 50 ms, bool `[steps]`.
    """

    whole: F64Array
    low: F64Array
    is_there: BoolArray


def listen(samples: Samples) -> Voice:
    """Where there is a voice. Raises `ValueError` if there are no samples, or they are not finite floats `[n]`."""
    whole = whole_steps(samples)
    low = np.asarray(soxr.resample(whole, SAMPLE_RATE_HZ, _LOW_RATE_HZ), np.float64)
    sound = padded(low, _PITCH_PERIODS / WIDE_RANGE.floor_hz, _LOW_RATE_HZ)
    poles = praat(sound, "To LPC (autocorrelation)", _RESIDUAL_POLES, _RESIDUAL_WINDOW_S, _RESIDUAL_STEP_S, 0.0)
    residual = praat([poles, sound], "Filter (inverse)")
    voiced = _frequencies(residual, WIDE_RANGE.floor_hz, WIDE_RANGE.ceiling_hz, **_RESIDUAL_THRESHOLDS) > 0
    around = np.lib.stride_tricks.sliding_window_view(np.pad(voiced, _NEAR_STEPS), 2 * _NEAR_STEPS + 1)
    return Voice(whole, low, np.asarray(around.any(axis=1)))


def range_of(*voices: Voice) -> PitchRange:
    """Where the F0 of all these recordings lies: from the lowest floor of their speakers to the highest ceiling.

    Recordings that are compared are measured within it: one that is higher or lower than the other as a whole is then
    heard as that. One with under 0.1 s of voice has no say; the wide range if none has more.
    """
    ranges = [found for found in map(_own_range, voices) if found]
    if not ranges:
        return WIDE_RANGE
    return PitchRange(min(each.floor_hz for each in ranges), max(each.ceiling_hz for each in ranges))


def f0_contour(voice: Voice, pitch_range: PitchRange) -> F64Array:
    """F0 in Hz at every step, 0 where unvoiced, float64 `[steps]`.

    From an octave below the range's floor to its ceiling. Whispering and noise are unvoiced, however narrow the
    formants.
    """
    floor_hz, ceiling_hz = pitch_range.floor_hz, pitch_range.ceiling_hz
    f0_hz = _track(voice.whole, floor_hz, ceiling_hz)
    lower_hz = _track(voice.low, max(floor_hz / 2, _LOWEST_OCTAVE_HZ), ceiling_hz, _LOW_RATE_HZ)
    f0_hz = np.where((lower_hz > 0) & (lower_hz < floor_hz), lower_hz, f0_hz)
    return f0_hz * voice.is_there


def _own_range(voice: Voice) -> PitchRange | None:
    f0_hz = _track(voice.low, WIDE_RANGE.floor_hz, WIDE_RANGE.ceiling_hz, _LOW_RATE_HZ) * voice.is_there
    voiced = f0_hz[f0_hz > 0]
    if len(voiced) < _MIN_VOICED_STEPS:
        return None
    first, third = np.percentile(voiced, [25, 75])
    return PitchRange(max(_FLOOR_OF_Q1 * float(first), _LOWEST_HZ), min(_CEILING_OF_Q3 * float(third), _HIGHEST_HZ))


def _track(whole: F64Array, floor_hz: float, ceiling_hz: float, rate_hz: int = SAMPLE_RATE_HZ) -> F64Array:
    sound = padded(whole, _PITCH_PERIODS / floor_hz, rate_hz)
    return _frequencies(sound, floor_hz, ceiling_hz, voicing_threshold=_VOICING_THRESHOLD)


def _frequencies(sound: Any, floor_hz: float, ceiling_hz: float, **thresholds: float) -> F64Array:
    pitch = sound.to_pitch_ac(
        time_step=STEP_S, pitch_floor=floor_hz, pitch_ceiling=ceiling_hz, octave_cost=_OCTAVE_COST, **thresholds
    )
    return np.asarray(pitch.selected_array["frequency"], np.float64)
