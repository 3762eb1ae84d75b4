"""A recording as it is measured: whole steps of 10 ms, without an offset, and as Praat takes it. Measures nothing."""

from typing import Any

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

_OFFSET_STEPS = 10
"""To either side."""


def centred(samples: Samples) -> F64Array:
    """Float64 `[n]` without an offset, which is no sound: digital silence stays silent, or becomes it.

    The offset is the running median, over 0.2 s, of the means of 10 ms: neither a click nor speech moves it.

    Raises:
        ValueError: They are not finite floats `[n]`.
    """
    wide = checked(samples).astype(np.float64)
    if not len(wide):
        return wide
    means = np.pad(wide, (0, -len(wide) % STEP_SAMPLES), "edge").reshape(-1, STEP_SAMPLES).mean(axis=1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(means, _OFFSET_STEPS, "edge"), 2 * _OFFSET_STEPS + 1)
    middles = (np.arange(len(means)) + 0.5) * STEP_SAMPLES
    return np.asarray(wide - np.interp(np.arange(len(wide)), middles, np.median(around, axis=1)))


def whole_steps(samples: Samples) -> F64Array:
    """The same, with silence appended up to a whole step. Raises `ValueError` also where there are no samples."""
    wide = centred(samples)
    if not len(wide):
        raise ValueError("a recording of no samples has no prosody. Give at least some tenths of a second.")
    return np.pad(wide, (0, -len(wide) % STEP_SAMPLES))


def padded(whole: F64Array, window_s: float, rate_hz: int = SAMPLE_RATE_HZ) -> "parselmouth.Sound":
    """As Praat's sound, in silence just wide enough that the first and last window sit on the first and last step.

    Raises `MisoError` if Praat is not installed.
    """
    if parselmouth is None:
        raise MisoError("prosody needs the package praat-parselmouth: pip install 'miso-gguf[eval]'")
    return parselmouth.Sound(np.pad(whole, round((window_s - STEP_S / 2) * rate_hz / 2)), rate_hz)


def praat(*command: Any) -> Any:
    """What Praat answers to a command: the objects it is given to, its name as in Praat's menus, its arguments."""
    return parselmouth.praat.call(*command)
