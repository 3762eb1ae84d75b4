"""Loudness of speech as listeners hear it (ITU-R BS.1770), and bringing a clip to a target. Knows no files.

pyloudnorm (and with it scipy) is imported when it is first used.
"""

import logging
from typing import Any

import numpy as np
import soxr

from ...models.mimi import SAMPLE_RATE_HZ
from .samples import Samples, checked, dbfs

log = logging.getLogger(__name__)

PEAK_LIMIT_DBFS = -1.0
"""Highest true peak after normalising. Source: EBU R 128, "maximum permitted true peak level"."""

_BLOCK_S = 0.4
"""Length of a gating block: shorter clips have no loudness. Source: ITU-R BS.1770-5, annex 1."""
_OVERSAMPLING = 4
"""Source: ITU-R BS.1770-5, annex 2: true peaks are looked for at four times 48 kHz or thereabouts."""


def _meter(sample_rate_hz: int) -> Any:
    import pyloudnorm  # noqa: PLC0415  (it pulls in scipy, which costs most of a second)

    # The filters that pyloudnorm calls after De Man are the standard's own; its "K-weighting" rounds them.
    return pyloudnorm.Meter(sample_rate_hz, filter_class="DeMan")


def integrated_lufs(samples: Samples, *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float | None:
    """Integrated, gated loudness in LUFS; `None` for silence and for clips below 0.4 s, which have none."""
    samples = checked(samples)
    if len(samples) <= _BLOCK_S * sample_rate_hz or not samples.any():
        return None
    loudness = float(_meter(sample_rate_hz).integrated_loudness(samples.astype(np.float64)))
    return loudness if np.isfinite(loudness) else None


def true_peak(samples: Samples) -> float:
    """The largest amplitude of the waveform, between samples too."""
    if not len(samples):
        return 0.0
    between = np.asarray(soxr.resample(samples, 1, _OVERSAMPLING))
    return float(max(np.abs(samples).max(), np.abs(between).max()))


def normalise(samples: Samples, target_lufs: float, *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """The clip at the target loudness, or as near as a true peak of -1 dBFS allows.

    One gain for the whole clip: the waveform is scaled and never bent. Silence and clips below 0.4 s come back as
    they are.

    Args:
        samples: Mono float32 `[n]`.
        target_lufs: -16 is usual for podcasts, -23 for European broadcast.
        sample_rate_hz: Of the samples.

    Raises:
        ValueError: The target is not a loudness between -70 and 0 LUFS, or the samples are not finite floats `[n]`.
    """
    if not -70 <= target_lufs <= 0:
        raise ValueError(f"the target loudness must lie between -70 and 0 LUFS, not {target_lufs}")
    loudness = integrated_lufs(samples, sample_rate_hz=sample_rate_hz)
    if loudness is None:
        return samples
    gain_db = target_lufs - loudness
    limit_db = PEAK_LIMIT_DBFS - dbfs(true_peak(samples))
    if gain_db > limit_db:
        log.info("loudness is %.1f LUFS, not %.1f: more gain would clip", loudness + limit_db, target_lufs)
    return np.asarray(samples * 10 ** (min(gain_db, limit_db) / 20), np.float32)
