"""The prosody of one recording, and how that of another differs: melody, loudness, rhythm, pauses, voice.

`measure` a reference, `measure` the other one within the reference's pitch range, and compare them: frame by frame
where they were decoded from aligned frames (`compare_aligned`), or as two renditions of one text (`compare_free`). The
keys and signs are those of `metrics.METRICS`. A metric that has no value, because nothing is voiced or there is no
pause, is absent: never NaN. A recording against itself gives exact zeros, and exactly 1 for the correlation.
"""

import math
from dataclasses import dataclass

import numpy as np

from ...core.arrays import I64Array
from ...runtime.audio.samples import Samples
from .alignment import distortion_db, mel_cepstra, warp
from .contours import STEP_S, Contours, F64Array, PitchRange, VoiceQuality, contours, voice_quality
from .rhythm import Rhythm, rhythm

GROSS_CENTS = 200.0
"""A jointly voiced step that is further off is a gross pitch error."""
MIN_JOINT_STEPS = 10
"""0.1 s: fewer jointly voiced steps have no F0 error, and fewer voiced ones no median and no range."""
MIN_RANGE_SEMITONES = 0.5
"""Of a reference: a narrower F0 range is a monotone, and its loss means nothing."""
FLAT_SEMITONES = 0.1
"""A narrower F0 range counts as this, so that entirely flat speech has a finite loss."""
ENERGY_RANGE_DB = 40.0
"""Below the recording's own mean level: what is quieter counts as this quiet."""


@dataclass(frozen=True)
class Prosody:
    """Of one recording. What has no value is None.

    Attributes:
        contours: F0 and intensity, a value every 10 ms.
        rhythm: Speech, pauses and syllables.
        voice: Jitter, shimmer and harmonics-to-noise ratio.
        cepstra: From `mel_cepstra`, float64 `[steps, 14]`.
    """

    contours: Contours
    rhythm: Rhythm
    voice: VoiceQuality
    cepstra: F64Array

    @property
    def f0_median_hz(self) -> float | None:
        """Median F0 over voiced steps."""
        voiced = self._voiced_hz()
        return float(np.median(voiced)) if len(voiced) else None

    @property
    def f0_range_semitones(self) -> float | None:
        """From the 5th to the 95th percentile of F0 over voiced steps."""
        voiced = self._voiced_hz()
        if not len(voiced):
            return None
        low, high = np.percentile(voiced, [5, 95])
        return 12 * math.log2(high / low)

    @property
    def speech_rate(self) -> float | None:
        """Syllable nuclei a second of speech, pauses not counted; None if there are none."""
        nuclei = len(self.rhythm.nuclei_s)
        return nuclei / self.rhythm.speech_s if nuclei else None

    @property
    def pause_rate(self) -> float | None:
        """Pauses of 150 ms and more a second of speech, pauses not counted; None without speech."""
        return len(self.rhythm.pauses) / self.rhythm.speech_s if self.rhythm.speech_s else None

    @property
    def pause_mean_s(self) -> float | None:
        """Mean length of these pauses."""
        pauses = self.rhythm.pauses
        return sum(pause.length_s for pause in pauses) / len(pauses) if pauses else None

    @property
    def pause_floor_db(self) -> float | None:
        """Level in the pauses relative to the peak level: each one's median, then their mean weighted by length."""
        pauses = self.rhythm.pauses
        if not pauses:
            return None
        return sum(pause.level_db * pause.length_s for pause in pauses) / sum(pause.length_s for pause in pauses)

    def scalars(self) -> dict[str, float]:
        """All single numbers, each with its unit in the name; those without a value are absent."""
        values = {
            "duration_s": self.rhythm.duration_s,
            "speech_s": self.rhythm.speech_s,
            "voiced_s": float(self.contours.voiced.sum() * STEP_S),
            "f0_median_hz": self.f0_median_hz,
            "f0_range_semitones": self.f0_range_semitones,
            "syllables": float(len(self.rhythm.nuclei_s)),
            "speech_rate_hz": self.speech_rate,
            "pauses": float(len(self.rhythm.pauses)),
            "pause_rate_hz": self.pause_rate,
            "pause_mean_s": self.pause_mean_s,
            "pause_floor_db": self.pause_floor_db,
            "jitter_percent": self.voice.jitter_percent,
            "shimmer_percent": self.voice.shimmer_percent,
            "hnr_db": self.voice.hnr_db,
        }
        return _present(values)

    def _voiced_hz(self) -> F64Array:
        voiced = self.contours.f0_hz[self.contours.voiced]
        return voiced if len(voiced) >= MIN_JOINT_STEPS else voiced[:0]


