"""What has no room in a model is refused before it is loaded, and what the prompt leaves out is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from builders import Built
from miso_gguf.models.mimi import FRAME_SAMPLES
from miso_gguf.quant_eval.corpus import Prompt, Turn, load_corpus
from miso_gguf.quant_eval.fit import FitError, check_fit, newest_that_fit
from miso_gguf.quant_eval.run.plan import Asked, plan_run
from miso_gguf.recipes.plan import Asked as Hearing
from miso_gguf.recipes.plan import plan_collection
from miso_gguf.runtime.bundle import OpenLevel, open_level
from miso_gguf.runtime.lm.prompt import PromptBuilder
from miso_gguf.runtime.lm.tokenizer import Tokenizer
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Segment

OPTIONS = SpeechOptions(split_sentences=False)
POSITIONS = 2048


@pytest.fixture(scope="module")
def level(built: Built) -> OpenLevel:
    return open_level(built.tiny("fp16"), "fp16")


def clip(directory: Path, frames: int) -> Path:
    path = directory / f"{frames}.wav"
    if not path.is_file():
        sound = 0.1 * np.random.default_rng(frames).standard_normal(frames * FRAME_SAMPLES)
        soundfile.write(path, sound, 24_000)
    return path


def rows(level: OpenLevel, text: str) -> int:
    with Tokenizer(level.embeddings) as tokenizer:
        return len(PromptBuilder(level.manifest.model_spec, tokenizer).text(text, 0))


def fault(level: OpenLevel, prompt: Prompt) -> str:
    try:
        check_fit(level, [prompt], OPTIONS)
    except FitError as error:
        return str(error)
    return ""


def test_a_recording_fits_to_the_last_position(level: OpenLevel, tmp_path: Path) -> None:
    most = POSITIONS - rows(level, "We are here.")
    fits, not_quite = (Prompt("a", "b", "We are here.", audio=clip(tmp_path, frames)) for frames in (most, most + 1))
    assert fault(level, fits) == ""
    assert fault(level, not_quite) == f"a: takes {most + 1} positions and its words {POSITIONS - most}, of 2048: cut it"


def test_the_turns_before_a_recording_count(level: OpenLevel, tmp_path: Path) -> None:
    """A turn is its words, its frames and the EOS frame."""
    turn = Turn(1, "Good morning.", clip(tmp_path, 300))
    most = POSITIONS - rows(level, "We are here.") - rows(level, "Good morning.") - 301
    fits, not_quite = (
        Prompt("a", "b", "We are here.", before=(turn,), audio=clip(tmp_path, frames)) for frames in (most, most + 1)
    )
    assert fault(level, fits) == ""
    assert "its words and the turns before it" in fault(level, not_quite)
    spoken = Prompt("a", "b", "We are here.", before=(Turn(1, "Good morning. " * 40),), audio=clip(tmp_path, most))
    assert "its words and the turns before it" in fault(level, spoken), "a reader takes his time"


def test_a_voice_that_would_be_left_out_is_refused(level: OpenLevel, tmp_path: Path) -> None:
    for frames, is_refused in ((300, False), (2020, True)):
        before = (Turn(0, "Good morning.", clip(tmp_path, frames)),)
        said = fault(level, Prompt("a", "b", "We are here.", before=before))
        assert said == (
            "a: leaves no room, of 2048 positions, for the recording before it: cut that" if is_refused else ""
        )
    spoken = Prompt("a", "b", "We are here.", before=(Turn(0, "Good morning. " * 200),) * 2)
    assert fault(level, spoken) == "", "of what the model says itself the oldest gives way, as always"


def test_a_turn_that_cannot_be_said_is_refused(level: OpenLevel) -> None:
    assert fault(level, Prompt("a", "b", "We are here.", before=(Turn(0, "..."),))).startswith("a: ")
    assert fault(level, Prompt("a", "b", "We are here.", before=(Turn(0, "Hello. " * 1000),))).startswith("a: ")


def test_all_are_named_before_a_model_is_loaded(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, silent = clip(tmp_path, 2040), tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(24_000), 24_000)
    lines = [
        {"id": "long", "text": "We are here. " * 4, "audio": long.name},
        {"id": "silent", "text": "We are here.", "before": [[0, "Hello.", silent.name]]},
        {"id": "mute", "text": "..."},
        {"id": "good", "text": "We are here."},
    ]
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text("\n".join(map(json.dumps, lines)))
    bundle = built.tiny("fp16")
    with monkeypatch.context() as patch:
        patch.setattr("miso_gguf.runtime.tts.MisoTTS.of", None)
        for plan in (
            lambda: plan_run(bundle, [], "fp16", Asked(tmp_path / "out", corpus=str(corpus))),
            lambda: plan_collection(bundle, Hearing(tmp_path / "out", corpus=str(corpus))),
        ):
            with pytest.raises(FitError, match=r"^long: takes 2040 .*; silent: .*silence.*; mute: "):
                plan()


def test_the_oldest_turns_give_way_to_a_recording(level: OpenLevel) -> None:
    spec = level.manifest.model_spec
    turns = [Segment("Hello.", np.ones((frames, spec.codebooks), np.int64), 0) for frames in (500, 400, 300)]
    prompt = Prompt("a", "b", "We are here.")
    with Tokenizer(level.embeddings) as tokenizer:
        prompts = PromptBuilder(spec, tokenizer)
        taken = [len(prompts.segment(turn)) for turn in turns]
        own = len(prompts.text(prompt.text, 0))
        for kept in range(4):
            room = POSITIONS - own - sum(taken[len(taken) - kept :])
            assert newest_that_fit(turns, prompt, room, prompts, spec) == turns[len(turns) - kept :]
            fewer = turns[len(turns) - kept + 1 :] if kept else []
            assert newest_that_fit(turns, prompt, room + 1, prompts, spec) == fewer


@pytest.mark.parametrize("name", ["tiny", "tiny-large"])
def test_the_tiny_corpora_fit(name: str, level: OpenLevel) -> None:
    check_fit(level, load_corpus(name).prompts, OPTIONS)
