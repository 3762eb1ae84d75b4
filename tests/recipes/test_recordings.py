"""Recordings are heard as a corpus's are, and all that is wrong with them is said at once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from miso_gguf.recipes.collect import collect
from miso_gguf.recipes.plan import Collection
from miso_gguf.recipes.recordings import RecordingsError, read_recordings, recordings_sha256

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
