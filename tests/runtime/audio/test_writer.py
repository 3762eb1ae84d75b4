"""Writing speech: valid files whatever happens, and never a half one under the name that was asked for."""

import errno
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from miso_gguf.core.errors import MisoError
from miso_gguf.core.files import PARTIAL_SUFFIX
from miso_gguf.runtime.audio.pipe import RawWriter
from miso_gguf.runtime.audio.writer import AudioWriter

resource = pytest.importorskip("resource")

Samples = NDArray[np.float32]

FORMATS = [".wav", ".flac", ".ogg", ".mp3"]


def tone(seconds: float, amplitude: float = 0.5, sample_rate_hz: int = 24_000) -> Samples:
    time = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    return (amplitude * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def chunks(samples: Samples, size: int = 1920) -> Iterator[Samples]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


@pytest.mark.parametrize("suffix", [*FORMATS, ".WAV"])
@pytest.mark.parametrize("rate_hz", [24_000, 48_000])
def test_every_format_is_written_in_chunks(suffix: str, rate_hz: int, tmp_path: Path) -> None:
    path = tmp_path / f"said{suffix}"
    with AudioWriter(path, rate_hz) as writer:
        for chunk in chunks(tone(1.5)):
            writer.write(chunk)
        assert not path.exists()
    samples, found_hz = soundfile.read(path, dtype="float32")
    assert found_hz == rate_hz
    assert len(samples) == writer.samples_written == 1.5 * rate_hz
    assert writer.seconds == 1.5
    assert writer.clipped == 0
    tolerance = 1e-3 if suffix.lower() in (".wav", ".flac") else 6e-2
    expected = tone(1.5, sample_rate_hz=rate_hz)
    np.testing.assert_allclose(samples[2000:-2000], expected[2000:-2000], atol=tolerance)
    assert names(tmp_path) == [path.name]


def test_wav_flac_and_pipe_hold_the_same_bits(tmp_path: Path) -> None:
    samples, pipe = tone(0.5, 0.9), io.BytesIO()
    for writer in (AudioWriter(tmp_path / "a.wav"), AudioWriter(tmp_path / "a.flac"), RawWriter(pipe)):
        with writer:
            writer.write(samples)
    raw = np.frombuffer(pipe.getvalue(), "<i2")
    assert np.array_equal(raw, np.rint(samples * 32767).astype(np.int16))
    for name in ("a.wav", "a.flac"):
        assert np.array_equal(soundfile.read(tmp_path / name, dtype="int16")[0], raw)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


def test_what_is_too_loud_is_limited_and_counted(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(np.array([0.5, 1.0, 1.01, -3.0], np.float32))
        writer.write(np.array([-1.0, 2.0], np.float32))
    assert writer.clipped == 3
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [16384, 32767, 32767, -32767, -32767, 32767]


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_said_is_a_valid_file(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AudioWriter(tmp_path / f"a{suffix}"):
        pass
    samples, _ = soundfile.read(tmp_path / f"a{suffix}")
    assert len(samples) == 1920
    assert np.abs(samples).max() < 1e-3
    assert "nothing was said" in caplog.text


@pytest.mark.parametrize("name", ["a.aac", "a", ".wav", "a.wav.bak"])
def test_an_unknown_ending_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot tell the format from .*Use \.wav, \.flac, \.ogg, \.mp3"):
        AudioWriter(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_format_that_libsndfile_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = {name: text for name, text in soundfile.available_formats().items() if name != "MP3"}
    monkeypatch.setattr(soundfile, "available_formats", lambda: formats)
    with pytest.raises(ValueError, match=r"a\.mp3: this libsndfile .* cannot write \.mp3\. .*\.wav, \.flac, \.ogg;"):
        AudioWriter(tmp_path / "a.mp3")


@pytest.mark.parametrize("rate_hz", [0, -1, 3_999, 192_001, 500_000])
def test_a_rate_out_of_reach_is_refused_at_once(rate_hz: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{rate_hz} Hz cannot be written, expected 4000 to 192000"):
        AudioWriter(tmp_path / "a.ogg", rate_hz)


def test_a_rate_that_the_format_lacks_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.mp3: MP3 cannot be written at 96000 Hz"):
        AudioWriter(tmp_path / "a.mp3", 96_000)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.wav: no directory .*nowhere\. Create it"):
        AudioWriter(tmp_path / "nowhere" / "a.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ValueError, match=r"folder\.wav: is there already and is not a file"):
        AudioWriter(tmp_path / "folder.wav")
    with pytest.raises(MisoError, match="cannot be created"):
        AudioWriter(tmp_path / ("n" * 250 + ".wav"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_exception_keeps_what_was_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="model"), AudioWriter(path, 48_000) as writer:  # noqa: PT012
        writer.write(tone(1))
        raise RuntimeError("model")
    assert writer.is_kept
    assert len(soundfile.read(path)[0]) == writer.samples_written == 48_000
    assert names(tmp_path) == [path.name]


def test_an_exception_before_anything_was_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="model"), AudioWriter(path) as writer:
        raise RuntimeError("model")
    assert not writer.is_kept
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_ctrl_c_keeps_what_was_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(KeyboardInterrupt), AudioWriter(path, 48_000) as writer:  # noqa: PT012
        for count, chunk in enumerate(chunks(tone(4))):
            if count == 10:
                raise KeyboardInterrupt
            writer.write(chunk)
    assert len(soundfile.read(path)[0]) == 10 * 3840
    assert names(tmp_path) == [path.name]


def test_ctrl_c_before_anything_was_said_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), AudioWriter(tmp_path / "a.wav"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_ctrl_c_between_writing_and_counting_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a first sentence, which is written at once."""
    emit = AudioWriter._emit

    def interrupted(self: AudioWriter, samples: NDArray[np.float32]) -> None:
        emit(self, samples)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), AudioWriter(tmp_path / "a.wav") as writer:  # noqa: PT012
        monkeypatch.setattr(AudioWriter, "_emit", interrupted)
        try:
            writer.write(tone(1))
        finally:
            monkeypatch.undo()
    assert writer.samples_written == len(soundfile.read(tmp_path / "a.wav")[0]) == len(tone(1))


@pytest.mark.parametrize("suffix", FORMATS)
def test_ctrl_c_before_soundfile_counts_is_said_to_keep_what_the_file_holds(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / f"a{suffix}"
    with pytest.raises(KeyboardInterrupt), AudioWriter(path) as writer:  # noqa: PT012
        writer.write(tone(1))
        monkeypatch.setattr(soundfile.SoundFile, "_update_frames", interrupted)
        try:
            writer.write(tone(1))
        finally:
            monkeypatch.undo()
    assert writer.samples_written == soundfile.info(path).frames >= 2 * len(tone(1))


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix not in (".flac", ".mp3")])
def test_ctrl_c_before_soundfile_counts_the_first_sentence_keeps_it(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / f"a{suffix}"
    with pytest.raises(KeyboardInterrupt), AudioWriter(path) as writer:  # noqa: PT012
        monkeypatch.setattr(soundfile.SoundFile, "_update_frames", interrupted)
        try:
            writer.write(tone(1))
        finally:
            monkeypatch.undo()
    assert writer.is_kept
    assert writer.samples_written == soundfile.info(path).frames >= len(tone(1))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_signal_in_the_middle_of_writing_leaves_a_valid_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    program = (
        "import os, signal, sys, threading, numpy as np\n"
        "from miso_gguf.runtime.audio.writer import AudioWriter\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "chunk = np.random.default_rng(0).normal(0, 0.1, 1920).astype(np.float32)\n"
        "with AudioWriter(sys.argv[1]) as writer:\n"
        "    for _ in range(20): writer.write(chunk)\n"
        "    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()\n"
        "    while True: writer.write(chunk)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr
    assert "cffi" not in done.stderr
    assert len(soundfile.read(path)[0]) >= 20 * 1920
    assert names(tmp_path) == [path.name]


@contextmanager
def full_after(size_bytes: int) -> Iterator[None]:
    """Writes beyond this size of a file fail, as on a full disk (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


BEAR_TO_BE_CUT = (".wav", ".ogg")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("limit_bytes", [0, 10, 3000, 20_000])
def test_what_had_room_on_a_full_disk_is_kept(suffix: str, limit_bytes: int, tmp_path: Path) -> None:
    """If the format bears to be cut; of the others nothing is."""
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000 * 8).astype(np.float32)
    path, writer = tmp_path / f"a{suffix}", None
    with pytest.raises(MisoError, match=rf"a{suffix}: could not be written whole") as caught:  # noqa: PT012, SIM117
        with full_after(limit_bytes), AudioWriter(path) as writer:
            for chunk in chunks(noise):
                writer.write(chunk)
    if writer is None or not writer.is_kept:
        assert suffix not in BEAR_TO_BE_CUT or limit_bytes < 4000
        assert "nothing was kept" in str(caught.value)
        assert not list(tmp_path.iterdir())
        return
    assert suffix in BEAR_TO_BE_CUT
    assert "its end is missing" in str(caught.value)
    kept = soundfile.read(path)[0]
    assert len(kept) == writer.samples_written > 0
    assert names(tmp_path) == [path.name]
    if suffix == ".wav":
        assert len(kept) == (limit_bytes - 44) // 2
        np.testing.assert_allclose(kept, noise[: len(kept)], rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_disk_that_fills_up_at_the_very_end_is_noticed(suffix: str, tmp_path: Path) -> None:
    """Whatever the size at which the disk is full, a file that is said to be whole is that."""
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    with AudioWriter(path) as writer:
        writer.write(noise)
    size_bytes, whole = path.stat().st_size, soundfile.read(path)[0]
    path.unlink()
    for missing_bytes in (1, 2, 10, 50, 100, 300, 1000, 3000):
        with pytest.raises(MisoError), full_after(size_bytes - missing_bytes), AudioWriter(path) as writer:
            writer.write(noise)
        assert path.exists() == writer.is_kept
        if writer.is_kept:
            assert suffix in BEAR_TO_BE_CUT
            assert 0 < len(soundfile.read(path)[0]) < len(noise)
            path.unlink()
        assert not list(tmp_path.iterdir())
    with full_after(size_bytes), AudioWriter(path) as writer:
        writer.write(noise)
    assert np.array_equal(soundfile.read(path)[0], whole)


def test_a_disk_without_space_is_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4096))
    with pytest.raises(MisoError, match=r"a\.flac: the disk is full, nothing was kept\. Free some space"):  # noqa: SIM117
        with full_after(1000), AudioWriter(tmp_path / "a.flac") as writer:
            writer.write(tone(1))


def test_two_writers_of_one_name_do_not_mix(tmp_path: Path) -> None:
    first, second = AudioWriter(tmp_path / "a.wav"), AudioWriter(tmp_path / "a.wav")
    first.write(tone(1))
    second.write(tone(0.5))
    with pytest.raises(MisoError, match="another program was writing it"):
        first.close()
    second.close()
    assert soundfile.info(tmp_path / "a.wav").frames == 12_000
    assert names(tmp_path) == ["a.wav"]


def test_a_link_is_followed_and_leftovers_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.wav").write_bytes(b"old")
    (tmp_path / "link.wav").symlink_to("real.wav")
    (tmp_path / f".real.wav{PARTIAL_SUFFIX}").write_bytes(b"of a run that was killed")
    with AudioWriter(tmp_path / "link.wav") as writer:
        writer.write(tone(0.5))
    assert (tmp_path / "link.wav").is_symlink()
    assert soundfile.info(tmp_path / "real.wav").frames == 12_000
    assert names(tmp_path) == ["link.wav", "real.wav"]


def test_a_finished_file_takes_no_more(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(tone(0.5))
        writer.close()
        with pytest.raises(ValueError, match="finished"):
            writer.write(tone(0.5))
    writer.discard()
    assert soundfile.info(tmp_path / "a.wav").frames == 12_000


@pytest.mark.parametrize(
    "samples", [np.array([np.nan], np.float32), np.zeros((1, 5), np.float32), np.zeros(5, np.int16)]
)
def test_what_is_no_audio_is_refused(samples: Samples, tmp_path: Path) -> None:
    for writer in (AudioWriter(tmp_path / "a.wav"), RawWriter(io.BytesIO())):
        with pytest.raises(ValueError, match=r"samples must be|not finite"), writer:
            writer.write(samples)


class Pipe(io.BytesIO):
    """A pipe that notes how much it had at each flush, and may be broken."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.flushed: list[int] = []
        self.broken = broken

    def flush(self) -> None:
        if self.broken:
            raise BrokenPipeError
        self.flushed.append(self.tell())


def test_raw_pcm_is_flushed_chunk_by_chunk() -> None:
    pipe = Pipe()
    with RawWriter(pipe) as writer:
        for chunk in chunks(tone(0.24)):
            writer.write(chunk)
        assert pipe.flushed == [3840, 7680, 11520]
    assert len(pipe.getvalue()) == 11520
    assert writer.seconds == 0.24
    assert not pipe.closed


def test_raw_pcm_at_another_rate_is_whole() -> None:
    pipe = Pipe()
    with RawWriter(pipe, 48_000) as writer:
        for chunk in chunks(tone(0.8)):
            writer.write(chunk)
    raw = np.frombuffer(pipe.getvalue(), "<i2")
    assert len(raw) == 38_400
    np.testing.assert_allclose(raw[2000:-2000] / 32767, tone(0.8, sample_rate_hz=48_000)[2000:-2000], atol=1e-3)


def test_a_broken_pipe_is_the_callers() -> None:
    with pytest.raises(BrokenPipeError), RawWriter(Pipe(broken=True)) as writer:
        writer.write(tone(0.1))


def test_a_pipe_to_a_full_disk() -> None:
    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MisoError, match=r"^standard output cannot be written: No space left on device$"):
        RawWriter(Full()).write(np.zeros(9, np.float32))


def test_a_directory_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    writer = AudioWriter(tmp_path / "gone" / "a.wav")
    writer.write(tone(0.1))
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(MisoError, match=r"a\.wav: its directory was deleted meanwhile"):
        writer.close()
