"""A voice whose truth is known: glottal pulses at an exact F0 through formants, as a phrase of vowels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 24_000
STEP_S = 0.01

VOWELS = {"a": (730, 1090, 2440, 3400), "i": (270, 2290, 3010, 3700), "o": (570, 840, 2410, 3300)}
"""Formants in Hz. Source: Peterson and Barney (1952), men; the fourth is a guess."""
_BANDWIDTHS_HZ = (60, 90, 120, 180)

Floats = NDArray[np.float64]
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Phrase:
    """Vowels one after the other, each rising from -18 dB and falling back to it.

    Attributes:
        vowels: One a syllable.
        syllable_s: Length of each.
        median_hz: Middle of the F0 contour.
        swing_semitones: Amplitude of its sine: the whole range is twice that.
        pauses: (syllable, seconds): silence before that syllable.
        outer_s: Silence at both ends.
        octave_down_s: From when to when of the speech its F0 is an octave lower.
        vibrato_cents: Amplitude of a vibrato of 5.5 Hz.
        is_whispered: The formants are excited by noise, and there is no F0.
    """

    vowels: str = "aioaioaioaio"
    syllable_s: float = 0.25
    median_hz: float = 120.0
    swing_semitones: float = 4.0
    pauses: tuple[tuple[int, float], ...] = ()
    outer_s: float = 0.1
    octave_down_s: tuple[float, float] = (0.0, 0.0)
    vibrato_cents: float = 0.0
    is_whispered: bool = False

    def but(self, **changes: object) -> "Phrase":
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def speech_s(self) -> float:
        return len(self.vowels) * self.syllable_s

    @property
    def pause_s(self) -> float:
        return sum(length for _, length in self.pauses)

    def f0_hz(self, speech_s: NDArray[np.floating[Any]]) -> Floats:
        """At these times of the speech, pauses not counted: two and a half waves, the first one upwards."""
        wave = np.sin(2 * np.pi * 2.5 * speech_s / self.speech_s)
        octaves = self.swing_semitones / 12 * wave
        octaves = octaves + self.vibrato_cents / 1200 * np.sin(2 * np.pi * 5.5 * speech_s)
        octaves = octaves - ((speech_s >= self.octave_down_s[0]) & (speech_s < self.octave_down_s[1]))
        return np.asarray(self.median_hz * 2**octaves)

    def samples(self) -> Samples:
        """The sound, float32 [n]."""
        sound = _whisper(self) if self.is_whispered else _speech(self)
        parts: list[Floats] = [np.zeros(round(self.outer_s * RATE_HZ))]
        at = 0
        for syllable, length_s in self.pauses:
            cut = round(syllable * self.syllable_s * RATE_HZ)
            parts += [sound[at:cut], np.zeros(round(length_s * RATE_HZ))]
            at = cut
        parts += [sound[at:], np.zeros(round(self.outer_s * RATE_HZ))]
        return np.concatenate(parts).astype(np.float32)

    def pause_mask(self) -> NDArray[np.bool_]:
        """Which samples are a pause."""
        mask = [np.zeros(round(self.outer_s * RATE_HZ), bool)]
        at = 0
        for syllable, length_s in self.pauses:
            cut = round(syllable * self.syllable_s * RATE_HZ)
            mask += [np.zeros(cut - at, bool), np.ones(round(length_s * RATE_HZ), bool)]
            at = cut
        mask += [np.zeros(round(self.speech_s * RATE_HZ) - at + round(self.outer_s * RATE_HZ), bool)]
        return np.concatenate(mask)


def _speech(phrase: Phrase) -> Floats:
    """Harmonics of the exact phase, each with the gain that source and formants have at its frequency."""
    count = round(phrase.speech_s * RATE_HZ)
    # Gains change slowly: 1 ms apart is enough, and a tenth of the work.
    seconds = np.arange(count) / RATE_HZ
    coarse = np.linspace(0, seconds[-1], count // 24 + 1)
    f0_hz = phrase.f0_hz(seconds)
    phase = 2 * np.pi * np.cumsum(f0_hz) / RATE_HZ
    pulse = np.exp(1j * phase)
    formants = _formants(phrase, coarse)
    harmonic = np.ones(count, complex)
    sound = np.zeros(count)
    for number in range(1, int(5000 / f0_hz.max()) + 1):
        harmonic = harmonic * pulse
        gain = _gain(number * phrase.f0_hz(coarse), formants) / number
        sound += np.interp(seconds, coarse, gain) * harmonic.imag
    return _in_syllables(phrase, sound)


def _whisper(phrase: Phrase) -> Floats:
    """White noise in windows of 20 ms, each through the formants that are there at its middle."""
    count, hop, window, size = round(phrase.speech_s * RATE_HZ), 240, 480, 2048
    starts = np.arange(0, count, hop)
    noise = np.random.default_rng(7).normal(size=count + window)
    formants = _formants(phrase, (starts + window / 2) / RATE_HZ)
    hz = np.fft.rfftfreq(size, 1 / RATE_HZ)
    sound = np.zeros(count + window + size)
    for index, start in enumerate(starts):
        gain = _gain(np.asarray(hz, np.float64), [track[index] for track in formants])
        piece = noise[start : start + window] * np.hanning(window + 1)[:-1]
        sound[start : start + size] += np.fft.irfft(np.fft.rfft(piece, size) * gain, size)
    return _in_syllables(phrase, sound[:count])


def _in_syllables(phrase: Phrase, sound: Floats) -> Floats:
    """Each rising from -18 dB and falling back to it."""
    position = np.arange(len(sound)) / RATE_HZ / phrase.syllable_s % 1
    sound = sound * 10 ** (-18 * (1 - np.sin(np.pi * position)) / 20)
    return np.asarray(0.5 * sound / np.abs(sound).max())


def _formants(phrase: Phrase, seconds: Floats) -> list[Floats]:
    """In Hz over time, gliding between the middles of the syllables."""
    middles = (np.arange(len(phrase.vowels)) + 0.5) * phrase.syllable_s
    tracks: Sequence[tuple[int, ...]] = [VOWELS[vowel] for vowel in phrase.vowels]
    return [np.interp(seconds, middles, [track[index] for track in tracks]) for index in range(len(_BANDWIDTHS_HZ))]


def _gain(hz: Floats, formants: Sequence[Any]) -> Floats:
    """Of resonances in a row, each 1 at 0 Hz."""
    gain = np.ones_like(hz)
    for centre, width in zip(formants, _BANDWIDTHS_HZ, strict=True):
        squared = (centre**2 - hz**2) ** 2 + (width * hz) ** 2
        gain *= centre**2 / np.sqrt(squared)
    return gain


def noise_in(
    mask: NDArray[np.bool_], samples: Samples, below_peak_db: float, level: Callable[[Samples], float]
) -> Samples:
    """The samples with white noise where the mask is true, its RMS that far below `level(samples)` in dB."""
    noise = np.random.default_rng(5).normal(size=len(samples)) * 10 ** ((level(samples) - below_peak_db) / 20)
    return (samples + noise * mask).astype(np.float32)
