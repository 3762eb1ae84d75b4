"""A voice survives its file; what is no voice is refused in one line that says what to do."""

import errno
import os
import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import soundfile
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.voice import MAX_TEXT_CHARS, MAX_VOICE_FRAMES, Voice

SPEECH = Path(__file__).parents[1] / "data" / "speech.flac"
CODES = np.array([[1, 2, 3], [4, 5, 2047]])
METADATA = {"miso.voice": "1", "text": "Hi.", "speaker": "0", "name": "", "sample_rate_hz": "24000"}


class FakeCodec:
    """Codes that tell how many samples came in."""

    def encode(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        self.samples = samples
        return np.full((-(-samples.size // 1920), 8), 3, np.int64)


def saved(path: Path, codes: npt.NDArray[Any], **changes: str | None) -> Path:
    metadata = {name: value for name, value in {**METADATA, **changes}.items() if value is not None}
    safetensors.numpy.save_file({"codes": codes}, path, metadata)
    return path


@settings(deadline=None)
@given(
    st.integers(1, 20).flatmap(lambda n: st.lists(st.lists(st.integers(0, 32767), min_size=n, max_size=n), min_size=1)),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    st.integers(0, 10**6),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
)
def test_a_voice_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, codes: list[list[int]], text: str, speaker: int, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.voice"
    voice = Voice(np.array(codes), text, speaker, name)
    voice.save(path)
    loaded = Voice.load(str(path))
    assert loaded.codes.dtype == np.int64
    np.testing.assert_array_equal(loaded.codes, codes)
    assert (loaded.text, loaded.speaker, loaded.name) == (text, speaker, name)
    assert loaded.digest == voice.digest


def test_the_file_is_small_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"an older file")
    Voice(np.ones((375, 32), np.int32), "Hi.").save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size < 375 * 32 * 2 + 400
    assert safetensors.numpy.load_file(path)["codes"].dtype == np.int16


def test_codes_are_a_copy_and_read_only() -> None:
    codes = CODES.copy()
    voice = Voice(codes, "Hi.")
    codes[:] = 0
    assert voice.codes.tolist() == CODES.tolist()
    with pytest.raises(ValueError, match="read-only"):
        voice.codes[0, 0] = 9
    with pytest.raises(FrozenInstanceError):
        voice.text = "no"  # type: ignore[misc]
    assert voice.seconds == 0.16


def test_the_speaker_may_be_any_whole_number(tmp_path: Path) -> None:
    voice = Voice(CODES, "Hi.", np.uint8(3))
    assert type(voice.speaker) is int
    voice.save(tmp_path / "a.voice")
    assert Voice.load(tmp_path / "a.voice").digest == voice.digest == Voice(CODES, "Hi.", 3).digest


def test_the_digest_is_of_all_that_the_model_sees() -> None:
    digests = {
        Voice(CODES, "Hi.").digest,
        Voice(CODES, "Hi").digest,
        Voice(CODES, "Hi.", 1).digest,
        Voice(CODES[:1], "Hi.").digest,
        Voice(CODES + np.eye(2, 3, dtype=int), "Hi.").digest,
        Voice(CODES.reshape(3, 2), "Hi.").digest,
    }
    assert len(digests) == 6
    same = [Voice(CODES.astype(np.int16), "Hi.", name="Anna"), Voice(np.asfortranarray(CODES), "Hi.")]
    assert {voice.digest for voice in same} <= digests
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CODES[0], "Hi."), r"integer codes \[frames, codebooks\], not int64 \[3\]"),
        ((CODES[:0], "Hi."), r"not int64 \[0, 3\]"),
        ((CODES[:, :0], "Hi."), r"not int64 \[2, 0\]"),
        ((CODES * 1.0, "Hi."), r"not float64 \[2, 3\]"),
        ((CODES > 1, "Hi."), r"not bool \[2, 3\]"),
        ((CODES - 2, "Hi."), "has code -1, expected 0 to 32767; make the voice again"),
        ((CODES + 30721, "Hi."), "has code 32768, expected 0 to 32767"),
        ((np.array([[2**64 - 1]], np.uint64), "Hi."), "has code 18446744073709551615"),
        ((np.zeros((376, 1), int), "Hi."), "30.1 s long, at most 30 s can be used; cut it"),
        ((CODES, ""), "needs the words that are said in its audio"),
        ((CODES, " \n"), "needs the words that are said in its audio"),
        ((CODES, "x" * (MAX_TEXT_CHARS + 1)), "has 2001 characters"),
        ((CODES, "a\udc80"), "bytes that are not UTF-8"),
        ((CODES, "Hi.", 0, "\ud800"), "bytes that are not UTF-8"),
        ((CODES, "Hi.", -1), "a speaker is a number from 0, not -1"),
        ((CODES, "Hi.", True), "not True"),
        ((CODES, "Hi.", "Anna"), "not 'Anna'"),
    ],
)
def test_what_is_no_voice(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Voice(*arguments)


def test_the_codec_must_be_the_same() -> None:
    voice = Voice(CODES, "Hi.", name="Anna")
    voice.check(3, 2048)
    with pytest.raises(
        ValueError, match=r"voice 'Anna' has 3 codebooks, the model's codec has 32; make the voice again"
    ):
        voice.check(32, 2048)
    with pytest.raises(ValueError, match="has 3 codebooks, the model's codec has 2"):
        voice.check(2, 2048)
    with pytest.raises(ValueError, match="the voice has code 2047, the model's codec has 0 to 2046"):
        Voice(CODES, "Hi.").check(3, 2047)


@pytest.mark.parametrize("kind", [str, Path])
def test_from_a_file(kind: type) -> None:
    codec = FakeCodec()
    voice = Voice.from_audio(kind(SPEECH), "She sells.", codec, speaker=2, name="Anna")
    assert codec.samples.size == 125_707
    assert voice.codes.shape == (66, 8)
    assert (voice.text, voice.speaker, voice.name) == ("She sells.", 2, "Anna")


def test_from_a_recording_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.full((44_100, 2), 0.5), 44_100, "PCM_U8")
    codec = FakeCodec()
    assert Voice.from_audio(path, "One.", codec).codes.shape == (13, 8)
    assert abs(codec.samples.size - 24_000) <= 1


