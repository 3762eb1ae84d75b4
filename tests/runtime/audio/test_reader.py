"""Recordings in every format and every state of disrepair; and what the arrays of samples can do."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.audio.reader import read_audio
from miso_gguf.runtime.audio.samples import (
    Resampler,
    after_pause,
    checked,
    cut_off,
    dbfs,
    faded,
    peak_dbfs,
    ramp_down,
    resampled,
    silence,
    to_pcm16,
)

Samples = NDArray[np.float32]

SPEECH = Path(__file__).parents[2] / "data" / "speech.flac"


def tone(seconds: float, sample_rate_hz: int = 24_000, amplitude: float = 0.5) -> NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz)


def write(path: Path, samples: NDArray[Any], sample_rate_hz: int = 24_000, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, sample_rate_hz, subtype=subtype)
    return path


def test_speech_is_read_as_it_is() -> None:
    samples = read_audio(SPEECH)
    assert samples.dtype == np.float32
    assert np.array_equal(samples, soundfile.read(SPEECH, dtype="float32")[0])


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 4e-5),
        ("a.wav", "PCM_U8", 1e-2),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-7),
        ("a.wav", "FLOAT", 1e-7),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.wav", "ULAW", 3e-2),
        ("a.aiff", "PCM_16", 4e-5),
        ("a.flac", "PCM_24", 1e-6),
        ("a.ogg", "VORBIS", 6e-2),
        ("a.mp3", "MPEG_LAYER_III", 6e-2),
    ],
)
def test_every_depth_and_format_is_read(name: str, subtype: str, tolerance: float, tmp_path: Path) -> None:
    samples = read_audio(write(tmp_path / name, tone(1.0), subtype=subtype))
    assert samples.shape == (24_000,)
    np.testing.assert_allclose(samples[2000:-2000], tone(1.0)[2000:-2000], atol=tolerance)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000, 96_000])
def test_other_rates_become_24_khz(rate_hz: int, tmp_path: Path) -> None:
    samples = read_audio(write(tmp_path / "a.wav", tone(1.0, rate_hz), rate_hz))
    assert abs(len(samples) - 24_000) <= 1
    np.testing.assert_allclose(samples[1000:-1000], tone(1.0)[1000 : len(samples) - 1000], atol=2e-3)


def test_another_rate_can_be_asked_for() -> None:
    assert len(read_audio(SPEECH, sample_rate_hz=48_000)) == 2 * len(read_audio(SPEECH))


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(1.0, 44_100, 0.6), tone(1.0, 44_100, 0.2)], axis=1)
    mixed = read_audio(write(tmp_path / "stereo.wav", stereo, 44_100, "FLOAT"))
    mono = read_audio(write(tmp_path / "mono.wav", tone(1.0, 44_100, 0.4), 44_100, "FLOAT"))
    np.testing.assert_allclose(mixed, mono, atol=1e-6)


def test_louder_than_full_scale_is_scaled_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        samples = read_audio(write(tmp_path / "a.wav", tone(1.0, amplitude=1.0) * 32767, subtype="FLOAT"))
    assert np.abs(samples).max() == pytest.approx(1.0)
    assert "louder than full scale (by 90.3 dB)" in caplog.text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nobody\.wav: no such file.*WAV, FLAC"):
        read_audio(tmp_path / "nobody.wav")


def test_a_directory_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r": a directory\. Expected a recording"):
        read_audio(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a\.wav: the file is empty \(0 bytes\)"),
        (b"hello, this is text and no audio at all\n" * 9, r"a\.wav: not audio .*Format not recognised.*ffmpeg"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", r"a\.wav: not audio that can be read"),
        (b"fLaC" + b"\xff" * 200, r"a\.wav: not audio that can be read"),
    ],
    ids=["nothing", "text", "half a header", "damaged"],
)
def test_what_is_not_audio_is_told(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_audio(tmp_path / "a.wav")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0))
    path.chmod(0)
    with pytest.raises(MisoError, match=r"a\.wav: cannot be read \(Permission denied\)"):
        read_audio(path)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), r"0\.00 s of audio, too short"),
        (tone(0.29), r"0\.29 s of audio, too short"),
        (np.zeros(24_000), r"is silence \(its peak is -120 dBFS\)"),
        (tone(1.0, amplitude=9e-4), r"is silence \(its peak is -61 dBFS\)"),
        (np.array([0.1, np.nan] * 9000), "not finite"),
        (np.array([0.1, np.inf] * 9000), "not finite"),
    ],
    ids=["none", "short", "zeros", "hiss", "nan", "inf"],
)
def test_what_holds_no_voice_is_told(samples: NDArray[Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(ValueError, match=rf"a\.wav: .*{message}"):
        read_audio(path)


def test_just_above_silence_and_at_the_limits_is_read(tmp_path: Path) -> None:
    assert len(read_audio(write(tmp_path / "a.wav", tone(1.0, amplitude=1.1e-3), subtype="FLOAT"))) == 24_000
    assert len(read_audio(write(tmp_path / "b.wav", tone(0.3)))) == 7200
    assert len(read_audio(write(tmp_path / "c.wav", tone(2.0)), max_seconds=2)) == 48_000


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_a_long_recording_is_refused_with_its_length(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, tone(600, 8_000), 8_000)
    with pytest.raises(ValueError, match=rf"{name}: 600\.\d s of audio, at most 30 s .*ffmpeg -i IN -t 30"):
        read_audio(path, max_seconds=30)


@pytest.mark.parametrize("rate_hz", [1, 3_999, 192_001])
def test_sample_rates_out_of_reach_are_told(rate_hz: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0), rate_hz)
    with pytest.raises(ValueError, match=rf"a sample rate of {rate_hz} Hz, expected 4000 to 192000"):
        read_audio(path)


def test_a_file_that_stops_early_gives_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(2.0))
    path.write_bytes(path.read_bytes()[: 44 + 48_000])
    assert len(read_audio(path)) == 24_000


def test_pcm_is_rounded_and_limited() -> None:
    samples = np.array([0, 1, -1, 0.5, 1.5, -7, 1.4 / 32767, 1.6 / 32767], np.float32)
    assert to_pcm16(samples).tolist() == [0, 32767, -32767, 16384, 32767, -32767, 1, 2]


@given(arrays.arrays(np.int16, st.integers(0, 50), elements=st.integers(-32767, 32767)))
def test_pcm_comes_back_the_same(pcm: NDArray[np.int16]) -> None:
    assert np.array_equal(to_pcm16((pcm / 32767).astype(np.float32)), pcm)


def test_levels_in_decibels() -> None:
    assert dbfs(1.0) == 0
    assert dbfs(0.5) == pytest.approx(-6.02, abs=0.01)
    assert dbfs(0.0) == dbfs(1e-9) == -120
    assert peak_dbfs(np.array([0.1, -0.5], np.float32)) == pytest.approx(-6.02, abs=0.01)
    assert peak_dbfs(np.zeros(0, np.float32)) == peak_dbfs(np.zeros(9, np.float32)) == -120


def test_silence_has_its_length() -> None:
    assert silence(80).tolist() == [0.0] * 1920
    assert len(silence(80, 48_000)) == 3840


def test_fades_rise_from_silence_and_leave_the_middle_alone() -> None:
    samples = np.ones(480, np.float32)
    result = faded(samples, start_ms=5, end_ms=10)
    assert result[0] == result[-1] == 0
    assert np.all(np.diff(result[:120]) > 0)
    assert np.all(np.diff(result[-240:]) < 0)
    assert np.all(result[120:240] == 1)
    assert result[60] == pytest.approx(0.5)
    assert np.all(samples == 1)
    assert np.all(faded(samples) == 1)
    assert len(faded(samples[:3], start_ms=5, end_ms=5)) == 3
    assert len(faded(samples[:0], start_ms=5, end_ms=5)) == 0


def test_joined_pieces_have_no_step_at_the_seam() -> None:
    first, second = np.full(2400, 0.8, np.float32), np.full(2400, -0.8, np.float32)
    for pause_ms, silent in ((0, 0), (50, 1200)):
        result = np.concatenate([first, ramp_down(0.8), after_pause(second, pause_ms)])
        assert len(result) == 4800 + 240 + silent
        assert np.abs(np.diff(result)).max() < 0.02
        assert result[-1] == np.float32(-0.8), "the end is no seam"
    assert not ramp_down(0.8)[119:].any(), "and it may be cut out there"
    assert len(ramp_down(0.0)) == 0


def test_what_is_cut_off_ends_in_silence() -> None:
    samples = np.full(1920, 0.8, np.float32)
    result = cut_off(samples)
    assert len(result) == 1920
    np.testing.assert_array_equal(result[:1680], samples[:1680])
    assert np.abs(np.diff(result)).max() < 0.02
    assert not result[-120:].any()
    assert result[-121] == 0 < result[-122]
    assert not cut_off(samples[:100]).any()
    assert len(cut_off(samples[:0])) == 0


@given(sizes=st.lists(st.integers(0, 5000), max_size=8), rate_hz=st.sampled_from([16_000, 24_000, 44_100, 48_000]))
def test_resampling_in_chunks_equals_resampling_at_once(sizes: list[int], rate_hz: int) -> None:
    samples = tone(1.0).astype(np.float32)
    resampler, start, chunks = Resampler(24_000, rate_hz), 0, []
    for size in [*sizes, len(samples)]:
        chunks.append(resampler(samples[start : start + size]))
        start += size
    result = np.concatenate([*chunks, resampler.rest()])
    expected = resampled(samples, 24_000, rate_hz)
    assert len(result) == len(expected) == rate_hz
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_checked_takes_any_floats_and_nothing_else() -> None:
    assert checked([0.5, 0.25]).dtype == np.float32
    for wrong in ([1, 2], [[0.5]], 0.5, ["a"]):
        with pytest.raises(ValueError, match="floating-point numbers"):
            checked(wrong)
