"""Speech as bytes: each format is read, by another library than wrote it where one can, and held against the sound."""

import hashlib
import io
import struct
import threading
from itertools import pairwise
from typing import Any, get_args

import av
import numpy as np
import pytest
import soundfile
from elsewhere import Elsewhere
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.runtime.audio.samples import Samples, to_pcm16
from miso_gguf.serve.sound.encoding import open_encoder
from miso_gguf.serve.sound.formats import FORMATS, FormatName

FRAME = 1920
MP3_LEAD, AAC_LEAD = 1105, 1024 + 128
"""Samples by which what is read begins too late, where no header says so."""

STREAMED, WHOLE = False, True


def voice(count: int, seed: int = 0) -> Samples:
    """A tone that glides and swells to the very last sample, with a little noise; at first it is past full scale."""
    t = np.arange(count) / 24_000
    sound = 0.5 * np.sin(2 * np.pi * (200 + 100 * t) * t) * (1 + np.sin(2 * np.pi * 3 * t)) / 2
    sound[:FRAME] *= 4
    noise = 0.01 * np.random.default_rng(seed).standard_normal(count)
    return np.asarray(sound + noise, np.float32)


SOUND = voice(12 * FRAME + 137)
CUTS = st.lists(st.one_of(st.sampled_from([0, 1, 7, 576, 1024, FRAME]), st.integers(0, 5000)), max_size=30)


def chunked(sound: Samples, sizes: list[int]) -> list[Samples]:
    """Cut after so many samples each, as far as it goes; the rest is one more chunk."""
    bounds = [0, *np.minimum(np.cumsum(sizes), len(sound)).tolist(), len(sound)] if sizes else [0, len(sound)]
    return [sound[start:end] for start, end in pairwise(bounds)]


