"""What Praat hears in one recording: F0 and intensity over time, and the quality of the voice.

Every contour has one value for each step of 10 ms, the first at 5 ms, whatever the pitch range: contours of two
recordings can be laid on each other. Knows nothing of pauses, of pairs, or of what is good.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.audio.samples import Samples
from .pitch import PitchRange, Voice, f0_contour, listen, range_of
from .sound import STEP_S, STEP_SAMPLES, F64Array, padded, praat, whole_steps

_INTENSITY_PERIODS = 6.4
"""The same of the intensity. Source: Praat manual, "Sound: To Intensity"."""
_INTENSITY_FLOOR_HZ = 100.0
"""Praat's standard value: a window of effectively 32 ms, which shows syllables and hides single pulses."""
_MIN_VOICED_S = 0.1
"""Less says nothing about a voice."""
_MAX_PERIOD_FACTOR, _MAX_AMPLITUDE_FACTOR = 1.3, 1.6
_SHORTEST_PERIOD_S, _LONGEST_PERIOD_S = 0.0001, 0.02
"""Which pulses jitter and shimmer count as neighbours. Source: Praat manual, "Voice 2. Jitter", standard values."""
_HARMONICITY_SILENCE, _HARMONICITY_PERIODS = 0.1, 4.5
"""Source: Praat manual, "Sound: To Harmonicity (ac)", standard values."""
_HARMONICITY_STEP_S = 0.02
"""Twice that of the contours: only the mean is taken, and nothing else here takes as long."""
_NO_HARMONICITY_DB = -200.0
"""What Praat gives where nothing is voiced."""


@dataclass(frozen=True)
class Contours:
    """Of one recording; all arrays are float64 `[steps]`.

    Attributes:
        pitch_range: In which F0 was looked for.
        f0_hz: Praat's autocorrelation method; 0 where unvoiced.
        intensity_db: Praat's intensity: mean square under a Kaiser window, dB relative to 2e-5 of full scale.
    """

    pitch_range: PitchRange
    f0_hz: F64Array
    intensity_db: F64Array

    @property
    def steps(self) -> int:
        """How many steps of 10 ms; the last may be partly silence that was appended."""
        return len(self.f0_hz)

    @property
    def voiced(self) -> NDArray[np.bool_]:
        """Where there is an F0, bool `[steps]`."""
        return self.f0_hz > 0


@dataclass(frozen=True)
class VoiceQuality:
    """Praat's measures of the whole recording; None where too little is voiced.

    Attributes:
        jitter_percent: Local: mean difference of successive periods, over the mean period.
        shimmer_percent: Local: the same of the pulses' amplitudes.
        hnr_db: Mean harmonics-to-noise ratio where voiced.
    """

    jitter_percent: float | None
    shimmer_percent: float | None
    hnr_db: float | None


def contours(samples: Samples, pitch_range: PitchRange | None = None) -> Contours:
    """F0 and intensity of a recording.

    Args:
        samples: Float32 `[n]`, mono, 24 kHz.
        pitch_range: Where to look for F0; by default `range_of` this one. Those that are compared need the same one:
            see `contours_of_both`.

    Raises:
        ValueError: There are no samples, or they are not finite floats `[n]`.
    """
    voice = listen(samples)
    return _contours(voice, pitch_range or range_of(voice))


def contours_of_both(first: Samples, second: Samples) -> tuple[Contours, Contours]:
    """Those of two recordings that are compared, within the range of both. Raises as `contours`."""
    voices = listen(first), listen(second)
    pitch_range = range_of(*voices)
    return _contours(voices[0], pitch_range), _contours(voices[1], pitch_range)


def _contours(voice: Voice, pitch_range: PitchRange) -> Contours:
    sound = padded(voice.whole, _INTENSITY_PERIODS / _INTENSITY_FLOOR_HZ)
    intensity = sound.to_intensity(minimum_pitch=_INTENSITY_FLOOR_HZ, time_step=STEP_S, subtract_mean=False)
    intensity_db = np.asarray(intensity.values, np.float64).reshape(-1)
    f0_hz = f0_contour(voice, pitch_range)
    assert len(f0_hz) == len(intensity_db) == len(voice.whole) // STEP_SAMPLES
    return Contours(pitch_range, f0_hz, intensity_db)


def voice_quality(samples: Samples, pitch_range: PitchRange) -> VoiceQuality:
    """Jitter, shimmer and harmonics-to-noise ratio. Arguments and errors as `contours`."""
    sound = padded(whole_steps(samples), _HARMONICITY_PERIODS / pitch_range.floor_hz)
    harmonicity = sound.to_harmonicity_ac(
        _HARMONICITY_STEP_S, pitch_range.floor_hz, _HARMONICITY_SILENCE, _HARMONICITY_PERIODS
    ).values
    harmonicity = harmonicity[harmonicity != _NO_HARMONICITY_DB]
    pulses = praat(sound, "To PointProcess (periodic, cc)", pitch_range.floor_hz, pitch_range.ceiling_hz)
    neighbours = (0, 0, _SHORTEST_PERIOD_S, _LONGEST_PERIOD_S, _MAX_PERIOD_FACTOR)
    jitter = praat(pulses, "Get jitter (local)", *neighbours)
    shimmer = praat([sound, pulses], "Get shimmer (local)", *neighbours, _MAX_AMPLITUDE_FACTOR)
    return VoiceQuality(
        jitter_percent=_percent(jitter),
        shimmer_percent=_percent(shimmer),
        hnr_db=float(harmonicity.mean()) if len(harmonicity) * _HARMONICITY_STEP_S >= _MIN_VOICED_S else None,
    )


def _percent(fraction: float) -> float | None:
    return 100 * float(fraction) if np.isfinite(fraction) else None
