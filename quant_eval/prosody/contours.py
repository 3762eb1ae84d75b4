"""What Praat hears in one recording: F0 and intensity over time, and the quality of the voice.

Every contour has one value for each step of 10 ms, the first at 5 ms, whatever the pitch range: contours of two
recordings can be laid on each other. Knows nothing of pauses, of pairs, or of what is good.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import MisoError
from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples, checked

try:
    import parselmouth  # type: ignore[import-not-found]
except ImportError:
    parselmouth = None

F64Array = NDArray[np.float64]

STEP_S = 0.01
STEP_SAMPLES = 240
"""Of each step: 8 steps are one frame of the codec."""

_PITCH_PERIODS = 3.0
"""Periods of the lowest F0 in Praat's analysis window. Source: Praat manual, "Sound: To Pitch (raw ac)"."""
_INTENSITY_PERIODS = 6.4
"""The same of the intensity. Source: Praat manual, "Sound: To Intensity"."""
_INTENSITY_FLOOR_HZ = 100.0
"""Praat's standard value: a window of effectively 32 ms, which shows syllables and hides single pulses."""
_MIN_VOICED_STEPS = 10
"""0.1 s. Fewer say nothing about a speaker."""
_MAX_PERIOD_FACTOR, _MAX_AMPLITUDE_FACTOR = 1.3, 1.6
_SHORTEST_PERIOD_S, _LONGEST_PERIOD_S = 0.0001, 0.02
"""Which pulses jitter and shimmer count as neighbours. Source: Praat manual, "Voice 2. Jitter", standard values."""
_HARMONICITY_SILENCE, _HARMONICITY_PERIODS = 0.1, 4.5
"""Source: Praat manual, "Sound: To Harmonicity (ac)", standard values."""
_NO_HARMONICITY_DB = -200.0
"""What Praat gives where nothing is voiced."""


@dataclass(frozen=True)
class PitchRange:
    """Where F0 is looked for, in Hz. Raises `ValueError` unless 40 <= floor < ceiling <= 1000."""

    floor_hz: float
    ceiling_hz: float

    def __post_init__(self) -> None:
        if not 40 <= self.floor_hz < self.ceiling_hz <= 1000:
            raise ValueError(
                f"a pitch range must lie in 40 to 1000 Hz, low to high, not {self.floor_hz} to {self.ceiling_hz}"
            )


WIDE_RANGE = PitchRange(60.0, 500.0)
"""All adult speakers, and octave errors with some of them."""

_FLOOR_OF_Q1, _CEILING_OF_Q3 = 0.75, 2.5
"""Of the quartiles of F0. Source: Hirst, "The analysis by synthesis of speech melody" (2011), after De Looze and Hirst
(Speech Prosody 2008): 0.75 and 1.5, and 2.5 for expressive speech."""


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


def speaker_range(samples: Samples) -> PitchRange:
    """Where this speaker's F0 lies: one pass over all of 60 to 500 Hz, then from its quartiles.

    The wide range itself if under 0.1 s is voiced. Raises `ValueError` as `contours`.
    """
    f0_hz = _f0(_whole_steps(samples), WIDE_RANGE)
    voiced = f0_hz[f0_hz > 0]
    if len(voiced) < _MIN_VOICED_STEPS:
        return WIDE_RANGE
    first, third = np.percentile(voiced, [25, 75])
    return PitchRange(max(_FLOOR_OF_Q1 * float(first), 50.0), min(_CEILING_OF_Q3 * float(third), 600.0))


def contours(samples: Samples, pitch_range: PitchRange | None = None) -> Contours:
    """F0 and intensity of a recording.

    Args:
        samples: Float32 `[n]`, mono, 24 kHz.
        pitch_range: Where to look for F0; by default `speaker_range`. Two recordings of a pair need the same one.

    Raises:
        ValueError: There are no samples, or they are not finite floats `[n]`.
    """
    whole = _whole_steps(samples)
    pitch_range = pitch_range or speaker_range(samples)
    sound = _padded(whole, _INTENSITY_PERIODS / _INTENSITY_FLOOR_HZ)
    intensity = sound.to_intensity(minimum_pitch=_INTENSITY_FLOOR_HZ, time_step=STEP_S, subtract_mean=False)
    intensity_db = np.asarray(intensity.values, np.float64).reshape(-1)
    f0_hz = _f0(whole, pitch_range)
    assert len(f0_hz) == len(intensity_db) == len(whole) // STEP_SAMPLES
    return Contours(pitch_range, f0_hz, intensity_db)


def voice_quality(samples: Samples, pitch_range: PitchRange) -> VoiceQuality:
    """Jitter, shimmer and harmonics-to-noise ratio. Arguments and errors as `contours`."""
    sound = _padded(_whole_steps(samples), _HARMONICITY_PERIODS / pitch_range.floor_hz)
    harmonicity = sound.to_harmonicity_ac(
        STEP_S, pitch_range.floor_hz, _HARMONICITY_SILENCE, _HARMONICITY_PERIODS
    ).values
    harmonicity = harmonicity[harmonicity != _NO_HARMONICITY_DB]
    pulses = parselmouth.praat.call(
        sound, "To PointProcess (periodic, cc)", pitch_range.floor_hz, pitch_range.ceiling_hz
    )
    neighbours = (0, 0, _SHORTEST_PERIOD_S, _LONGEST_PERIOD_S, _MAX_PERIOD_FACTOR)
    jitter = parselmouth.praat.call(pulses, "Get jitter (local)", *neighbours)
    shimmer = parselmouth.praat.call([sound, pulses], "Get shimmer (local)", *neighbours, _MAX_AMPLITUDE_FACTOR)
    return VoiceQuality(
        jitter_percent=_percent(jitter),
        shimmer_percent=_percent(shimmer),
        hnr_db=float(harmonicity.mean()) if len(harmonicity) >= _MIN_VOICED_STEPS else None,
    )


def _percent(fraction: float) -> float | None:
    return 100 * float(fraction) if np.isfinite(fraction) else None


def _whole_steps(samples: Samples) -> F64Array:
    """Float64, silence appended up to a whole step."""
    samples = checked(samples)
    if not len(samples):
        raise ValueError("a recording of no samples has no prosody. Give at least some tenths of a second.")
    return np.pad(samples.astype(np.float64), (0, -len(samples) % STEP_SAMPLES))


def _padded(whole: F64Array, window_s: float) -> "parselmouth.Sound":
    """As Praat's sound, in silence just wide enough that the first and last window sit on the first and last step.

    Raises `MisoError` if Praat is not installed.
    """
    if parselmouth is None:
        raise MisoError("prosody needs the package praat-parselmouth: pip install 'miso-gguf[eval]'")
    return parselmouth.Sound(np.pad(whole, round((window_s - STEP_S / 2) * SAMPLE_RATE_HZ / 2)), SAMPLE_RATE_HZ)


def _f0(whole: F64Array, pitch_range: PitchRange) -> F64Array:
    pitch = _padded(whole, _PITCH_PERIODS / pitch_range.floor_hz).to_pitch_ac(
        time_step=STEP_S, pitch_floor=pitch_range.floor_hz, pitch_ceiling=pitch_range.ceiling_hz
    )
    return np.asarray(pitch.selected_array["frequency"], np.float64)
