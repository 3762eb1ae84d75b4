"""Samples as arrays: PCM, levels, fades, and a change of sample rate. Pure functions; knows no files and no codec.

Samples are float32 `[n]`, mono, in [-1, 1], everywhere in the runtime.
"""

import numpy as np
import soxr
from numpy.typing import NDArray

from ...models.mimi import SAMPLE_RATE_HZ

Samples = NDArray[np.float32]

RATES_HZ = range(4_000, 192_001)
"""What is read and written. Above 200 kHz libvorbis crashes the process; below 4 kHz nothing of speech is left."""

FADE_MS = 5.0
"""Long enough that a cut does not click, too short to be heard itself."""

_QUIET_MS = 5.0
"""Of silence at the end of a piece, so that it may be cut out there."""

_PCM16_MAX = 32767
_QUIETEST_DBFS = -120.0


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Samples as 16-bit integers, rounded to nearest; what lies outside [-1, 1] is limited, not wrapped around."""
    scaled: NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * _PCM16_MAX).astype(np.int16)
    return scaled


def dbfs(amplitude: float) -> float:
    """An amplitude relative to full scale (1.0) in decibels; -120 for silence."""
    return max(20 * float(np.log10(amplitude)), _QUIETEST_DBFS) if amplitude > 0 else _QUIETEST_DBFS


def peak_dbfs(samples: Samples) -> float:
    """The largest sample, in dBFS; -120 for silence and for no samples."""
    return dbfs(float(np.abs(samples).max(initial=0.0)))


def silence(milliseconds: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """That much silence."""
    return np.zeros(round(milliseconds * sample_rate_hz / 1000), np.float32)


def faded(
    samples: Samples, *, start_ms: float = 0.0, end_ms: float = 0.0, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Samples:
    """A copy that rises from silence over `start_ms` and falls to it over `end_ms`: what makes a cut click is the step.

    The fades are half cosines, and each is as long as the samples at most.
    """
    result: Samples = samples.copy()
    for milliseconds, view in ((start_ms, result), (end_ms, result[::-1])):
        count = min(round(milliseconds * sample_rate_hz / 1000), len(view))
        ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(count) / max(count, 1))
        view[:count] *= ramp.astype(np.float32)
    return result


def ramp_down(last: float) -> Samples:
    """What follows a sound whose end nobody knew: from its `last` sample down to zero, and there for a while.

    Nothing follows one that ends at zero.
    """
    if last == 0:
        return silence(0)
    ramp = faded(np.full(round(FADE_MS * SAMPLE_RATE_HZ / 1000), last, np.float32), end_ms=FADE_MS)
    return np.concatenate([ramp, silence(_QUIET_MS)])


def cut_off(samples: Samples) -> Samples:
    """Sound that was stopped, as long as before: its end is faded, and silent."""
    quiet = silence(_QUIET_MS)[: len(samples)]
    return np.concatenate([faded(samples[: len(samples) - len(quiet)], end_ms=FADE_MS), quiet])


def after_pause(samples: Samples, pause_ms: float) -> Samples:
    """Sound that begins after that much silence, without a click."""
    return np.concatenate([silence(pause_ms), faded(samples, start_ms=FADE_MS)])


class Resampler:
    """A change of sample rate for audio that comes in chunks; passes it through when the rates are equal."""

    def __init__(self, in_rate_hz: int, out_rate_hz: int) -> None:
        self._stream = (
            None if in_rate_hz == out_rate_hz else soxr.ResampleStream(in_rate_hz, out_rate_hz, 1, dtype="float32")
        )

    def __call__(self, samples: Samples) -> Samples:
        """What can be computed so far: the filter holds back some tens of milliseconds."""
        return samples if self._stream is None else self._run(samples, last=False)

    def rest(self) -> Samples:
        """What the filter held back; call it once, at the end."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._stream is None else self._run(nothing, last=True)

    def _run(self, samples: Samples, last: bool) -> Samples:
        assert self._stream is not None
        return np.asarray(self._stream.resample_chunk(np.ascontiguousarray(samples), last=last), np.float32)


def resampled(samples: Samples, in_rate_hz: int, out_rate_hz: int) -> Samples:
    """A whole clip at another sample rate."""
    if in_rate_hz == out_rate_hz:
        return samples
    return np.asarray(soxr.resample(samples, in_rate_hz, out_rate_hz), np.float32)


def checked(samples: object) -> Samples:
    """`samples` as float32 `[n]`. Raises `ValueError` if they are not that, or not finite."""
    array = np.asarray(samples)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise ValueError(
            f"samples must be floating-point numbers [n] in [-1, 1], mono, not {array.dtype} {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"sample {int(np.argmin(np.isfinite(array)))} is not finite ({array[~np.isfinite(array)][0]})")
    return array.astype(np.float32, copy=False)
