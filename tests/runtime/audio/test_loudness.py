"""Loudness: the standard's own reference value, gating, and a gain that never clips."""

import logging

import numpy as np
import pytest
from numpy.typing import NDArray

from miso_gguf.runtime.audio.loudness import integrated_lufs, normalise, true_peak
from miso_gguf.runtime.audio.samples import dbfs

Samples = NDArray[np.float32]


def sine(frequency_hz: float, seconds: float, amplitude: float = 1.0, sample_rate_hz: int = 24_000) -> Samples:
    time = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    return (amplitude * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)


@pytest.mark.parametrize("sample_rate_hz", [24_000, 48_000])
def test_a_full_scale_sine_of_997_hz_is_minus_3_lufs(sample_rate_hz: int) -> None:
    # Source: ITU-R BS.1770, annex 1: "a 0 dB FS, 997 Hz sine ... the indicated loudness will equal -3.01 LKFS".
    loudness = integrated_lufs(sine(997, 5, sample_rate_hz=sample_rate_hz), sample_rate_hz=sample_rate_hz)
    assert loudness == pytest.approx(-3.01, abs=0.05)


def test_loudness_follows_the_gain() -> None:
    loud, soft = (integrated_lufs(sine(997, 3, amplitude)) for amplitude in (0.5, 0.05))
    assert loud is not None
    assert soft is not None
    assert loud - soft == pytest.approx(20, abs=0.01)


def test_pauses_do_not_count() -> None:
    clip = sine(997, 4, 0.3)
    with_pause = np.concatenate([clip, np.zeros(24_000 * 8, np.float32), clip])
    assert integrated_lufs(with_pause) == pytest.approx(integrated_lufs(clip), abs=0.3)


@pytest.mark.parametrize(
    "samples",
    [np.zeros(0, np.float32), np.zeros(48_000, np.float32), sine(997, 0.39), sine(997, 2, 1e-5)],
    ids=["nothing", "silence", "short", "below the gate"],
)
def test_what_has_no_loudness_is_returned_as_it_is(samples: Samples) -> None:
    assert integrated_lufs(samples) is None
    assert normalise(samples, -16) is samples


@pytest.mark.parametrize("target", [-30.0, -23.0, -16.0])
def test_a_clip_gets_the_target_loudness(target: float) -> None:
    clip = sine(440, 2, 0.05) + sine(1333, 2, 0.05)
    before = clip.copy()
    result = normalise(clip, target)
    assert result.dtype == np.float32
    assert integrated_lufs(result) == pytest.approx(target, abs=0.05)
    assert np.array_equal(clip, before)
    np.testing.assert_allclose(result / result.max(), clip / clip.max(), atol=1e-6)


def test_the_peak_limits_the_gain(caplog: pytest.LogCaptureFixture) -> None:
    clip = sine(440, 2, 0.02)
    clip[20_000] = 0.9  # one plosive
    with caplog.at_level(logging.INFO):
        result = normalise(clip, -10)
    assert dbfs(true_peak(result)) == pytest.approx(-1.0, abs=0.01)
    assert np.abs(result).max() <= 10 ** (-1 / 20)
    loudness = integrated_lufs(result)
    assert loudness is not None
    assert loudness < -20
    assert f"{loudness:.1f} LUFS, not -10.0" in caplog.text


def test_peaks_between_the_samples_count() -> None:
    # A quarter of the sample rate, phase 45 degrees: every sample is 0.707, the waveform reaches 1.
    clip = np.sin(np.pi / 2 * np.arange(4000) + np.pi / 4).astype(np.float32)
    assert np.abs(clip).max() == pytest.approx(0.7071, abs=1e-4)
    assert true_peak(clip[1000:3000]) >= 0.99
    assert true_peak(np.zeros(0, np.float32)) == 0


@pytest.mark.parametrize("target", [-71.0, 0.5, float("nan")])
def test_a_target_that_is_no_loudness_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=f"between -70 and 0 LUFS, not {target}"):
        normalise(sine(997, 1), target)
