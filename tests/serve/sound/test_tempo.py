"""Speech faster and slower: how long it is, at what pitch, and that nothing of it is missing."""

from itertools import pairwise

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.runtime.audio.samples import Samples
from miso_gguf.serve.sound.tempo import Tempo

FRAME = 1920
SPEEDS = (0.25, 0.4, 0.5, 0.8, 1.01, 1.5, 2.0, 2.5, 4.0)


def tone(seconds: float, hz: float = 200.0) -> Samples:
    t = np.arange(round(seconds * 24_000)) / 24_000
    return (0.9 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def stretched(sound: Samples, speed: float, sizes: list[int]) -> Samples:
    """In chunks of these sizes, and one more of what is left."""
    tempo = Tempo(speed)
    bounds = [0, *np.minimum(np.cumsum(sizes), len(sound)).astype(int).tolist(), len(sound)]
    return np.concatenate([*(tempo(sound[start:end]) for start, end in pairwise(bounds)), tempo.rest()])


def hz_of(sound: Samples) -> float:
    """Of its strongest partial, to 0.1 Hz."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 18))
    return float(np.argmax(spectrum)) * 24_000 / (1 << 18)


@pytest.mark.parametrize("speed", SPEEDS)
def test_pitch_and_length(speed: float) -> None:
    sound = tone(4)
    found = stretched(sound, speed, [FRAME] * 50)
    assert len(found) == round(len(sound) / speed)
    assert abs(hz_of(found) / 200 - 1) < 0.003
    assert found.dtype == np.float32
    # One tone all along, without a gap or a swell where pieces were joined; its last 60 ms may fade.
    levels = np.sqrt(np.mean(found[: len(found) // 480 * 480].reshape(-1, 480) ** 2, axis=1))
    assert np.allclose(levels[:-3], 0.9 / np.sqrt(2), rtol=0.02)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("count", [1, 479, 480, 481, 12_345, 48_137])
def test_every_length(speed: float, count: int) -> None:
    """Of noise, a tone, and full scale: how well pieces fit decides how far the filter lags behind at the end."""
    noise = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    for sound in (noise, tone(3, 150)[:count], np.sign(noise)):
        found = stretched(sound, speed, [])
        assert len(found) == round(count / speed)
        assert np.isfinite(found).all()
        assert np.abs(found).max(initial=0) <= 1


@given(
    speed=st.one_of(st.sampled_from(SPEEDS), st.floats(0.25, 4.0)),
    count=st.integers(0, 9000),
    sizes=st.lists(st.one_of(st.sampled_from([0, 1, 480, FRAME]), st.integers(0, 3000)), max_size=20),
)
@settings(max_examples=examples(40))
def test_chunks_do_not_matter(speed: float, count: int, sizes: list[int]) -> None:
    sound = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    found = stretched(sound, speed, sizes)
    assert np.array_equal(found, stretched(sound, speed, []))
    assert len(found) == round(count / speed)


@pytest.mark.parametrize("speed", SPEEDS)
def test_where_sounds_are(speed: float) -> None:
    """A burst in the middle, and one that is the last 50 ms: each is where it belongs, to 60 ms, and as loud."""
    sound = np.zeros(48_000, np.float32)
    burst = tone(0.05, 400)
    sound[24_000 : 24_000 + len(burst)] = burst
    sound[-len(burst) :] = burst
    found = stretched(sound, speed, [FRAME] * 25)
    loud = np.flatnonzero(np.abs(found) > 0.45)
    assert loud.size
    middle, end = loud[loud < 0.75 * len(found)], loud[loud >= 0.75 * len(found)]
    assert abs(np.median(middle) - (24_000 + len(burst) / 2) / speed) < 1440
    assert len(found) - end.max() < 1440
    assert np.abs(found[end]).max() > 0.8


def test_speed_one_passes_through() -> None:
    tempo = Tempo(1.0)
    sound = (2 * tone(0.1)).astype(np.float32)
    assert tempo(sound) is sound
    assert len(tempo.rest()) == 0


@pytest.mark.parametrize(
    ("speed", "frames"), [(0.25, 1), (0.4, 2), (0.5, 1), (0.8, 1), (1.25, 1), (2.0, 1), (2.5, 2), (4.0, 3)]
)
def test_first_sound(speed: float, frames: int) -> None:
    """With which frame of the model the first sample leaves."""
    tempo, sound = Tempo(speed), tone(1)
    gives = [len(tempo(sound[start : start + FRAME])) > 0 for start in range(0, 4 * FRAME, FRAME)]
    assert gives.index(True) + 1 == frames


def test_rest_twice_is_nothing() -> None:
    tempo = Tempo(1.5)
    tempo(tone(0.2))
    assert len(tempo.rest()) > 0
    assert len(tempo.rest()) == 0


@pytest.mark.parametrize("speed", [0.0, -1.0, 0.24, 4.01, float("nan"), float("inf")])
def test_speeds_that_are_none(speed: float) -> None:
    with pytest.raises(ValueError, match=r"a speed of .* is not within 0.25 to 4.0"):
        Tempo(speed)