def measure(samples: Samples, pitch_range: PitchRange | None = None) -> Prosody:
    """The prosody of a recording.

    Args:
        samples: Float32 `[n]`, mono, 24 kHz.
        pitch_range: Where F0 is looked for. By default the speaker's own; the other recording of a pair needs the
            reference's. An F0 more than a quarter below the reference's lower quartile is then not found.

    Raises:
        ValueError: There are no samples, or they are not finite floats `[n]`.
    """
    heard = contours(samples, pitch_range)
    return Prosody(heard, rhythm(samples, heard), voice_quality(samples, heard.pitch_range), mel_cepstra(samples))


def compare_aligned(reference: Contours, test: Contours) -> dict[str, float]:
    """How two recordings differ that are aligned frame by frame. Needs contours only, which cost little.

    - lf0_rmse: RMS of 1200 log2(F0 / reference's) over the steps where both are voiced, cents.
    - lf0_corr: Pearson correlation of log F0 over these steps; absent where one of them is constant.
    - vuv_error: steps voiced in one and not in the other, % of all steps.
    - gross_pitch_error: jointly voiced steps more than 200 cents off, % of these.
    - energy_rmse: RMS difference of the intensities, each relative to its own mean power and no lower than 40 dB below
      it, over the steps where either is above that, dB.

    Raises:
        ValueError: They differ in length or in pitch range.
    """
    _check_range(reference, test)
    if reference.steps != test.steps:
        raise ValueError(
            f"aligned recordings must be equally long, not {reference.steps} and {test.steps} steps of 10 ms. "
            "Use compare_free for renditions of their own timing."
        )
    both = reference.voiced & test.voiced
    first, second = np.log2(reference.f0_hz[both]), np.log2(test.f0_hz[both])
    values = {
        "lf0_rmse": _rms_cents(first, second),
        "lf0_corr": _correlation(first, second),
        "vuv_error": 100 * float((reference.voiced != test.voiced).mean()),
        "gross_pitch_error": (
            100 * float((1200 * np.abs(second - first) > GROSS_CENTS).mean()) if len(first) >= MIN_JOINT_STEPS else None
        ),
        "energy_rmse": _energy_rmse(reference.intensity_db, test.intensity_db),
    }
    return _present(values)


def compare_free(reference: Prosody, test: Prosody) -> dict[str, float]:
    """How two renditions of one text differ.

    - dur_ratio: ln(duration / reference's), from the first sound to the last.
    - f0_range: ln of the ratio of the F0 ranges in semitones, 5th to 95th percentile; below 0 is flattened. Absent if
      the reference is a monotone.
    - f0_median: 1200 log2 of the ratio of the medians, cents.
    - speech_rate: ln of the ratio of syllable nuclei a second of speech, without pauses.
    - pause_rate: difference of pauses a second of speech, without pauses, 1/s.
    - pause_mean, pause_floor: difference of the pauses' mean length, s, and of the level in them relative to each
      recording's peak level, dB. Absent unless both have pauses.
    - lf0_rmse_dtw: lf0_rmse along the path of `warp`, cents.
    - mcd: mel-cepstral distortion along it, over the pairs that are sounding in both, dB.
    - jitter, shimmer, hnr: differences, %, %, dB.

    Raises:
        ValueError: They differ in pitch range.
    """
    _check_range(reference.contours, test.contours)
    path = _path(reference, test)
    values = {
        "dur_ratio": _log_ratio(reference.rhythm.duration_s, test.rhythm.duration_s),
        "f0_range": _range_ratio(reference.f0_range_semitones, test.f0_range_semitones),
        "f0_median": _cents(reference.f0_median_hz, test.f0_median_hz),
        "speech_rate": _log_ratio(reference.speech_rate, test.speech_rate),
        "pause_rate": _difference(reference.pause_rate, test.pause_rate),
        "pause_mean": _difference(reference.pause_mean_s, test.pause_mean_s),
        "pause_floor": _difference(reference.pause_floor_db, test.pause_floor_db),
        "lf0_rmse_dtw": _warped_rmse(reference.contours, test.contours, path),
        "mcd": distortion_db(reference.cepstra, test.cepstra, _where_sounding(reference, test, path)),
        "jitter": _difference(reference.voice.jitter_percent, test.voice.jitter_percent),
        "shimmer": _difference(reference.voice.shimmer_percent, test.voice.shimmer_percent),
        "hnr": _difference(reference.voice.hnr_db, test.voice.hnr_db),
    }
    return _present(values)