def frames(sound: Samples) -> list[Samples]:
    return chunked(sound, [FRAME] * (len(sound) // FRAME))


def encoded(name: str, chunks: list[Samples], whole: bool) -> list[bytes]:
    with open_encoder(name, whole=whole) as encoder:
        return [*(encoder.encode(chunk) for chunk in chunks), encoder.finish()]


def whole_file(name: str, sound: Samples, whole: bool = WHOLE) -> bytes:
    return b"".join(encoded(name, [sound], whole))


def decoded(content: bytes, container_format: str | None = None) -> NDArray[Any]:
    """By FFmpeg, which finds out the format by itself if there is enough of it."""
    with av.open(io.BytesIO(content), format=container_format) as container:
        assert container.streams.audio[0].channels == 1
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def read(name: str, content: bytes) -> Samples:
    """As floats at 24 kHz: by libsndfile where it can."""
    if name in ("aac", "flac"):
        found = decoded(content)
        return np.asarray(found * (1 / 32768 if found.dtype == np.int16 else 1), np.float32)
    if name == "pcm":
        return (np.frombuffer(content, "<i2") / 32768).astype(np.float32)
    samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate_hz == 24_000
    return np.asarray(samples)


def snr_db(found: Samples, wanted: Samples) -> float:
    assert found.shape == wanted.shape
    return 10 * float(np.log10(np.sum(wanted**2) / np.sum((found - wanted) ** 2)))


def test_formats() -> None:
    assert tuple(FORMATS) == get_args(FormatName)
    assert {name: (each.name, each.media_type, each.ending) for name, each in FORMATS.items()} == {
        "mp3": ("mp3", "audio/mpeg", ".mp3"),
        "opus": ("opus", "audio/opus", ".opus"),
        "aac": ("aac", "audio/aac", ".aac"),
        "flac": ("flac", "audio/flac", ".flac"),
        "wav": ("wav", "audio/wav", ".wav"),
        "pcm": ("pcm", "audio/pcm", ".pcm"),
    }


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match="response_format 'ogg' is none of mp3, opus, aac, flac, wav, pcm"):
        open_encoder("ogg", whole=False)


@pytest.mark.parametrize("whole", [STREAMED, WHOLE])
@pytest.mark.parametrize("name", FORMATS)
@given(sizes=CUTS)
@settings(max_examples=examples(12))
def test_chunks_do_not_matter(name: str, whole: bool, sizes: list[int]) -> None:
    """The very bytes are the same, and so what is read is; empty chunks and single samples too."""
    sound = SOUND[: 5 * FRAME + 11]
    assert b"".join(encoded(name, chunked(sound, sizes), whole)) == whole_file(name, sound, whole)


def test_pcm_wav_and_flac_are_the_same_samples() -> None:
    wanted = to_pcm16(SOUND)
    assert wanted.max() == 32767  # what is past full scale is limited, once, for all formats
    for whole in (STREAMED, WHOLE):
        assert np.array_equal(np.frombuffer(whole_file("pcm", SOUND, whole), "<i2"), wanted)
        assert np.array_equal(np.frombuffer(whole_file("wav", SOUND, whole)[44:], "<i2"), wanted)
        assert np.array_equal(decoded(whole_file("wav", SOUND, whole)), wanted)
        assert np.array_equal(decoded(whole_file("flac", SOUND, whole)), wanted)
    for name in ("wav", "flac"):
        samples, rate_hz = soundfile.read(io.BytesIO(whole_file(name, SOUND)), dtype="int16")
        assert rate_hz == 24_000
        assert np.array_equal(samples, wanted)


@pytest.mark.parametrize(("whole", "riff", "data"), [(STREAMED, 0xFFFFFFFF, 0xFFFFFFFF), (WHOLE, 36 + 2000, 2000)])
def test_wav_header(whole: bool, riff: int, data: int) -> None:
    expected = [b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, 24_000, 48_000, 2, 16, b"data", data]
    assert list(struct.unpack("<4sI4s4sIHHIIHH4sI", whole_file("wav", SOUND[:1000], whole)[:44])) == expected


def test_flac_header() -> None:
    """Its length in samples, and the MD5 of them: zero if nobody knows. The frames are the same, and none is long."""
    whole, streamed = (whole_file("flac", SOUND, each) for each in (WHOLE, STREAMED))
    assert streamed[42:] == whole[42:]
    pcm = to_pcm16(SOUND).astype("<i2").tobytes()
    for content, samples, md5 in ((whole, len(SOUND), hashlib.md5(pcm).digest()), (streamed, 0, bytes(16))):
        assert content[:4] == b"fLaC"
        assert content.index(b"\xff\xf8") < 100  # the first frame: no room is kept before it
        assert struct.unpack(">HH", content[8:12]) == (576, 576)
        assert int.from_bytes(content[18:26], "big") & (1 << 36) - 1 == samples
        assert content[26:42] == md5


def test_mp3_streamed_and_whole_are_the_same_samples() -> None:
    """A frame that says the length stands before what is streamed; a reader leaves out then what is not the sound."""
    whole, streamed = (whole_file("mp3", SOUND, each) for each in (WHOLE, STREAMED))
    assert whole[13:17] == b"Info"
    assert whole == whole[: len(whole) - len(streamed)] + streamed
    assert not any(word in streamed for word in (b"Info", b"Xing", b"ID3"))
    samples = decoded(whole)
    assert len(samples) == len(SOUND) == soundfile.info(io.BytesIO(whole)).frames
    assert np.array_equal(samples, decoded(streamed)[MP3_LEAD : MP3_LEAD + len(SOUND)])


@pytest.mark.parametrize("name", ["opus", "aac"])
def test_streamed_and_whole_are_the_same_bytes(name: str) -> None:
    """An Ogg stream says at its end how long it is, and ADTS never."""
    assert b"".join(encoded(name, frames(SOUND), STREAMED)) == whole_file(name, SOUND)


@pytest.mark.parametrize(
    ("name", "whole", "lead", "least_db"),
    [
        ("mp3", STREAMED, MP3_LEAD, 20),
        ("mp3", WHOLE, 0, 20),
        ("opus", STREAMED, 0, 12),
        ("aac", STREAMED, AAC_LEAD, 15),
        ("flac", STREAMED, 0, 70),
        ("wav", WHOLE, 0, 70),
        ("pcm", STREAMED, 0, 70),
    ],
)
def test_the_sound_and_its_tail_are_there(name: str, whole: bool, lead: int, least_db: float) -> None:
    """No sample early or late; the end is as well as the rest."""
    found = read(name, b"".join(encoded(name, frames(SOUND), whole)))
    wanted = np.clip(SOUND, -1, 1)
    if lead == 0:
        assert len(found) == len(SOUND)
    sound = found[lead : lead + len(SOUND)]
    assert snr_db(sound, wanted) > least_db
    assert snr_db(sound[-480:], wanted[-480:]) > least_db


@pytest.mark.parametrize(
    ("name", "start", "held_back"),
    [
        ("mp3", b"\xff\xf3", 1920),
        ("opus", b"OggS", 640),
        ("aac", b"\xff\xf1", 1920),
        ("flac", b"fLaC", 576),
        ("wav", b"RIFF", 0),
        ("pcm", b"", 0),
    ],
)
def test_bytes_leave_at_once(name: str, start: bytes, held_back: int) -> None:
    """With each frame of the model, from the first; of the samples that went in, all but so many can be read."""
    content, went_in = b"", 0
    with open_encoder(name, whole=False) as encoder:
        for chunk in frames(SOUND)[:10]:
            leaves = encoder.encode(chunk)
            assert leaves
            content, went_in = content + leaves, went_in + len(chunk)
            assert content.startswith(start)
            if name in ("mp3", "aac") and went_in <= FRAME:
                continue  # a frame of these is heard with the next one
            container_format = {"opus": "ogg"}.get(name, name)
            samples = len(content) // 2 if name == "pcm" else len(decoded(content, container_format))
            assert went_in - samples // (2 if name == "opus" else 1) <= held_back


@pytest.mark.parametrize("name", FORMATS)
def test_whole_comes_at_the_end(name: str) -> None:
    *early, late = encoded(name, frames(SOUND), WHOLE)
    assert set(early) == {b""}
    assert late == whole_file(name, SOUND)


@pytest.mark.parametrize("whole", [STREAMED, WHOLE])
@pytest.mark.parametrize("name", FORMATS)
def test_no_sound(name: str, whole: bool) -> None:
    """A valid file, and where that needs a frame, of 80 ms of silence."""
    content = b"".join(encoded(name, [SOUND[:0]], whole))
    if name in ("pcm", "wav"):
        assert len(content) == {"pcm": 0, "wav": 44}[name]
        return
    samples = read(name, content)
    assert len(samples) >= FRAME
    assert np.abs(samples).max() < 1e-4


@pytest.mark.parametrize("name", FORMATS)
def test_finished_and_closed(name: str) -> None:
    encoder = open_encoder(name, whole=False)
    encoder.encode(SOUND)
    encoder.finish()
    dropped = open_encoder(name, whole=False)
    dropped.encode(SOUND)
    dropped.close()
    never_used = open_encoder(name, whole=True)
    never_used.close()
    for each in (encoder, dropped, never_used):
        assert each.finish() == b""
        each.close()
        each.close()
        with pytest.raises(ValueError, match="finished or closed"):
            each.encode(SOUND)


def test_a_failing_encoder_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder("opus", whole=False)
    encoder.encode(SOUND)

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(encoder, "_end", fail)
    with pytest.raises(MemoryError):
        encoder.finish()
    assert encoder.finish() == b""


def test_many_at_once() -> None:
    """Two of each format in threads of their own, in step: each gives what it gives alone."""
    sounds = [voice(6 * FRAME, seed) for seed in (1, 2)]
    tasks = [(name, sound) for name in FORMATS for sound in sounds]
    barrier = threading.Barrier(len(tasks))

    def encode(name: str, sound: Samples) -> bytes:
        with open_encoder(name, whole=False) as encoder:
            parts = []
            for chunk in frames(sound):
                barrier.wait(60)
                parts.append(encoder.encode(chunk))
            return b"".join([*parts, encoder.finish()])

    threads = [Elsewhere(encode, *task) for task in tasks]
    for thread, (name, sound) in zip(threads, tasks, strict=True):
        assert thread.result() == whole_file(name, sound, STREAMED)
