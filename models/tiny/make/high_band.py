"""The part of speech above 2.3 kHz, made cheap to code: noise that is the same in every frame, shaped like the speech.

Up there the ear hears where the energy is and not the waveform, but a codec that is a linear basis must store the
waveform. Replaced by one fixed frame of hiss under a slowly varying envelope, a frame's upper band has a few dozen
dimensions instead of a thousand. The lower band, which carries the melody, stays as it is. Knows nothing of words.
"""

from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ

Samples = NDArray[np.float32]
Array = NDArray[np.float64]

EDGES_HZ = (2300.0, 2600.0, 3200.0, 4000.0, 5000.0, 6200.0, 7600.0, 9500.0, 11900.0)
"""Of the bands whose envelopes are kept."""
_SLOPE_HZ = 100.0
"""Half the width of the crossing from one band to the next."""
_SMOOTH = 120
"""Samples: the window that smooths a band's power, 5 ms: the pulses of a low voice are still heard in it."""
_SEED = 7


def _gain(size: int, low_hz: float, high_hz: float) -> Array:
    """Of every bin of a real FFT: a band whose slopes and its neighbours' add up to one in power."""
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    rise = np.clip((hz - low_hz + _SLOPE_HZ) / (2 * _SLOPE_HZ), 0, 1) if low_hz else np.ones_like(hz)
    fall = np.clip((high_hz + _SLOPE_HZ - hz) / (2 * _SLOPE_HZ), 0, 1)
    return np.asarray(np.sin(np.pi / 2 * rise) * np.sin(np.pi / 2 * fall))


@cache
def _hiss() -> tuple[Array, ...]:
    """One frame of noise for each band, of RMS 1, that joins on to itself."""
    phases = np.random.default_rng(_SEED).random(FRAME_SAMPLES // 2 + 1)
    bands = []
    for low_hz, high_hz in pairwise(EDGES_HZ):
        noise = np.fft.irfft(_gain(FRAME_SAMPLES, low_hz, high_hz) * np.exp(2j * np.pi * phases))
        bands.append(noise / np.sqrt(np.square(noise).mean()))
    return tuple(bands)


def with_fixed_hiss(samples: Samples) -> Samples:
    """The same sound with its upper band replaced, float32 `[n]`; the hiss is aligned with the first sample."""
    frames = len(samples) // FRAME_SAMPLES + 2  # silence behind it: the FFT is circular
    padded = np.zeros(frames * FRAME_SAMPLES)
    padded[: len(samples)] = samples
    spectrum = np.fft.rfft(padded)
    window = np.hanning(_SMOOTH + 1)[1:]
    window /= window.sum()
    result = np.fft.irfft(spectrum * _gain(len(padded), 0.0, EDGES_HZ[0]))
    for hiss, (low_hz, high_hz) in zip(_hiss(), pairwise(EDGES_HZ), strict=True):
        band = np.fft.irfft(spectrum * _gain(len(padded), low_hz, high_hz))
        power = np.convolve(np.square(band), window, mode="same")
        result += np.sqrt(np.maximum(power, 0.0)) * np.tile(hiss, frames)
    return result[: len(samples)].astype(np.float32)