def test_from_samples() -> None:
    codec = FakeCodec()
    assert len(Voice.from_audio(np.full(720_000, 0.5), "Hi.", codec).codes) == MAX_VOICE_FRAMES
    assert len(Voice.from_audio(np.full(1921, 0.5, np.float32), "Hi.", codec).codes) == 2


def test_a_recording_of_just_30_s_that_resampling_made_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miso_gguf.runtime.voice.read_audio", lambda *_, **__: np.full(720_001, 0.5, np.float32))
    assert len(Voice.from_audio(tmp_path / "v.wav", "Hi.", FakeCodec()).codes) == MAX_VOICE_FRAMES


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.full(720_001, 0.5, np.float32), r"30\.0 s long, at most 30 s can be used; cut it to its best 5 to 15 s"),
        (np.zeros(24_000, np.float32), "is silence"),
        (np.array([0.5, np.nan], np.float32), "NaN or infinity"),
        (np.array([0.5, -np.inf], np.float32), "NaN or infinity"),
        (np.zeros(0, np.float32), r"float32 \[0\], expected float32 \[n\]"),
        (np.zeros((5, 2), np.float32), r"float32 \[5, 2\], expected float32 \[n\]; mix it down"),
        (np.ones(5, np.int16), r"int16 \[5\], expected float32"),
    ],
)
def test_samples_that_are_no_speech(samples: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Voice.from_audio(samples, "Hi.", FakeCodec())


def test_the_words_are_asked_for_before_the_audio_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the words"):
        Voice.from_audio(tmp_path / "none.wav", " ", FakeCodec())


def test_recordings_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        Voice.from_audio(tmp_path / "none.wav", "Hi.", FakeCodec())
    soundfile.write(tmp_path / "long.wav", np.full(8000 * 600, 0.5), 8000, "PCM_U8")
    with pytest.raises(ValueError, match=r"long\.wav: 600.* s"):
        Voice.from_audio(tmp_path / "long.wav", "Hi.", FakeCodec())


_VALID = safetensors.numpy.save({"codes": CODES.astype(np.int16)}, METADATA)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty (0 bytes); make the voice again from its audio"),
        (b"RIFF....WAVEfmt ", "not a voice file, or a damaged one"),
        (_VALID[:-1], "not a voice file, or a damaged one"),
        (_VALID + b"x", "not a voice file, or a damaged one"),
        (_VALID[:40], "not a voice file, or a damaged one"),
        (bytes((1 << 20) + 1), "1048577 bytes, a voice file has at most 1048576; an audio file must be made"),
    ],
    ids=["empty", "another kind", "cut", "longer", "a beginning", "too large"],
)
def test_files_that_are_no_voice(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "v"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Voice.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codes", "changes", "message"),
    [
        (CODES.astype(np.int16), {"miso.voice": None}, "safetensors, but not a voice"),
        (CODES.astype(np.int16), {"miso.voice": "2"}, "a voice of format '2', known is '1'; update"),
        (CODES, {}, r"its codes are I64 [2, 3], expected I16"),
        (CODES[0].astype(np.int16), {}, r"its codes are I16 [3], expected"),
        (CODES[:0].astype(np.int16), {}, r"its codes are I16 [0, 3], expected"),
        ((CODES - 2).astype(np.int16), {}, "has code -1, expected 0 to"),
        (np.zeros((376, 2), np.int16), {}, "30.1 s long"),
        (CODES.astype(np.int16), {"text": None}, "needs the words"),
        (CODES.astype(np.int16), {"text": " "}, "needs the words"),
        (CODES.astype(np.int16), {"speaker": None}, "its speaker is '', expected a number"),
        (CODES.astype(np.int16), {"speaker": "-1"}, "its speaker is '-1', expected a number"),
        (CODES.astype(np.int16), {"speaker": "9" * 5000}, "expected a number"),
        (CODES.astype(np.int16), {"sample_rate_hz": "48000"}, "a voice at 48000 Hz, expected 24000"),
        (CODES.astype(np.int16), {"sample_rate_hz": None}, "a voice at None Hz, expected 24000"),
    ],
)
def test_safetensors_that_are_no_voice(
    tmp_path: Path, codes: npt.NDArray[Any], changes: dict[str, str | None], message: str
) -> None:
    path = saved(tmp_path / "v", codes, **changes)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Voice.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_file_without_metadata_or_codes_is_no_voice(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"codes": CODES}, tmp_path / "v")
    with pytest.raises(ValueError, match="safetensors, but not a voice"):
        Voice.load(tmp_path / "v")
    safetensors.numpy.save_file({"other": CODES}, tmp_path / "v", METADATA)
    with pytest.raises(ValueError, match="safetensors, but not a voice"):
        Voice.load(tmp_path / "v")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none: no such voice file; check the path"):
        Voice.load(tmp_path / "none")
    with pytest.raises(ValueError, match="not a file"):
        Voice.load(tmp_path)


@settings(max_examples=examples(200), deadline=None)
@given(st.dictionaries(st.integers(0, len(_VALID) - 1), st.integers(0, 255), max_size=4), st.integers(0, len(_VALID)))
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, edits: dict[int, int], cut: int) -> None:
    content = bytearray(_VALID)
    for position, value in edits.items():
        content[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.voice"
    for damaged in (bytes(content), bytes(content[:cut])):
        path.write_bytes(damaged)
        try:
            voice = Voice.load(path)
        except ValueError:
            continue
        # Only its data were hit, or something that nobody reads.
        assert voice.codes.size == CODES.size
        assert voice.codes.min() >= 0
        assert voice.text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MisoError, match=r"v: the voice cannot be written \(No space left on device\); choose"):
        Voice(CODES, "Hi.").save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(MisoError, match="cannot be written"):
        Voice(CODES, "Hi.").save(tmp_path / "none" / "v")
    with pytest.raises(MisoError, match="cannot be written"):
        Voice(CODES, "Hi.").save(tmp_path)
    assert list(tmp_path.iterdir()) == []
