"""When something is said in one recording: the extent of speech, its pauses, its syllables.

Everything is relative to the recording's own peak level, so a gain changes nothing. Knows nothing of pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.audio.samples import Samples
from ...runtime.synthesis.stopping import SILENT_FRAME_DBFS
from .contours import Contours
from .sound import STEP_S, F64Array, centred

Mask = NDArray[np.bool_]

MIN_PAUSE_S = 0.15
"""Shorter silences are closures of plosives."""
SILENCE_BELOW_PEAK_DB = 25.0
"""Source: de Jong and Wempe, "Praat script to detect syllable nuclei" (Behavior Research Methods 41, 2009)."""
QUIETEST_DB = -80.0
"""Below the peak: a pause is no quieter than this, so that digital silence has a level. No one hears the difference."""

LOUD_DB = 10.0
"""Below the peak: what is louder is speech, whatever the noise. Between the first and the last of it lie the pauses."""
NOISE_MARGIN_DB = 3.0
"""Above a noise floor: speech that is as loud as the noise adds this much to it."""

_FLOOR_STEPS = 24
"""0.12 s without voice, and as steady as noise, show a noise floor: a pause less what its edges hide."""
_FLOOR_QUANTILE = 0.9
"""Of their levels: those of noise differ from step to step."""
_STEADY_DB = 6.0
"""From the tenth to the ninetieth percentile. Of white noise it is 1.4 dB, and of noise below 1 kHz 5 dB."""

_PEAK_QUANTILE = 0.99
"""The peak level is that of the loud steps and not of the loudest. Source: as `SILENCE_BELOW_PEAK_DB`."""
_LEVEL_STEP_S = 0.005
_LEVEL_STEP_SAMPLES = 120
"""The resolution of every length here."""
_GAP_STEPS = 6
"""30 ms: shorter silences lie between the pulses of a creaky voice."""
_BURST_STEPS = 6
"""30 ms: shorter sounds on their own are clicks."""
_EDGE_STEPS = 4
"""20 ms at either end of a pause: a voice dies away there, it is not the floor."""
_DIP_DB = 2.0
"""By how much the intensity falls on both sides of a nucleus. Source: as `SILENCE_BELOW_PEAK_DB`."""


@dataclass(frozen=True)
class Pause:
    """A silence inside speech: where it starts, how long it is, and its median level in dB relative to the peak."""

    start_s: float
    length_s: float
    level_db: float


@dataclass(frozen=True)
class Rhythm:
    """Of one recording.

    Attributes:
        start_s: Where the first sound begins.
        end_s: Where the last one ends; both 0 if there is none.
        pauses: Silences of 150 ms and more between sounds.
        nuclei_s: Where the intensity of each syllable peaks.
    """

    start_s: float
    end_s: float
    pauses: tuple[Pause, ...]
    nuclei_s: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        """Speech and pauses, without the silence around them."""
        return self.end_s - self.start_s

    @property
    def speech_s(self) -> float:
        """The same without pauses."""
        return self.duration_s - sum(pause.length_s for pause in self.pauses)


def rhythm(samples: Samples, heard: Contours) -> Rhythm:
    """When something is said.

    Args:
        samples: Float32 `[n]`, mono, 24 kHz.
        heard: Their contours.

    Raises:
        ValueError: The samples are not finite floats `[n]`.
    """
    levels = step_levels_db(samples)
    sounding = _sounding(levels, heard)
    if not sounding.any():
        return Rhythm(0.0, 0.0, (), ())
    runs = _runs(sounding)
    inside = [run for run in _runs(~sounding) if runs[0][0] < run[0] < runs[-1][1]]
    pauses = tuple(
        _pause(levels, first, after) for first, after in inside if (after - first) * _LEVEL_STEP_S >= MIN_PAUSE_S - 1e-9
    )
    return Rhythm(runs[0][0] * _LEVEL_STEP_S, runs[-1][1] * _LEVEL_STEP_S, pauses, _nuclei(heard))


def step_levels_db(samples: Samples) -> F64Array:
    """RMS of each 5 ms in dB relative to full scale, without an offset; the last step is filled up with silence.

    -160 for silence. Raises `ValueError` if they are not finite floats `[n]`.
    """
    padded = np.pad(centred(samples), (0, -len(samples) % _LEVEL_STEP_SAMPLES))
    power = np.square(padded).reshape(-1, _LEVEL_STEP_SAMPLES).mean(axis=1)
    return np.asarray(10 * np.log10(np.maximum(power, 1e-16)))


def peak_level_db(levels: F64Array) -> float:
    """The level that the loudest hundredth of the steps `[n]` reaches; -160 without steps."""
    return float(np.quantile(levels, _PEAK_QUANTILE)) if len(levels) else -160.0


def _sounding(levels: F64Array, heard: Contours) -> Mask:
    """Which steps belong to a sound. Gaps are closed before bursts are dropped, or a creaky voice would be one."""
    peak = peak_level_db(levels)
    if peak < SILENT_FRAME_DBFS:
        return np.zeros(len(levels), np.bool_)
    sounding = levels >= _thresholds_db(levels, heard, peak)
    for first, after in _runs(~sounding):
        if first > 0 and after < len(sounding) and after - first < _GAP_STEPS:
            sounding[first:after] = True
    for first, after in _runs(sounding):
        if after - first < _BURST_STEPS:
            sounding[first:after] = False
    return sounding


def _thresholds_db(levels: F64Array, heard: Contours, peak: float) -> F64Array:
    """What counts as sound at each step: 25 dB below the peak, or what stands out of the noise if that is louder.

    Before speech, within it, and after it noise is looked for by itself: recordings are faded and padded.
    """
    loud = np.flatnonzero(levels >= peak - LOUD_DB)
    parts = [slice(0, loud[0]), slice(loud[0], loud[-1] + 1), slice(loud[-1] + 1, len(levels))]
    voiced = np.repeat(heard.voiced, round(STEP_S / _LEVEL_STEP_S))[: len(levels)]
    floors = [_noise_floor_db(levels[part], voiced[part]) for part in parts]
    thresholds = np.full(len(levels), peak - SILENCE_BELOW_PEAK_DB)
    for part, floor in zip(parts, floors, strict=True):
        known = floors[1] if floor is None else floor  # what is too short to show one has that of the pauses
        if known is not None and known + NOISE_MARGIN_DB <= peak - LOUD_DB:
            thresholds[part] = np.maximum(thresholds[part], known + NOISE_MARGIN_DB)
    return thresholds


def _noise_floor_db(levels: F64Array, voiced: Mask) -> float | None:
    """The level of the quietest noise among them; None if there is none."""
    if len(levels) < _FLOOR_STEPS:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(levels, _FLOOR_STEPS)
    low, high = np.quantile(windows, [1 - _FLOOR_QUANTILE, _FLOOR_QUANTILE], axis=1)
    counts = np.concatenate([[0], np.cumsum(voiced)])
    is_noise = (counts[_FLOOR_STEPS:] == counts[:-_FLOOR_STEPS]) & (high - low <= _STEADY_DB)
    return float(high[is_noise].min()) if is_noise.any() else None


def _runs(mask: Mask) -> list[tuple[int, int]]:
    """Where it is true: (first, after the last) of each stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(after)) for first, after in edges.reshape(-1, 2)]


def _pause(levels: F64Array, first: int, after: int) -> Pause:
    floor = float(np.median(levels[first + _EDGE_STEPS : after - _EDGE_STEPS])) - peak_level_db(levels)
    return Pause(first * _LEVEL_STEP_S, (after - first) * _LEVEL_STEP_S, max(floor, QUIETEST_DB))


def _nuclei(heard: Contours) -> tuple[float, ...]:
    """Voiced peaks of the intensity within 25 dB of its peak, with a dip of 2 dB on either side.

    Source: de Jong and Wempe (2009).
    """
    level = heard.intensity_db
    threshold = peak_level_db(level) - SILENCE_BELOW_PEAK_DB
    found: list[int] = []
    peak, dip = 0, 0
    rising = True
    for step in range(len(level)):
        if rising:
            if level[step] > level[peak]:
                peak = step
            elif level[step] <= level[peak] - _DIP_DB:
                found.append(peak)
                rising, dip = False, step
        elif level[step] < level[dip]:
            dip = step
        elif level[step] >= level[dip] + _DIP_DB:
            rising, peak = True, step
    if rising and len(level):
        found.append(peak)  # silence follows the end
    return tuple((step + 0.5) * STEP_S for step in found if level[step] >= threshold and heard.voiced[step])
