"""A book read aloud in three scripts, with little room for prompts: nothing is lost, nothing clicks, nothing grows."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from book import SCRIPTS, Ear, Reading, Script, chapters, faults, growth_mb, said

from builders import Built
from miso_gguf import MisoTTS, SpeechOptions
from miso_gguf.runtime.speech import Chunk
from miso_gguf.runtime.synthesis.speaker import SENTENCE_GAP_MS

CONTEXT = 512
LEVELS = ("fp16", "q8_0", "q4_k_m", "q4_0")
"""A bundle that is made for other tests too."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def open_with_little_room(bundle: Path) -> MisoTTS:
    return MisoTTS.load(bundle, "q4_k_m", threads=1, gpu_layers=0, context=CONTEXT)


def has_words_of(script: Script, text: str) -> bool:
    return any(word in text for word in script.words if word.isalpha())


@pytest.mark.parametrize(("live", "seed"), [(True, 2704), (False, 377)])
def test_some_of_each_script(built: Built, live: bool, seed: int) -> None:
    """By seeds whose first three chapters are short."""
    with open_with_little_room(built.tiny(*LEVELS)) as tts:
        reading = Reading(tts, 0.5, SpeechOptions(seed=seed), live, paragraphs=1).read()
    spoken = "".join(text for text, *_ in reading.sentences)
    assert all(has_words_of(script, spoken) for script in SCRIPTS.values())
    record = reading.record()
    assert faults(record) == []
    assert (record["pieces"], record["without_sound"]) == (record["sentences"], 0)
    assert record["gap_ms"]["min"] >= SENTENCE_GAP_MS


@pytest.mark.long
@linux
@pytest.mark.parametrize("live", [True, False])
def test_ten_minutes(built: Built, live: bool) -> None:
    with open_with_little_room(built.tiny(*LEVELS)) as tts:
        record = Reading(tts, 10, SpeechOptions(seed=2 + live), live).read().record()
    assert faults(record) == []
    assert len(record["memory_mb"]) >= 10


@pytest.mark.long
@linux
@pytest.mark.parametrize("live", [True, False])
def test_a_model_that_knows_no_end(bundle: Path, live: bool) -> None:
    """Noise instead of weights: most sentences are cut, as long as their words may take, or spoken again.

    Chapters are short, for those that are spoken whole are held in memory.
    """
    with open_with_little_room(bundle) as tts:
        record = Reading(tts, 4, SpeechOptions(seed=4 + live), live, paragraphs=1).read().record()
    assert faults(record) == []
    assert record["ended"]["cap"] > record["sentences"] / 2


def test_sentences_are_of_every_length() -> None:
    book = chapters(0, 50)
    for script in SCRIPTS.values():
        _, *texts, ornament = next(book)
        assert not any(map(str.isalnum, ornament))
        assert any(text in script.words or text[:-1] in script.words for text in texts)
        assert max(map(len, texts)) > CONTEXT


def heard(*pieces: Any) -> Ear:
    ear = Ear()
    for index, piece in enumerate(pieces):
        ear.hear(Chunk(np.asarray(piece, np.float32), 0, index, 0))
    ear.end()
    return ear


def test_an_ear_hears_a_click() -> None:
    """0.2 at the end of the first piece, then silence, then a sound that begins at 0.5."""
    ear = heard([0.1] * 100 + [0.2], [0.0] * 240 + [0.5] * 100)
    assert [round(level, 1) for level in ear.ends_dbfs] == [-14.0, -6.0]
    assert (ear.gaps_ms, ear.steps) == ([10.0], [0.5])


def test_an_ear_measures_the_whole_gap() -> None:
    """Quiet at the end of a piece is part of it, and of a click inside a piece it says nothing."""
    ear = heard([0.9, -0.9] + [0.001] * 48, [0.0] * 24 + [0.002] * 48 + [0.01] + [-0.9])
    assert ear.gaps_ms == [5.0]
    assert ear.steps == pytest.approx([0.002])
    assert ear.within == pytest.approx([1.8, 0.91])


def test_streams_are_apart() -> None:
    ear = heard([0.1] * 10)
    ear.hear(Chunk(np.zeros(10, np.float32), 0, 0, 0))
    ear.end()
    assert (len(ear.ends_dbfs), ear.gaps_ms) == (2, [])


def test_what_must_be_said() -> None:
    assert said("One  two.\n\n* * *\n\nThre\u0301e!") == "Onetwo.Thr\u00e9e!"


def test_growth_is_that_of_the_second_half() -> None:
    assert growth_mb([90, 50, 40, 10, 12, 11, 21, 20, 30]) == 10
    assert growth_mb([10]) == 0


def test_faults_are_found() -> None:
    record = {
        "is_all_said": False,
        "end_dbfs": {"max": -49.0},
        "seam_step": {"max": 0.06},
        "memory_growth_mb": 8.1,
    }
    assert len(faults(record)) == 4
    sound = {"is_all_said": True, "end_dbfs": {"max": -51.0}, "seam_step": {}, "memory_growth_mb": 8.0}
    assert faults(sound) == []
