"""Noise drawn ahead is the noise that would have been drawn, whoever is still speaking."""

import threading

import numpy as np
import pytest

from miso_gguf.models.flavors import TINY
from miso_gguf.models.noise import gumbel_noise
from miso_gguf.runtime.lm.frame_loop import FrameNoise, Utterance

UTTERANCES = [
    Utterance([], 9, seed=3),
    Utterance([], 9, seed=3, stream=1, temperature=0.5),
    Utterance([], 9, temperature=0.0),
]


@pytest.mark.parametrize("ahead", [False, True])
def test_whatever_order_it_is_the_same(ahead: bool) -> None:
    active = [[0, 1, 2], [0, 1, 2], [0, 2], [2], [2, 0], [1, 0]]
    with FrameNoise(TINY, UTTERANCES, ahead=ahead) as noise:
        for frame, indices in enumerate(active):
            found = noise.draw(indices, frame)
            assert found.shape == (len(indices), TINY.codebooks, TINY.audio_vocab)
            for row, index in zip(found, indices, strict=True):
                each = UTTERANCES[index]
                drawn = gumbel_noise(each.seed, frame, TINY.codebooks, TINY.audio_vocab, stream=each.stream)
                np.testing.assert_array_equal(row, drawn * np.float32(each.temperature))


def test_its_thread_ends_with_it() -> None:
    noise = FrameNoise(TINY, UTTERANCES, ahead=True)
    noise.draw([0, 1], 0)
    assert any(thread.name.startswith("noise") for thread in threading.enumerate())
    noise.close()
    noise.close()
    assert not any(thread.name.startswith("noise") for thread in threading.enumerate())
