"""Voices that are kept: what they save, that they change no bit, and that another process need not compute them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from speaking import load_engine, prefill, random_codes, say, segments

from miso_gguf.native.llama import LlamaModel
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.utterance import Utterance
from miso_gguf.runtime.lm.voice_directory import VoiceDirectory

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("f32", {"exact": True}),
    "f16": ("q4_k_m", {}),
    "q8_0": ("q8_0", {"kv_type": "q8_0"}),
}


def voices(engine: Engine, count: int) -> list[Block]:
    return [engine.prompts.segment(segment, is_voice=True) for segment in segments(count)]


def computed(engine: Engine, blocks: list[Block], sequence: int = 0) -> int:
    return prefill(engine.backbone, sequence, blocks)[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_voice_that_no_sequence_holds_is_restored(bundle: Path, kind: str, sequences: int) -> None:
    level, options = KINDS[kind]
    with load_engine(bundle, level, sequences=sequences, **options) as engine:
        first, second, third = voices(engine, 3)
        texts = [engine.prompts.text(text, 0) for text in ("One.", "And two.", "Three, or more.")]
        prompts = [[first, texts[0]], [second, third, texts[1]], [first, texts[2]], [second, texts[2]]]
        last = sequences - 1
        found = []
        for blocks in prompts:
            found.append(prefill(engine.backbone, last, blocks))
            engine.step([last], list(random_codes(1)))
        assert [rows for *_, rows in found] == [
            len(first) + len(texts[0]), len(second) + len(third) + len(texts[1]), len(texts[2]), len(texts[2]),
        ]  # fmt: skip
    for blocks, (hidden, logits, _) in zip(prompts, found, strict=True):
        with load_engine(bundle, level, sequences=sequences, voice_cache_bytes=0, **options) as fresh:
            expected = prefill(fresh.backbone, 0, blocks)
            np.testing.assert_array_equal(hidden, expected[0])
            np.testing.assert_array_equal(logits, expected[1])


@pytest.fixture
def taken() -> Iterator[mock.Mock]:
    with mock.patch.object(LlamaModel, "state", autospec=True, side_effect=LlamaModel.state) as state:
        yield state


def test_a_state_is_taken_once(bundle: Path, taken: mock.Mock) -> None:
    """Nor of a prompt without a voice, nor of a voice that does not come first."""
    with load_engine(bundle, sequences=2) as engine:
        first, second = voices(engine, 2)
        said = Block(second.rows)
        text = engine.prompts.text("A few words.", 0)
        for blocks in ([text], [said, text], [said, first, text]):
            prefill(engine.backbone, 0, blocks)
        assert taken.call_count == 0
        for blocks in ([first, text], [first, said, text], [said, text], [first, text], [first, text]):
            prefill(engine.backbone, 0, blocks)
            engine.step([0], list(random_codes(1)))
        assert computed(engine, [first, second, text], 1) == len(second) + len(text)
        assert computed(engine, [first, text], 1) == len(text)
    assert taken.call_count == 2


def test_a_state_that_has_no_room_is_computed_again(bundle: Path) -> None:
    with load_engine(bundle, voice_cache_bytes=1000) as engine:
        (first,) = voices(engine, 1)
        text = engine.prompts.text("A few words.", 0)
        for blocks in ([first, text], [text], [first, text]):
            assert computed(engine, blocks) == sum(map(len, blocks))
        assert engine.backbone._voices.size_bytes == 0


def test_a_state_that_llama_cpp_does_not_take(bundle: Path) -> None:
    with load_engine(bundle) as engine:
        first, second = voices(engine, 2)
        text = engine.prompts.text("A few words.", 0)
        expected = prefill(engine.backbone, 0, [first, text])
        kept = engine.backbone._voices._kept
        for chain, state in kept.items():
            kept[chain] = state[:-1]
        prefill(engine.backbone, 0, [second, text])
        again = prefill(engine.backbone, 0, [first, text])
        assert again[2] == expected[2]
        np.testing.assert_array_equal(again[1], expected[1])
        assert computed(engine, [second, text]) == len(text)
        assert computed(engine, [first, text]) == len(text), "it was kept anew"


def test_a_state_holds_its_voices_and_nothing_else(bundle: Path) -> None:
    """Also of a sequence in which other rows lie behind them."""
    with load_engine(bundle) as engine:
        first, second = voices(engine, 2)
        text = engine.prompts.text("A few words.", 0)
        for blocks in ([first, second, text], [first, text], [text]):
            computed(engine, blocks)
        assert computed(engine, [first, text]) == len(text)
        sizes = [len(state) for state in engine.backbone._voices._kept.values()]
    with load_engine(bundle) as engine:
        computed(engine, [first, text])
        assert sizes[-1] == engine.backbone._voices.size_bytes


def test_an_interrupt_of_llama_cpp_while_it_takes_a_state(bundle: Path) -> None:
    def interrupted(model: LlamaModel, sequence: int, *_: Any) -> bool:
        model.forget(sequence, 0)
        raise KeyboardInterrupt

    with load_engine(bundle) as engine:
        first, second = voices(engine, 2)
        text = engine.prompts.text("A few words.", 0)
        prefill(engine.backbone, 0, [first, text])
        expected = prefill(engine.backbone, 0, [second, text])
        with (
            mock.patch.object(LlamaModel, "restore", autospec=True, side_effect=interrupted),
            pytest.raises(KeyboardInterrupt),
        ):
            prefill(engine.backbone, 0, [first, text])
        hidden, logits, rows = prefill(engine.backbone, 0, [second, text])
        assert rows == len(text)
        np.testing.assert_array_equal(hidden, expected[0])
        np.testing.assert_array_equal(logits, expected[1])


def spoken(engine: Engine) -> tuple[list[int], int]:
    """The codes of a sentence after two voices, and how many rows its prompt took."""
    blocks = [*voices(engine, 2), engine.prompts.text("What is to be said.", 0)]
    rows = computed(engine, blocks)
    (codes,) = say(engine, Utterance(blocks, 6))
    return codes.ravel().tolist(), rows


def test_another_model_starts_with_the_text(bundle: Path, tmp_path: Path) -> None:
    directory = tmp_path / "voices"
    with load_engine(bundle, voice_directory=directory) as engine:
        codes, rows = spoken(engine)
        whole = sum(map(len, voices(engine, 2)))
    (file,) = directory.iterdir()
    with load_engine(bundle, voice_directory=directory, voice_cache_bytes=0) as engine:
        assert spoken(engine) == (codes, rows - whole)
    with load_engine(bundle, voice_directory=directory, exact=True) as engine:
        assert spoken(engine)[1] == rows, "its state is another"
    file.write_bytes(file.read_bytes()[:-1])
    with load_engine(bundle, voice_directory=directory) as engine:
        assert spoken(engine) == (codes, rows)
    with load_engine(bundle, voice_directory=directory) as engine:
        assert spoken(engine) == (codes, rows - whole)
    assert len(list(directory.iterdir())) == 2


@pytest.mark.long
def test_another_process_starts_with_the_text(bundle: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys; from pathlib import Path; from speaking import load_engine\n"
        "from test_backbone_voices import spoken\n"
        "with load_engine(Path(sys.argv[1]), voice_directory=Path(sys.argv[2])) as engine:\n"
        "    print(json.dumps(spoken(engine)))"
    )
    command = [sys.executable, "-c", program, str(bundle), str(tmp_path / "voices")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    (first, rows), (second, fewer) = (
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)
        for _ in range(2)
    )
    with load_engine(bundle) as engine:
        whole = sum(map(len, voices(engine, 2)))
        assert spoken(engine) == (first, rows)
    assert (second, fewer) == (first, rows - whole)


def test_without_voices_no_file_is_read(bundle: Path, tmp_path: Path) -> None:
    with (
        load_engine(bundle, voice_directory=tmp_path) as engine,
        mock.patch.object(VoiceDirectory, "load", side_effect=AssertionError),
    ):
        prefill(engine.backbone, 0, [engine.prompts.segment(segments(1)[0]), engine.prompts.text("Some words.", 0)])
    assert list(tmp_path.iterdir()) == []
