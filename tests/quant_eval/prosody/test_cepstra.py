"""Mel-cepstra and their distortion against a filter whose effect is known."""

import numpy as np
import pytest
from synthetic_voice import RATE_HZ

from miso_gguf.quant_eval.prosody import cepstra
from miso_gguf.quant_eval.prosody.cepstra import COEFFICIENTS, distortion_db, mel_cepstra


@pytest.mark.parametrize(("order", "amplitude_db"), [(1, 6.0), (3, 3.0), (8, 2.0)])
def test_distortion_of_a_filter_is_the_rms_of_its_gain(order: int, amplitude_db: float) -> None:
    """A gain of A cos(order x) dB over the mel axis has an RMS of A / sqrt(2), and one cepstral coefficient."""
    noise = np.random.default_rng(0).normal(size=2 * RATE_HZ) * 0.05
    mel = 2595 * np.log10(1 + np.fft.rfftfreq(len(noise), 1 / RATE_HZ) / 700)
    low, high = 2595 * np.log10(1 + np.array([60.0, 11000.0]) / 700)
    # Band k of 40 is centred on edge k + 1 of 42, and is at (k + 1/2) / 40 of the cosine's half period.
    position = ((mel - low) / (high - low) * 41 - 0.5) / 40
    gain_db = amplitude_db * np.cos(np.pi * order * position)
    filtered = np.fft.irfft(np.fft.rfft(noise) * 10 ** (gain_db / 20), len(noise))
    first, second = mel_cepstra(noise.astype(np.float32)), mel_cepstra(filtered.astype(np.float32))
    difference = (second - first)[5:-5].mean(axis=0)
    expected = np.zeros(1 + COEFFICIENTS)
    expected[order] = amplitude_db / np.sqrt(2)
    # Not of column 0: the filter moves the loudest band, which that is relative to.
    np.testing.assert_allclose(difference[1:], expected[1:], atol=0.05 * amplitude_db)
    diagonal = np.stack([np.arange(5, len(first) - 5)] * 2, axis=1)
    assert distortion_db(first, second, diagonal) == pytest.approx(amplitude_db / np.sqrt(2), rel=0.1)


def test_a_gain_changes_nothing() -> None:
    noise = np.random.default_rng(0).normal(size=RATE_HZ) * 0.05
    first, second = mel_cepstra(noise.astype(np.float32)), mel_cepstra((0.1 * noise).astype(np.float32))
    np.testing.assert_allclose(second, first, atol=1e-3)


def test_the_first_column_is_the_mean_level_of_the_bands() -> None:
    noise = np.random.default_rng(0).normal(size=RATE_HZ) * 0.05
    noise[RATE_HZ // 2 :] *= 0.1
    level = mel_cepstra(noise.astype(np.float32))[:, 0]
    assert level[5:45].mean() - level[55:95].mean() == pytest.approx(20, abs=0.5)


def test_digital_silence_is_flat() -> None:
    cepstra = mel_cepstra(np.zeros(2400, np.float32))
    assert cepstra.shape == (10, 1 + COEFFICIENTS)
    np.testing.assert_allclose(cepstra[:, 1:], 0, atol=1e-9)
    assert mel_cepstra(np.zeros(0, np.float32)).shape == (0, 1 + COEFFICIENTS)
    assert distortion_db(cepstra, cepstra, np.zeros((0, 2), np.int64)) is None


def test_a_long_recording_is_done_in_blocks_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = (np.random.default_rng(0).normal(size=RATE_HZ) * 0.05).astype(np.float32)
    at_once = mel_cepstra(noise)
    monkeypatch.setattr(cepstra, "_BLOCK", 7)
    np.testing.assert_allclose(mel_cepstra(noise), at_once, atol=1e-9)
