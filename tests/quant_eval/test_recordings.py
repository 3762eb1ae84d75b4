"""Recordings are heard as a corpus's are, and all that is wrong with them is said at once."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from miso_gguf.core.errors import MisoError
from miso_gguf.recipes.collect import collect
from miso_gguf.recipes.plan import Collection
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


def test_they_are_heard_as_a_corpus_has_them(plan: Callable[..., Collection], directory: Path, tmp_path: Path) -> None:
    lines = [{"text": " ".join(words.split()), "audio": f"voices/{name}"} for name, words in sorted(WORDS.items())]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    one = collect(plan(tmp_path / "one", recordings=directory, seeds=3))
    other = collect(plan(tmp_path / "other", corpus=str(tmp_path / "corpus.jsonl"), seeds=3))
    assert one.frames == other.frames == 9 + 22, "each once, its last frame filled up with silence"
    for part, file in one.files.items():
        for name, entry in file.entries.items():
            assert entry.sums.tobytes() == other.files[part].entries[name].sums.tobytes()


def test_beside_recordings_a_corpus_is_said_if_it_is_named(
    plan: Callable[..., Collection], directory: Path, tmp_path: Path
) -> None:
    both = plan(tmp_path, recordings=directory, corpus="tiny", prompts=2, seeds=2)
    assert [(prompt.id, seed) for prompt, seed in both.clips[-3:]][-2:] == [("a.WAV", 0), ("b.flac", 0)]
    assert len(both.clips) == 2 * 2 + 2
    assert len(both.datasets) == 2
    assert both.identity != plan(tmp_path, recordings=directory).identity


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


def test_odd_names(plan: Callable[..., Collection], tmp_path: Path) -> None:
    """Recordings' directories become keys of a file, and lines on a terminal."""
    odd = tmp_path / "two\x1b[2J\nlines"
    odd.mkdir()
    recording(odd / "ä b.wav")
    (odd / "ä b.txt").write_bytes("\ufeffHello\r\nthere.\r\n".encode())
    asked = plan(tmp_path / "out", recordings=odd)
    assert asked.clips[0][0].text == "Hello there."
    assert all(name.isprintable() for name in asked.datasets)
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


def test_what_cannot_be_heard_is_said_before_anything_is(
    plan: Callable[..., Collection], directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a header does not say: too short, silent, broken off, nothing to say, or no room beside its words."""
    for name, words, seconds in (("short", "Hi.", 0.2), ("gap", "...", 1.0), ("full", "One two. " * 9, 163.8)):
        recording(directory / f"{name}.wav", seconds)
        (directory / f"{name}.txt").write_text(words)
    soundfile.write(directory / "still.wav", np.zeros(24_000), 24_000)
    (directory / "still.txt").write_text("Silence.")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "long", "text": "One two. " * 900}))
    asked = plan(tmp_path / "out", recordings=directory, corpus=str(tmp_path / "corpus.jsonl"))
    monkeypatch.setattr(Collector, "hear", None)
    with pytest.raises(MisoError) as raised:
        collect(asked)
    said = str(raised.value)
    for fault in (
        "long: the prompt takes",
        "short.wav: 0.20 s of audio, too short",
        "gap.wav: ",
        r"full.wav: takes 2048 positions and its words",
        "still.wav: is silence",
    ):
        assert fault in said
    assert "\n" not in said
    assert not {"a.WAV", "b.flac"} & set(said.replace(":", " ").split())
