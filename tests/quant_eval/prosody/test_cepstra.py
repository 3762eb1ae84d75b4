"""Warping against brute force, distortion against a filter whose effect is known."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic_voice import RATE_HZ

from miso_gguf.quant_eval.prosody.alignment import COEFFICIENTS, distortion_db, mel_cepstra, warp

Floats = NDArray[np.float64]


def least_cost(first: Floats, second: Floats) -> float:
    """By the recursion's definition, cell by cell."""
    n, m = len(first), len(second)
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    for i in range(n):
        for j in range(m):
            here = float(np.linalg.norm(first[i] - second[j]))
            total[i + 1, j + 1] = here + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return float(total[n, m])


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_the_path_is_a_path_and_none_is_cheaper(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 4, (n, 2)).astype(float), rng.integers(0, 4, (m, 2)).astype(float)
    path = warp(first, second)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [n - 1, m - 1]
    assert {tuple(step) for step in np.diff(path, axis=0).tolist()} <= {(1, 1), (0, 1), (1, 0)}
    cost = np.linalg.norm(first[path[:, 0]] - second[path[:, 1]], axis=1).sum()
    assert cost == pytest.approx(least_cost(first, second))


def test_equal_sequences_give_the_diagonal() -> None:
    same = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(warp(same, same.copy()), np.stack([np.arange(50)] * 2, axis=1))
    steady = np.ones((7, 3))
    np.testing.assert_array_equal(warp(steady, steady), np.stack([np.arange(7)] * 2, axis=1))


def test_a_repetition_is_warped_away() -> None:
    first = np.arange(20.0)[:, None]
    second = np.repeat(first, [1] * 5 + [4] + [1] * 14, axis=0)
    path = warp(first, second)
    np.testing.assert_array_equal(first[path[:, 0]], second[path[:, 1]])


@pytest.mark.parametrize(("first", "second"), [((0, 3), (4, 3)), ((4, 3), (0, 3)), ((4, 3), (4, 2))])
def test_what_cannot_be_warped_is_refused(first: tuple[int, int], second: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="same kind"):
        warp(np.zeros(first), np.zeros(second))


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