def _check_range(reference: Contours, test: Contours) -> None:
    if reference.pitch_range != test.pitch_range:
        raise ValueError(
            f"F0 was looked for in {reference.pitch_range} and in {test.pitch_range}: "
            "measure the second recording within the pitch range of the first"
        )


def _path(reference: Prosody, test: Prosody) -> I64Array:
    """Pairs of steps, from the first sound to the last; empty where one is silent."""
    first, second = _extent(reference), _extent(test)
    if first.start == first.stop or second.start == second.stop:
        return np.zeros((0, 2), np.int64)
    path = warp(reference.cepstra[first], test.cepstra[second])
    return np.asarray(path + np.array([first.start, second.start]))


def _extent(prosody: Prosody) -> slice:
    return slice(math.floor(prosody.rhythm.start_s / STEP_S + 0.01), math.ceil(prosody.rhythm.end_s / STEP_S - 0.01))


def _where_sounding(reference: Prosody, test: Prosody, path: I64Array) -> I64Array:
    """The pairs that lie in no pause."""
    keep = np.ones(len(path), np.bool_)
    for column, prosody in enumerate((reference, test)):
        middle_s = (path[:, column] + 0.5) * STEP_S
        for pause in prosody.rhythm.pauses:
            keep &= (middle_s < pause.start_s) | (middle_s >= pause.start_s + pause.length_s)
    return path[keep]


def _warped_rmse(reference: Contours, test: Contours, path: I64Array) -> float | None:
    first, second = reference.f0_hz[path[:, 0]], test.f0_hz[path[:, 1]]
    both = (first > 0) & (second > 0)
    return _rms_cents(np.log2(first[both]), np.log2(second[both]))


def _rms_cents(first: F64Array, second: F64Array) -> float | None:
    """Of log2 F0 where both are voiced."""
    return 1200 * float(np.sqrt(np.square(second - first).mean())) if len(first) >= MIN_JOINT_STEPS else None


def _correlation(first: F64Array, second: F64Array) -> float | None:
    if len(first) < MIN_JOINT_STEPS:
        return None
    first, second = first - first.mean(), second - second.mean()
    # Sums and not dot products, which may round by where an array lies: equal contours must give exactly 1.
    spreads = float(np.square(first).sum()), float(np.square(second).sum())
    one_cent = len(first) / 1200**2
    if min(spreads) < one_cent:
        return None
    return float((first * second).sum()) / math.sqrt(spreads[0] * spreads[1])


def _energy_rmse(first_db: F64Array, second_db: F64Array) -> float | None:
    relative = []
    for level_db in (first_db, second_db):
        mean_power = float(np.power(10, level_db / 10).mean())
        if mean_power < _INAUDIBLE_POWER:
            return None
        relative.append(np.maximum(level_db - 10 * math.log10(mean_power), -ENERGY_RANGE_DB))
    heard = (relative[0] > -ENERGY_RANGE_DB) | (relative[1] > -ENERGY_RANGE_DB)
    return float(np.sqrt(np.square(relative[1] - relative[0])[heard].mean()))


_INAUDIBLE_POWER = 1.0
"""Of Praat's intensity, whose 0 dB are the threshold of hearing; full scale is at about 91 dB."""


def _log_ratio(reference: float | None, test: float | None) -> float | None:
    return math.log(test / reference) if reference and test else None


def _range_ratio(reference: float | None, test: float | None) -> float | None:
    if reference is None or test is None or reference < MIN_RANGE_SEMITONES:
        return None
    return math.log(max(test, FLAT_SEMITONES) / reference)


def _cents(reference: float | None, test: float | None) -> float | None:
    return 1200 * math.log2(test / reference) if reference and test else None


def _difference(reference: float | None, test: float | None) -> float | None:
    return None if reference is None or test is None else test - reference


def _present(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
