"""People's recordings as prompts: by name, with their words; all that is wrong with them is said at once."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from miso_gguf.quant_eval.recordings import RecordingsError, read_recordings, recordings_sha256

WORDS = {"b.flac": "We are here.", "a.WAV": "Hello there.\nAgain."}


def recording(path: Path, seconds: float = 1.0, seed: int = 0) -> None:
    sound = 0.1 * np.random.default_rng(seed).standard_normal(round(24_000 * seconds))
    soundfile.write(path, sound, 24_000, format=path.suffix[1:].upper())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "voices"
    place.mkdir()
    for seed, (name, words) in enumerate(WORDS.items()):
        recording(place / name, 0.7 + seed, seed)
        (place / name).with_suffix(".txt").write_text(words)
    (place / "README.md").write_text("passed over")
    return place


def test_they_come_by_name_with_their_words(directory: Path) -> None:
    prompts = read_recordings(directory, 2048)
    assert [(each.id, each.text, each.audio) for each in prompts] == [
        ("a.WAV", "Hello there. Again.", directory / "a.WAV"),
        ("b.flac", "We are here.", directory / "b.flac"),
    ]
    before = recordings_sha256(prompts)
    recording(directory / "b.flac", 1.7, seed=5)
    assert recordings_sha256(read_recordings(directory, 2048)) != before


def test_all_that_is_wrong_is_said_at_once(directory: Path) -> None:
    recording(directory / "long.wav", 3.0)
    (directory / "long.txt").write_text("words")
    recording(directory / "mute.wav")
    recording(directory / "blank.ogg")
    (directory / "blank.txt").write_text(" \n")
    recording(directory / "latin.mp3")
    (directory / "latin.txt").write_bytes(b"caf\xe9")
    (directory / "broken.wav").write_text("no sound")
    with pytest.raises(RecordingsError) as raised:
        read_recordings(directory, 25)
    said = str(raised.value)
    for fault in (
        "mute.wav has no mute.txt with its words",
        "blank.txt is empty",
        "latin.txt is not UTF-8",
        "broken.wav has no broken.txt",
        "broken.wav is not sound",
        "long.wav has 3 s, the model hears 2 s at most",
    ):
        assert fault in said
    assert "\n" not in said
    assert "README" not in said


def test_names_that_differ_in_case_alone(directory: Path) -> None:
    recording(directory / "B.flac")
    (directory / "B.txt").write_text("words")
    if len(list(directory.iterdir())) < 7:
        pytest.skip("case is no difference here")
    with pytest.raises(RecordingsError, match=r"B\.flac is there twice, but for case: rename it; b\.flac is"):
        read_recordings(directory, 2048)


def test_odd_names(tmp_path: Path) -> None:
    odd = tmp_path / "two\x1b[2J\nlines"
    odd.mkdir()
    recording(odd / "ä b.wav")
    (odd / "ä b.txt").write_bytes("\ufeffHello\r\nthere.\r\n".encode())
    assert [each.text for each in read_recordings(odd, 2048)] == ["Hello there."]
    odd = odd.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(RecordingsError, match="has a name that is not UTF-8"):
        read_recordings(odd, 2048)
    odd = odd.rename(tmp_path / "plain")
    recording(tmp_path / "latin.wav")
    (tmp_path / "latin.wav").rename(odd / os.fsdecode(b"b\xe9.wav"))
    (odd / os.fsdecode(b"b\xe9.txt")).write_text("words")
    with pytest.raises(RecordingsError, match=r"b.*\.wav has a name that is not UTF-8"):
        read_recordings(odd, 2048)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in directories")
def test_a_named_pipe_is_not_waited_for(directory: Path) -> None:
    os.mkfifo(directory / "pipe.wav")
    (directory / "pipe.txt").write_text("words")
    recording(directory / "deaf.wav")
    os.mkfifo(directory / "deaf.txt")
    with pytest.raises(RecordingsError, match=r"deaf\.txt is no file; pipe\.wav is no file"):
        read_recordings(directory, 2048)


def test_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecordingsError, match="has no recordings; expected WAV"):
        read_recordings(tmp_path, 2048)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        read_recordings(tmp_path / "nowhere", 2048)


def test_of_many_faults_some_are_named(tmp_path: Path) -> None:
    for number in range(30):
        recording(tmp_path / f"{number:02}.wav", 0.1)
    with pytest.raises(RecordingsError, match=r"00\.wav has no .*19\.wav has no 19\.txt .*; and 10 more$"):
        read_recordings(tmp_path, 2048)
