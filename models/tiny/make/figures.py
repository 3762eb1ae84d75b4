"""How near a rendition is to its reference: waveform, F0, voicing. Pitch is Praat's; extra: `train`."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import parselmouth  # type: ignore[import-not-found]
from numpy.typing import NDArray

from ...mimi import SAMPLE_RATE_HZ
from .words import Speaker

Samples = NDArray[np.float32]

STEP_S = 0.01
"""Between two values of F0."""
_GROSS_CENTS = 200.0


def f0_hz(samples: Samples, speaker: Speaker) -> NDArray[np.float64]:
    """F0 every 10 ms within the speaker's range, 0 where unvoiced; by Praat's autocorrelation method."""
    # Half a pitch window of silence around it, so that the ends are looked at too.
    padded = np.pad(samples.astype(np.float64), SAMPLE_RATE_HZ // 20)
    sound = parselmouth.Sound(padded, SAMPLE_RATE_HZ)
    pitch = sound.to_pitch_ac(time_step=STEP_S, pitch_floor=speaker.floor_hz, pitch_ceiling=speaker.ceiling_hz)
    return np.asarray(pitch.selected_array["frequency"])


@dataclass(frozen=True)
class Figures:
    """Of renditions against their references, sample for sample.

    Attributes:
        seconds: How much was compared.
        snr_db: Of the waveform.
        voicing_error_percent: Steps of 10 ms voiced in one and not in the other.
        f0_median_cents: Median of the absolute F0 error where both are voiced.
        f0_rmse_cents: Root of its mean square.
        gross_error_percent: Of those steps, those more than 200 cents off.
    """

    seconds: float
    snr_db: float
    voicing_error_percent: float
    f0_median_cents: float
    f0_rmse_cents: float
    gross_error_percent: float


def compare(pairs: Iterable[tuple[Samples, Samples, Speaker]]) -> Figures:
    """The figures of all (reference, rendition, speaker) together. Raises `ValueError` if there is nothing voiced."""
    samples = steps = differing = 0
    signal = noise = 0.0
    cents: list[NDArray[np.float64]] = [np.zeros(0)]
    for reference, heard, speaker in pairs:
        samples += len(reference)
        signal += float(np.square(reference, dtype=np.float64).sum())
        noise += float(np.square(reference.astype(np.float64) - heard).sum())
        a, b = f0_hz(reference, speaker), f0_hz(heard, speaker)
        steps += len(a)
        differing += int(((a > 0) != (b > 0)).sum())
        both = (a > 0) & (b > 0)
        cents.append(1200 * np.log2(b[both] / a[both]))
    error = np.abs(np.concatenate(cents))
    if not len(error):
        raise ValueError("nothing is voiced in both the references and the renditions")
    return Figures(
        seconds=samples / SAMPLE_RATE_HZ,
        snr_db=float(10 * np.log10(signal / max(noise, 1e-20))),
        voicing_error_percent=100 * differing / steps,
        f0_median_cents=float(np.median(error)),
        f0_rmse_cents=float(np.sqrt(np.square(error).mean())),
        gross_error_percent=100 * float((error > _GROSS_CENTS).mean()),
    )
