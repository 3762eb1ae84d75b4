"""Prompts as rows, against the reference's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from speaking import random_codes, segments, text_ids

from miso_gguf.models.flavors import TINY
from miso_gguf.models.reference import Segment as ReferenceSegment
from miso_gguf.models.reference import prompt_rows
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.prompt import PromptBuilder, audio_rows
from miso_gguf.runtime.lm.tokenizer import Tokenizer
from miso_gguf.runtime.speech import Segment


@pytest.fixture(scope="module")
def tokenizer(bundle: Path) -> Iterator[Tokenizer]:
    with Tokenizer(open_level(bundle, "f32").embeddings) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> PromptBuilder:
    return PromptBuilder(TINY, tokenizer)


def test_rows_are_those_of_the_reference(prompts: PromptBuilder) -> None:
    said = segments(2)
    blocks = [prompts.segment(said[0]), prompts.segment(said[1]), prompts.text("Hello.", 3)]
    found = np.concatenate([block.rows for block in blocks])
    expected = prompt_rows(
        TINY,
        [ReferenceSegment(text_ids(prompts.text(s.text, s.speaker)), torch.from_numpy(s.codes)) for s in said],
        text_ids(blocks[-1]),
    )
    np.testing.assert_array_equal(found >= 0, expected.mask.numpy())
    np.testing.assert_array_equal(np.where(found < 0, 0, found), expected.tokens.numpy())


def test_text_is_the_template_between_bos_and_eos(prompts: PromptBuilder, tokenizer: Tokenizer) -> None:
    assert text_ids(prompts.text("  Hello there. ", 7)) == tokenizer.encode("[7] Hello there. ")
    ids = text_ids(prompts.text("Hello", 0))
    assert (ids[0], ids[-1]) == (1008, 1009)
    other = PromptBuilder(replace(TINY, prompt="[{speaker}]{text}"), tokenizer)
    assert text_ids(other.text("Hello", 0)) == tokenizer.encode("[0]Hello")


def test_text_cannot_smuggle_anything_in(prompts: PromptBuilder, tokenizer: Tokenizer) -> None:
    """Neither a special token's name nor a replacement field is more than its characters."""
    named = text_ids(prompts.text("<|end_of_text|>", 0))
    assert named.count(1009) == 1
    assert named.count(1008) == 1
    assert text_ids(prompts.text("{speaker}{text}{0}", 5)) == tokenizer.encode("[5] {speaker}{text}{0}")


def test_a_segment_ends_with_the_eos_frame(prompts: PromptBuilder) -> None:
    codes = random_codes(3)
    block = prompts.segment(Segment("Hi.", codes, 1))
    text = prompts.text("Hi.", 1)
    assert len(block) == len(text) + 4
    np.testing.assert_array_equal(block.rows[: len(text)], text.rows)
    np.testing.assert_array_equal(block.rows[len(text) :], audio_rows(codes, end=True))
    np.testing.assert_array_equal(block.rows[-1], [0] * 8 + [-1])


def test_equal_keys_equal_rows(prompts: PromptBuilder) -> None:
    first, same, other = (prompts.text(text, 0) for text in ("One.", "One.", "Two."))
    assert first.key == same.key != other.key
    assert prompts.text("One.", 1).key != first.key


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((3, 7), np.int64), r"must be \[frames, 8\] of 0 to 514, not \[3, 7\] of 0 to 0"),
        (np.full((3, 8), 515), r"not \[3, 8\] of 515 to 515: it was made with another model"),
        (np.full((1, 8), -1), r"not \[1, 8\] of -1 to -1"),
    ],
)
def test_codes_of_another_model_are_refused(prompts: PromptBuilder, codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.segment(Segment("Hi.", codes))


@pytest.mark.parametrize("codes", [np.zeros((0, 8), np.int64), np.zeros(8, np.int64), np.zeros((1, 8), np.int32)])
def test_what_is_no_segment(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"codes must be int64 \[frames, codebooks\], not int"):
        Segment("Hi.", codes)
