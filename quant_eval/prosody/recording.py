"""The prosody of one recording: melody, loudness, rhythm, pauses, voice. Compares nothing."""

import math
from dataclasses import dataclass

import numpy as np

from ...runtime.audio.samples import Samples
from .cepstra import mel_cepstra
from .contours import Contours, VoiceQuality, contours, contours_of_both, voice_quality
from .pitch import PitchRange
from .rhythm import Rhythm, rhythm
from .sound import STEP_S, F64Array

MIN_VOICED_STEPS = 10
"""0.1 s: fewer voiced steps have no median and no range."""


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
        return {name: value for name, value in values.items() if value is not None}

    def _voiced_hz(self) -> F64Array:
        voiced = self.contours.f0_hz[self.contours.voiced]
        return voiced if len(voiced) >= MIN_VOICED_STEPS else voiced[:0]


def measure(samples: Samples, pitch_range: PitchRange | None = None) -> Prosody:
    """The prosody of a recording.

    Args:
        samples: Float32 `[n]`, mono, 24 kHz.
        pitch_range: Where F0 is looked for. By default the speaker's own; recordings that are compared need the same
            one: see `measure_both`.

    Raises:
        ValueError: There are no samples, or they are not finite floats `[n]`.
    """
    return _measured(samples, contours(samples, pitch_range))


def measure_both(first: Samples, second: Samples) -> tuple[Prosody, Prosody]:
    """That of two recordings that are compared: F0 is looked for where it lies in either. Raises as `measure`."""
    heard = contours_of_both(first, second)
    return _measured(first, heard[0]), _measured(second, heard[1])


def _measured(samples: Samples, heard: Contours) -> Prosody:
    is_voiced = heard.voiced.sum() >= MIN_VOICED_STEPS
    voice = voice_quality(samples, heard.pitch_range) if is_voiced else VoiceQuality(None, None, None)
    return Prosody(heard, rhythm(samples, heard), voice, mel_cepstra(samples))
