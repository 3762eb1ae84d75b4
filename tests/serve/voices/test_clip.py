"""Strangers' clips: what clients record is read, and what harms is refused by a process that can do little."""

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from clips import clip, container, tone, wav_head
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.serve.errors import ApiError
from miso_gguf.serve.voices import clip as reading
from miso_gguf.serve.voices.clip import clip_bytes, read_clip


def refusal(data: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_clip(data, "audio_sample"))
    return caught.value


async def _read_all(*clips: bytes) -> list[object]:
    """Together, as they take their time to start."""
    return await asyncio.gather(*map(read_clip, clips), return_exceptions=True)


def test_what_libsndfile_reads_is_read_exactly() -> None:
    samples = asyncio.run(read_clip(clip(tone(), subtype="FLOAT")))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, tone())


def test_what_browsers_and_phones_record_is_read() -> None:
    kinds = [
        clip(tone(), kind="OGG"),
        container("webm", "libopus"),
        container("ipod", "aac"),
        container("adts", "aac", rate_hz=44_100),
        container("mp4", "aac", picture=True),
    ]
    for samples in asyncio.run(_read_all(*kinds)):
        assert isinstance(samples, np.ndarray), samples
        assert 23_900 < len(samples) < 25_700
        middle = samples[8000:16_000]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        assert abs(np.argmax(spectrum) * 24_000 / len(middle) - 440) < 4
        assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.long
def test_bombs_are_refused_and_named_as_the_client_does() -> None:
    ten_minutes = clip(np.zeros(600 * 24_000, np.float32), kind="FLAC")
    assert len(ten_minutes) < 50_000
    too_long = "audio_sample: 600.0 s of audio, at most 30 s can be used. Cut it, for example with `ffmpeg -i IN"
    assert refusal(ten_minutes).message.startswith(too_long)
    cases = {
        container("mp4", "aac", 31, 16_000): "s of audio, at most 30 s can be used",
        wav_head(1024, 192_000, 0x7FFFFFFF) + bytes(1 << 20): "0.00 s of audio, too short",
        wav_head(1, 24_000, 0xFFFFFFF0) + bytes(48_000): "is silence",
        b"": "the file is empty (0 bytes)",
        b"hello, I am text\n" * 99: "not audio that can be read (Format not recognised). WAV, FLAC, Ogg, "
        "MP3, AIFF, AAC, AMR, MP4 (M4A, MOV) and WebM are: convert it",
        b"\x1a\x45\xdf\xa3" + b"x" * 999: "not audio that can be read (Invalid data",
        b"\0\0\0\x20ftypisom" + b"\xff" * 999: "not audio that can be read (Invalid data",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n": "not audio that can be read",
    }
    for (data, message), error in zip(cases.items(), asyncio.run(_read_all(*cases)), strict=True):
        assert isinstance(error, ApiError), data[:20]
        assert (error.status, error.param) == (400, "ref_audio")
        assert error.message.startswith("ref_audio: ")
        assert message in error.message
        assert "/tmp" not in error.message


@pytest.mark.skipif(sys.platform != "linux", reason="others limit less")
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("bytearray(1 << 30)", "MemoryError"),
        ("open('/etc/passwd')", "Too many open files"),
        ("import socket; socket.socket()", "Too many open files"),
    ],
)
def test_a_reader_can_reach_nothing(code: str, error: str) -> None:
    program = f"from miso_gguf.serve.voices import child; child._shut_in(); {code}"
    environment = reading._environment()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert error in done.stderr


def test_a_reader_is_told_nothing_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISO_API_KEY", "secret")
    assert "secret" not in reading._environment().values()
    assert set(reading._environment()) <= {"PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SYSTEMROOT"}


def _instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Run this as the reader."""
    monkeypatch.setattr(reading, "_environment", lambda: {"PYTHONPATH": str(tmp_path)})
    monkeypatch.setattr(reading, "__package__", "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "child.py").write_text(f"import os, sys, time\n{code}\n")


@pytest.mark.parametrize(
    "code",
    [
        "os.kill(os.getpid(), 11)",
        "sys.exit(1)",
        "sys.stdout.buffer.write(b'abc')",
        "sys.stdin.close(); os.abort()",
        "sys.stdin.buffer.read()\nwhile True: sys.stdout.buffer.write(bytes(1 << 20))",
    ],
    ids=["crash", "failure", "half a sample", "reads nothing", "endless"],
)
def test_a_reader_that_breaks_is_a_clip_that_cannot_be_read(
    code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _instead(monkeypatch, tmp_path, code)
    error = refusal(bytes(5 << 20))
    assert (error.status, error.param) == (400, "audio_sample")
    assert error.message == "audio_sample: not audio that can be read (damaged). Record or export it again."


def test_a_reader_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _instead(monkeypatch, tmp_path, "time.sleep(600)")
    monkeypatch.setattr(reading, "WALL_S", 0.2)
    before = {*psutil.Process().children()}  # of other tests
    assert "takes too long" in refusal(b"x").message
    assert {*psutil.Process().children()} <= before


def test_what_reads_a_clip_ends_when_it_is_cancelled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _instead(monkeypatch, tmp_path, f"open(f'{tmp_path}/' + str(os.getpid()), 'w'); time.sleep(600)")
    monkeypatch.chdir(tmp_path)

    def begun() -> list[int]:
        return [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]

    async def run() -> list[int]:
        tasks = [asyncio.create_task(read_clip(b"x")) for _ in range(2)]
        while len(begun()) < 2:
            await asyncio.sleep(0.01)
        pids = begun()
        for task in reversed(tasks):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        return pids

    pids = asyncio.run(run())
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert os.getpid() not in pids


@given(
    st.binary(min_size=1, max_size=99), st.sampled_from(["", "data:audio/webm;codecs=opus;base64,", "DATA:;BASE64,"])
)
def test_base64_and_data_urls_are_clips(data: bytes, head: str) -> None:
    assert clip_bytes(head + base64.b64encode(data).decode(), 99) == data


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("http://169.254.169.254/latest", "URLs are not fetched"),
        ("HTTPS://example.org/a.wav", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("data:audio/wav,abc", "URLs are not fetched"),
        ("/etc/passwd", "paths are not read"),
        ("../../key.txt", "paths are not read"),
        ("C:\\key.txt", "paths are not read"),
        ("aGVsbG8", "this is neither"),
        ("aGV\nsbG8=", "this is neither"),
        ("\udc80\u20ac", "this is neither"),
        ("", "this is empty"),
        ("data:audio/wav;base64,", "this is empty"),
    ],
)
def test_what_is_no_clip_is_refused(value: str, message: str) -> None:
    with pytest.raises(ApiError, match="ref_audio is a clip in base64") as caught:
        clip_bytes(value, 1000)
    assert (caught.value.status, caught.value.param) == (400, "ref_audio")
    assert message in caught.value.message


def test_a_clip_that_is_too_large_is_not_decoded() -> None:
    assert len(clip_bytes(base64.b64encode(bytes(1000)).decode(), 1000)) == 1000
    with pytest.raises(ApiError, match="more than 1000 bytes") as caught:
        clip_bytes(base64.b64encode(bytes(1003)).decode(), 1000)
    assert caught.value.status == 413


@settings(max_examples=examples(30))
@given(st.text(max_size=60))
def test_any_other_text_is_bytes_or_refused(text: str) -> None:
    refused = None
    try:
        assert clip_bytes(text, 1000)
    except ApiError as error:
        refused = error.param
    assert refused in (None, "ref_audio")
