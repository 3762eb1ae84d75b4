"""What of a clip is heard, and the anchor."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sample_study import RATE_HZ, tone

from miso_gguf.quant_eval.listening.excerpts import (
    anchor,
    are_equal,
    beginning,
    encoded,
    heard_pair,
    most_different,
    read_sound,
)
from miso_gguf.runtime.audio.samples import to_pcm16


def test_the_anchor_is_as_the_recommendation_has_it() -> None:
    pulse = np.zeros(4096, np.float32)
    pulse[2000] = 1
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(anchor(pulse))) + 1e-12)
    hz = np.fft.rfftfreq(4096, 1 / RATE_HZ)
    assert np.abs(gain_db[hz <= 3500]).max() < 0.1
    assert gain_db[hz >= 4000].max() < -25
    assert gain_db[hz >= 4500].max() < -50
    assert int(np.argmax(anchor(pulse))) == 2000
    assert len(anchor(np.zeros(10, np.float32))) == 10


def test_an_excerpt_is_where_two_clips_differ_most() -> None:
    one = tone(120, 20)
    other = one.copy()
    other[9 * RATE_HZ : 10 * RATE_HZ] *= -1
    first, second = most_different(one, other, 4.0)
    assert len(first) == len(second) == 4 * RATE_HZ
    changed = np.abs(first - second) > 0
    assert changed.sum() == pytest.approx(RATE_HZ, rel=0.01)
    assert first[0] == second[-1] == 0.0


def test_short_clips_are_heard_whole() -> None:
    one, other = tone(120, 1.0), tone(130, 1.0)
    first, second = most_different(one, other)
    assert len(first) == len(second) == RATE_HZ
    assert np.array_equal(first[1000:-1000], one[1000:-1000])
    assert len(beginning(one)) == RATE_HZ
    assert len(beginning(tone(120, 11))) == 10 * RATE_HZ


def test_flac_loses_nothing_and_mp3_is_said() -> None:
    sounds = {"1": tone(120, 0.5), "2": 9 * tone(120, 0.5)}
    lossless = encoded(sounds)
    assert lossless.kind == "FLAC"
    for number, samples in sounds.items():
        read, rate_hz = soundfile.read(BytesIO(base64.b64decode(lossless.content[number])), dtype="int16")
        assert rate_hz == RATE_HZ
        assert np.array_equal(read, to_pcm16(samples))
    assert encoded(sounds, budget_bytes=100).kind == "MP3"


def test_what_is_no_sound_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.wav is not there: run"):
        read_sound(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav: is no sound file"):
        read_sound(tmp_path / "text.wav")
    soundfile.write(tmp_path / "fast.wav", tone(120, 0.1), 48_000)
    with pytest.raises(ValueError, match=r"fast\.wav: expected mono at 24000 Hz, found 1 channels at 48000 Hz"):
        read_sound(tmp_path / "fast.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE_HZ)
    with pytest.raises(ValueError, match=r"empty\.wav: has no samples, so it has changed: run `miso-eval run --fresh"):
        read_sound(tmp_path / "empty.wav")


def test_a_difference_that_no_trial_plays_is_none(tmp_path: Path) -> None:
    one = tone(120, 0.5)
    other = one.copy()
    other[0] = other[-1] = 0.5  # where both are faded to zero
    for name, samples in (("one", one), ("other", other)):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE_HZ, subtype="PCM_16")
    assert not are_equal(one, other)
    assert are_equal(*heard_pair(tmp_path / "one.wav", tmp_path / "other.wav"))
    constant = np.full(100, 100 / 32767, np.float32)
    assert are_equal(constant, constant + np.float32(0.4 / 32767))
    assert not are_equal(constant, constant + np.float32(0.6 / 32767))


def test_one_step_clips_out_of_step_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "fp16.wav", tone(120, 1.0), RATE_HZ)
    soundfile.write(tmp_path / "q4_0.wav", tone(120, 1.1), RATE_HZ)
    with pytest.raises(ValueError, match=r"q4_0\.wav: has 26400 samples and fp16\.wav 24000, .*: run `miso-eval run"):
        heard_pair(tmp_path / "fp16.wav", tmp_path / "q4_0.wav")
