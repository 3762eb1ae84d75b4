"""Noise drawn ahead is the noise that would have been drawn, whoever is still speaking."""

import threading

import numpy as np
import pytest

from miso_gguf.models.flavors import TINY
from miso_gguf.models.noise import gumbel_noise
from miso_gguf.runtime.lm.noise import FrameNoise
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.utterance import Utterance

BLOCKS = [Block(np.zeros((1, TINY.codebooks + 1), np.int64))]
UTTERANCES = [
    Utterance(BLOCKS, 9, seed=3),
    Utterance(BLOCKS, 9, seed=3, stream=1, temperature=0.5),
    Utterance(BLOCKS, 9, temperature=0.0),
]


@pytest.mark.parametrize("ahead", [False, True])
def test_whatever_order_it_is_the_same(ahead: bool) -> None:
    active = [[0, 1, 2], [0, 1, 2], [0, 2], [2], [2, 0], [1, 0], [0, 0]]
    with FrameNoise(TINY, ahead=ahead) as noise:
        for turn, indices in enumerate(active):
            frames = [turn + index for index in indices]
            found = noise.draw([UTTERANCES[index] for index in indices], frames)
            assert found.shape == (len(indices), TINY.codebooks, TINY.audio_vocab)
            for row, index, frame in zip(found, indices, frames, strict=True):
                each = UTTERANCES[index]
                drawn = gumbel_noise(each.seed, frame, TINY.codebooks, TINY.audio_vocab, stream=each.stream)
                np.testing.assert_array_equal(row, drawn * np.float32(each.temperature))


def test_its_thread_ends_with_it() -> None:
    noise = FrameNoise(TINY, ahead=True)
    noise.draw(UTTERANCES, [0, 1, 2])
    assert any(thread.name.startswith("miso-noise") for thread in threading.enumerate())
    noise.close()
    noise.close()
    assert not any(thread.name.startswith("miso-noise") for thread in threading.enumerate())


def test_after_the_main_thread_has_ended_it_draws_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that still speak then go on, and executors take nothing more."""
    with FrameNoise(TINY, ahead=True) as noise, FrameNoise(TINY, ahead=False) as alone:
        for frame in range(3):
            found = noise.draw(UTTERANCES, [frame] * 3)
            np.testing.assert_array_equal(found, alone.draw(UTTERANCES, [frame] * 3))
            monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
