"""The shape of a recording's sound over time, as mel-cepstra, and how far two are apart along a path. Knows no F0."""

from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from ...core.arrays import I64Array
from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples
from .sound import STEP_SAMPLES, F64Array, centred

COEFFICIENTS = 13
"""The shape of the spectrum without its harmonics. Source: 1 to 13, as is usual for mel-cepstral distortion."""
DYNAMIC_RANGE_DB = 60.0
"""Bands this far below the recording's loudest are as good as silent: rounding noise must not steer the path."""

_PEAK_QUANTILE = 0.99
"""Of the steps' loudest bands: levels are relative to it, so a gain changes nothing, and neither does a click."""
_WINDOW = 600
"""25 ms."""
_FFT = 1024
_BLOCK = 4096
"""Steps at once: their spectra take 50 MB."""
_BANDS = 40
_LOW_HZ, _HIGH_HZ = 60.0, 11_000.0


def mel_cepstra(samples: Samples) -> F64Array:
    """The mel-cepstrum of every step of 10 ms, float64 `[steps, 1 + 13]`, scaled so that distances are in dB.

    An orthonormal DCT of the levels of 40 mel bands, over the square root of their number: by Parseval, the Euclidean
    distance of two rows is the RMS difference of the smoothed log spectra. Column 0 is the mean level relative to the
    recording's peak.

    Args:
        samples: Float32 `[n]`, mono, 24 kHz; silence is appended up to a whole step.

    Raises:
        ValueError: They are not finite floats `[n]`.
    """
    sound = centred(samples)
    steps = -(-len(sound) // STEP_SAMPLES)
    if not steps:
        return np.zeros((0, 1 + COEFFICIENTS))
    before = (_WINDOW - STEP_SAMPLES) // 2
    padded = np.zeros((steps - 1) * STEP_SAMPLES + _WINDOW)
    padded[before : before + len(sound)] = sound
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::STEP_SAMPLES]
    bands = np.concatenate([_bands(frames[at : at + _BLOCK]) for at in range(0, steps, _BLOCK)])
    peak = max(float(np.quantile(bands.max(axis=1), _PEAK_QUANTILE)), 1e-12)
    levels = 10 * np.log10(np.maximum(bands / peak, 10 ** (-DYNAMIC_RANGE_DB / 10)))
    return np.asarray(levels @ _cosines().T)


def _bands(frames: F64Array) -> F64Array:
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), _FFT)))
    return np.asarray(power @ _filters().T)


def distortion_db(first: F64Array, second: F64Array, path: I64Array) -> float | None:
    """Mel-cepstral distortion: the mean along the path of the distance without column 0, in dB.

    With cepstra c of log amplitude as in ln|X| = sum c_d cos(d w), it is (10 / ln 10) sqrt(2 sum (c_d - c'_d)^2).
    Source: Kubichek (IEEE Pacific Rim Conf., 1993).

    Args:
        first: From `mel_cepstra`, of the steps that the path is about.
        second: The same of the other recording.
        path: From `warp`.

    Returns:
        None for an empty path.
    """
    if not len(path):
        return None
    difference = first[path[:, 0], 1:] - second[path[:, 1], 1:]
    return float(np.sqrt(np.square(difference).sum(axis=1)).mean())


def _mel(hz: ArrayLike) -> F64Array:
    """Source: O'Shaughnessy, "Speech Communication" (1987)."""
    return np.asarray(2595 * np.log10(1 + np.asarray(hz) / 700))


@cache
def _filters() -> F64Array:
    """Triangles of equal width in mel, `[bands, bins]`, each of unit sum: a band's level is its mean power."""
    bins = _mel(np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE_HZ))
    edges = np.linspace(_mel(_LOW_HZ), _mel(_HIGH_HZ), _BANDS + 2)
    width = edges[1] - edges[0]
    triangles = np.maximum(0.0, 1 - np.abs(bins - edges[1:-1, None]) / width)
    return np.asarray(triangles / triangles.sum(axis=1, keepdims=True))


@cache
def _cosines() -> F64Array:
    """The first rows of the orthonormal DCT-II, over the root of the number of bands, `[1 + 13, bands]`."""
    angles = np.pi / _BANDS * np.outer(np.arange(1 + COEFFICIENTS), np.arange(_BANDS) + 0.5)
    cosines = np.cos(angles) * np.sqrt(2 / _BANDS)
    cosines[0] /= np.sqrt(2)
    return np.asarray(cosines / np.sqrt(_BANDS))
