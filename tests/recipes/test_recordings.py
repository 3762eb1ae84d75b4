"""Recordings are heard as a corpus's are, and what cannot be heard is said before a model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from miso_gguf.quant_eval.fit import FitError
from miso_gguf.recipes.collect import collect
from miso_gguf.recipes.plan import Collection

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
    return place


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


def test_odd_names(plan: Callable[..., Collection], tmp_path: Path) -> None:
    """Recordings' directories become keys of a file, and lines on a terminal."""
    odd = tmp_path / "two\x1b[2J\nlines"
    odd.mkdir()
    recording(odd / "ä b.wav")
    (odd / "ä b.txt").write_bytes("\ufeffHello\r\nthere.\r\n".encode())
    asked = plan(tmp_path / "out", recordings=odd)
    assert asked.clips[0][0].text == "Hello there."
    assert all(name.isprintable() for name in asked.datasets)


def test_what_cannot_be_heard_is_said_before_anything_is(
    plan: Callable[..., Collection], directory: Path, tmp_path: Path
) -> None:
    """What a header does not say: too short, silent, broken off, nothing to say, or no room beside its words."""
    for name, words, seconds in (("short", "Hi.", 0.2), ("gap", "...", 1.0), ("full", "One two. " * 9, 163.8)):
        recording(directory / f"{name}.wav", seconds)
        (directory / f"{name}.txt").write_text(words)
    soundfile.write(directory / "still.wav", np.zeros(24_000), 24_000)
    (directory / "still.txt").write_text("Silence.")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "long", "text": "One two. " * 900}))
    with pytest.raises(FitError) as raised:
        plan(tmp_path / "out", recordings=directory, corpus=str(tmp_path / "corpus.jsonl"))
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
