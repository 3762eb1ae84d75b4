"""What makes no sense is said to whoever asks for it, in one sentence, before any model hears of it."""

from typing import Any

import numpy as np
import pytest
from scripted_models import scripted, taken

from builders import MICRO
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.utterance import Utterance

PROMPT = [Block(np.zeros((rows, MICRO.codebooks + 1), np.int64)) for rows in (2, 3)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_frames", 0),
        ("max_frames", 2.0),
        ("seed", -1),
        ("seed", 1 << 64),
        ("seed", 0.5),
        ("stream", -1),
        ("stream", "1"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.9"),
        ("top_k", 0),
        ("top_k", 1.5),
        ("top_k", None),
    ],
)
def test_what_makes_no_sense(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a (whole )?number from "):
        Utterance(PROMPT, **{"max_frames": 5, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("blocks", [[], [Block(PROMPT[0].rows[:0])]])
def test_a_prompt_of_nothing(blocks: list[Block]) -> None:
    with pytest.raises(ValueError, match="a prompt must have at least one row"):
        Utterance(blocks, 5)


def test_whatever_counts_as_a_number_is_one() -> None:
    utterance = Utterance(PROMPT, np.int64(5), np.uint64((1 << 64) - 1), top_k=np.int32(7))
    assert utterance == Utterance(PROMPT, 5, (1 << 64) - 1, top_k=7)
    assert type(utterance.seed) is int
    assert utterance.rows == 5


def test_a_prompt_of_what_is_no_block() -> None:
    with pytest.raises(ValueError, match="a prompt is a list of blocks"):
        Utterance(["ab", "cd"], 5)  # type: ignore[list-item]


def test_a_prompt_of_a_generator_is_there_more_than_once() -> None:
    utterance = Utterance((block for block in PROMPT), 5)  # type: ignore[arg-type]
    assert utterance.rows == utterance.rows == 5


@pytest.mark.parametrize("buffer", [0, -1, 1.5, float("nan"), "3", None])
def test_a_buffer_that_holds_nothing(buffer: Any) -> None:
    with scripted(1) as (models, batcher):
        with pytest.raises(ValueError, match="buffer must be at least 1 frame, not"):
            batcher.admit(models.script(4).utterance, buffer=buffer)
        again = models.script(4)
        assert taken(batcher.admit(again.utterance)) == again.alone
