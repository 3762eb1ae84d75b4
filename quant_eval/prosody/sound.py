"""A recording as it is measured: whole steps of 10 ms, without an offset, and as Praat takes it. Measures nothing."""

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

_MEAN_SAMPLES = 2400
"""0.1 s: what is slower than about 5 Hz goes. A mean over all would leave a recording's pauses with what its speech has
too much."""


def centred(samples: Samples) -> F64Array:
    """Float64 `[n]` around the mean of the 0.1 s about each: an offset is no sound, and digital silence stays silent.

    Raises:
        ValueError: They are not finite floats `[n]`.
    """
    wide = checked(samples).astype(np.float64)
    at = np.arange(len(wide))
    first, after = np.maximum(at - _MEAN_SAMPLES // 2, 0), np.minimum(at + _MEAN_SAMPLES // 2, len(wide))
    total = np.concatenate([[0.0], np.cumsum(wide)])
    return np.asarray(wide - (total[after] - total[first]) / (after - first))


def whole_steps(samples: Samples) -> F64Array:
    """The same, with silence appended up to a whole step. Raises `ValueError` also where there are no samples."""
    wide = centred(samples)
    if not len(wide):
        raise ValueError("a recording of no samples has no prosody. Give at least some tenths of a second.")
    return np.pad(wide, (0, -len(wide) % STEP_SAMPLES))


def padded(whole: F64Array, window_s: float) -> "parselmouth.Sound":
    """As Praat's sound, in silence just wide enough that the first and last window sit on the first and last step.

    Raises `MisoError` if Praat is not installed.
    """
    if parselmouth is None:
        raise MisoError("prosody needs the package praat-parselmouth: pip install 'miso-gguf[eval]'")
    return parselmouth.Sound(np.pad(whole, round((window_s - STEP_S / 2) * SAMPLE_RATE_HZ / 2)), SAMPLE_RATE_HZ)
