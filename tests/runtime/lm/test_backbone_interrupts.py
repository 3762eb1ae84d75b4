"""Ctrl-C between any two lines: what a sequence is thought to hold is never more than what it holds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from numpy.typing import NDArray
from python_calls import interrupted
from speaking import prefill

from miso_gguf.models.flavors import TINY
from miso_gguf.native import llama
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm import backbone as module
from miso_gguf.runtime.lm import voice_states
from miso_gguf.runtime.lm.backbone import Backbone
from miso_gguf.runtime.lm.embeddings import Embeddings
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.voice_states import Held, VoiceStates
from miso_gguf.runtime.options import EngineOptions

Results = list[NDArray[np.float32]]
Prompts = list[tuple[int, list[Block]]]


def block(first: int, count: int, *, is_voice: bool = False) -> Block:
    """Text tokens that follow each other."""
    rows = np.full((count, TINY.codebooks + 1), -1, np.int64)
    rows[:, -1] = np.arange(first, first + count)
    return Block(rows, is_voice)


VOICE, CONTEXT, OTHER = block(10, 5, is_voice=True), block(100, 4), block(200, 6)
KEPT, NEW = block(20, 6, is_voice=True), block(30, 5, is_voice=True)
"""Voices that lie in no sequence: one of which the state is kept, if any is, and one of which it is not."""
ASKED = [VOICE, CONTEXT, block(300, 3)]
AFTERWARDS = [(1, ASKED), (2, [VOICE, CONTEXT, block(320, 2)]), (1, [VOICE, block(310, 2)])]
VOICES_AFTERWARDS = [(0, [KEPT, block(330, 2)]), (1, [NEW, block(340, 2)]), (2, [KEPT, NEW, block(350, 2)])]


@pytest.fixture(scope="module")
def backbone(bundle: Path) -> Iterator[Backbone]:
    """It keeps the states of voices."""
    level = open_level(bundle, "f32")
    options = EngineOptions(threads=1, sequences=3, exact=True)
    embeddings = Embeddings(level.embeddings, TINY)
    voices = VoiceStates(1 << 20)
    with Backbone(level.backbone, TINY, embeddings, options, voices=voices, prefill_rows=4, longest_gap=1) as backbone:
        prefill(backbone, 0, [KEPT, block(400, 2)])
        yield backbone


def prepare(backbone: Backbone) -> None:
    """The voice lies in another sequence than the one that will be asked for it; each of them has spoken."""
    for chain in [(NEW,), (KEPT, NEW)]:
        backbone._voices._kept.pop(tuple(Held(voice.key, len(voice)) for voice in chain), None)
    for sequence, blocks in enumerate([[VOICE, CONTEXT, block(400, 2)], [OTHER, block(410, 7)], [CONTEXT]]):
        prefill(backbone, sequence, blocks)
    backbone.step([0, 1, 2], np.full((3, TINY.backbone.embed_dim), 0.1, np.float32))


def speak(backbone: Backbone, prompts: Prompts = AFTERWARDS) -> Results:
    """Prompts and a frame of each, as a model that never was interrupted must compute them."""
    results: Results = []
    for sequence, blocks in prompts:
        results += prefill(backbone, sequence, blocks)[:2]
        results += backbone.step([sequence], np.full((1, TINY.backbone.embed_dim), 0.2, np.float32))
    return results


@pytest.fixture(scope="module")
def expected(bundle: Path) -> Results:
    return spoken_afresh(bundle, AFTERWARDS)


def spoken_afresh(bundle: Path, prompts: Prompts) -> Results:
    level = open_level(bundle, "f32")
    options = EngineOptions(threads=1, exact=True)
    results: Results = []
    for _, blocks in prompts:
        with Backbone(level.backbone, TINY, Embeddings(level.embeddings, TINY), options, prefill_rows=4) as fresh:
            results += prefill(fresh, 0, blocks)[:2]
            results += fresh.step([0], np.full((1, TINY.backbone.embed_dim), 0.2, np.float32))
    return results


TRACED = [
    *((module.__file__, name) for name in ("prefill_chunks", "_keep", "_read", "step", "extend")),
    *((module.__file__, name) for name in ("_restore", "_remember")),
    *((voice_states.__file__, name) for name in ("best", "keep", "holds", "_remember")),
    *((llama.__file__, name) for name in ("copy", "forget", "state", "restore")),
]
"""Files and functions in which something is noted down, or the cache changed."""


def is_traced(frame: FrameType) -> bool:
    return (frame.f_code.co_filename, frame.f_code.co_name) in TRACED


CALLS: dict[str, Callable[[Backbone], object]] = {
    "prefill": lambda backbone: prefill(backbone, 1, ASKED),
    "prefill of what it holds": lambda backbone: prefill(backbone, 0, [VOICE, block(300, 3)]),
    "step": lambda backbone: backbone.step([2, 0], np.full((2, TINY.backbone.embed_dim), 0.3, np.float32)),
    "extend": lambda backbone: backbone.extend(1, VOICE.rows[:4]),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_any_line_changes_no_bit_of_what_follows(
    backbone: Backbone, expected: Results, name: str
) -> None:
    line = 0
    while True:
        prepare(backbone)
        if not interrupted(lambda: CALLS[name](backbone), line, is_traced):
            break
        # Others go on, their rows over the one between them.
        backbone.step([0, 2], np.full((2, TINY.backbone.embed_dim), 0.3, np.float32))
        for found, wanted in zip(speak(backbone), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, f"interrupted at line {line}")
        line += 1
    assert line > 5


def test_an_interrupt_while_voices_are_restored_and_kept(backbone: Backbone, bundle: Path) -> None:
    expected = spoken_afresh(bundle, VOICES_AFTERWARDS)
    line = 0
    while True:
        prepare(backbone)
        if not interrupted(lambda: prefill(backbone, 0, [KEPT, NEW, block(300, 3)]), line, is_traced):
            break
        for found, wanted in zip(speak(backbone, VOICES_AFTERWARDS), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, f"interrupted at line {line}")
        line += 1
    assert line > 60


def test_a_step_that_was_interrupted_can_be_made_again(backbone: Backbone) -> None:
    """Nothing that it left behind comes between."""
    rows = np.full((2, TINY.backbone.embed_dim), 0.3, np.float32)
    prepare(backbone)
    wanted = backbone.step([2, 0], rows)
    line = 0
    while True:
        prepare(backbone)
        if not interrupted(lambda: backbone.step([2, 0], rows), line, is_traced):
            break
        before = list(backbone._next)
        for found, expected in zip(backbone.step([2, 0], rows), wanted, strict=True):
            if before[0] == len(VOICE) + len(CONTEXT) + 2 + 1:  # it has not been made
                np.testing.assert_array_equal(found, expected)
        line += 1
    assert line > 5


def test_chunks_that_nobody_asks_for_any_more(backbone: Backbone, expected: Results) -> None:
    for taken in range(4):
        prepare(backbone)
        chunks = backbone.prefill_chunks(1, [VOICE, block(500, 6), block(510, 7)])
        for _ in range(taken):
            assert next(chunks) is None
        if taken % 2:
            chunks.close()  # type: ignore[attr-defined]
        for found, wanted in zip(speak(backbone), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
