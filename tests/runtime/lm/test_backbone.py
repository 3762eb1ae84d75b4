"""The backbone: what is kept of a prompt changes no bit, and how it is cut into batches nothing that matters."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from speaking import prompt_blocks, random_codes, segments

from builders import MICRO
from miso_gguf.core.errors import BundleError
from miso_gguf.models.flavors import TINY
from miso_gguf.models.reference import KVCache, Reference, Rows, audio_rows
from miso_gguf.runtime.bundle import OpenLevel, open_level
from miso_gguf.runtime.lm.backbone import Backbone
from miso_gguf.runtime.lm.embeddings import Embeddings
from miso_gguf.runtime.lm.prompt import Block, PromptBuilder
from miso_gguf.runtime.lm.prompt import audio_rows as rows_of
from miso_gguf.runtime.lm.tokenizer import Tokenizer
from miso_gguf.runtime.options import EngineOptions
from miso_gguf.runtime.speech import Segment

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def level(bundle: Path) -> OpenLevel:
    return open_level(bundle, "f32")


@pytest.fixture(scope="module")
def embeddings(level: OpenLevel) -> Embeddings:
    return Embeddings(level.embeddings, TINY)


@pytest.fixture(scope="module")
def prompts(level: OpenLevel) -> Iterator[PromptBuilder]:
    with Tokenizer(level.embeddings) as tokenizer:
        yield PromptBuilder(TINY, tokenizer)


@pytest.fixture(scope="module")
def prompt(prompts: PromptBuilder) -> list[Block]:
    """Two segments and a text: 70 rows or so, more than one batch of 64."""
    return prompt_blocks(prompts, "What is to be said, in a few words or more than a few of them.", segments(3))


def opened(level: OpenLevel, embeddings: Embeddings, *, batch: int = 64, sequences: int = 1) -> Backbone:
    options = EngineOptions(threads=1, sequences=sequences, exact=level.key == "f32")
    return Backbone(level.backbone, TINY, embeddings, options, prefill_rows=batch)


def reference_result(reference: Reference, blocks: Sequence[Block]) -> tuple[Floats, Floats]:
    rows = np.concatenate([block.rows for block in blocks])
    mask = torch.from_numpy(rows >= 0)
    h = reference.backbone(reference.embed(*Rows(torch.from_numpy(rows).clamp(min=0), mask)))[-1:]
    return h.numpy(), reference.codebook0_logits(h).numpy()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_any_batch_gives_the_reference(
    level: OpenLevel, embeddings: Embeddings, prompt: list[Block], reference: Reference, batch: int
) -> None:
    total = sum(map(len, prompt))
    assert total > 64
    with opened(level, embeddings, batch=batch) as backbone:
        hidden, logits, computed = backbone.prefill(0, prompt)
    assert computed == total
    expected_hidden, expected_logits = reference_result(reference, prompt)
    np.testing.assert_allclose(hidden, expected_hidden, rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=2e-5)


def test_steps_go_on_from_the_prompt(
    level: OpenLevel, embeddings: Embeddings, prompt: list[Block], reference: Reference
) -> None:
    codes = random_codes(5)
    cache = KVCache()
    rows = np.concatenate([block.rows for block in prompt])
    reference.backbone(reference.embed(torch.from_numpy(rows).clamp(min=0), torch.from_numpy(rows >= 0)), cache)
    expected = reference.backbone(reference.embed(*audio_rows(TINY, torch.from_numpy(codes))), cache).numpy()
    with opened(level, embeddings) as backbone:
        backbone.prefill(0, prompt)
        found = [backbone.step([0], embeddings.embed(rows_of(frame[None])))[0][0] for frame in codes]
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("key", ["f32", "q4_k_m"])
def test_a_kept_prefix_changes_no_bit(bundle: Path, key: str, prompts: PromptBuilder) -> None:
    """A voice's second sentence computes only what is new; the result is that of a model that never heard the first."""
    level = open_level(bundle, key)
    embeddings = Embeddings(level.embeddings, TINY)
    voice, context, other = segments(3)
    first = prompt_blocks(prompts, "The first sentence.", [voice])
    second = prompt_blocks(prompts, "And then the second one.", [voice, context])
    third = prompt_blocks(prompts, "A third, without the one in between.", [voice])
    elsewhere = prompt_blocks(prompts, "Somebody else.", [other, voice])
    with opened(level, embeddings, batch=8) as backbone:
        assert backbone.prefill(0, first)[2] == sum(map(len, first))
        for frame in random_codes(20):
            backbone.step([0], embeddings.embed(rows_of(frame[None])))
        assert backbone.shared(0, second) == 1
        kept = [backbone.prefill(0, blocks) for blocks in (second, third, elsewhere, second)]
        again = backbone.prefill(0, second)
    assert [computed for _, _, computed in kept] == [
        len(second[1]) + len(second[2]),
        len(third[1]),
        sum(map(len, elsewhere)),
        sum(map(len, second)),
    ]
    assert again[2] == len(second[-1]), "the last block is always computed: its result is wanted"
    for blocks, (hidden, logits, _) in zip((second, third, elsewhere, second, second), [*kept, again], strict=True):
        with opened(level, embeddings, batch=8) as fresh:
            fresh_hidden, fresh_logits, computed = fresh.prefill(0, blocks)
        assert computed == sum(map(len, blocks))
        np.testing.assert_array_equal(hidden, fresh_hidden)
        np.testing.assert_array_equal(logits, fresh_logits)


def test_a_prefix_of_the_same_length_is_another(
    level: OpenLevel, embeddings: Embeddings, prompts: PromptBuilder
) -> None:
    voice = segments(1)[0]
    twins = [Segment(voice.text, codes, voice.speaker) for codes in (voice.codes, voice.codes[::-1].copy())]
    first, second = (prompt_blocks(prompts, "The same words.", [twin]) for twin in twins)
    with opened(level, embeddings, sequences=2) as backbone:
        results = [backbone.prefill(sequence, blocks) for sequence, blocks in ((0, first), (0, second), (1, first))]
    assert [computed for _, _, computed in results] == [sum(map(len, first))] * 3
    np.testing.assert_array_equal(results[0][0], results[2][0])
    assert np.abs(results[0][0] - results[1][0]).max() > 0.1


def test_a_prefix_is_copied_from_another_sequence(
    level: OpenLevel, embeddings: Embeddings, prompts: PromptBuilder
) -> None:
    voice, context, other = segments(3)
    first = prompt_blocks(prompts, "The first sentence.", [voice, context])
    second = prompt_blocks(prompts, "And then the second one.", [voice, context])
    busy = prompt_blocks(prompts, "Somebody else.", [other])
    frames = random_codes(12)
    with opened(level, embeddings, sequences=3) as backbone:
        backbone.prefill(0, first)
        backbone.prefill(2, busy)
        for frame in frames[:6]:  # the donor has gone on, and goes on
            backbone.step([0, 2], embeddings.embed(rows_of(np.stack([frame, frame]))))
        hidden, logits, computed = backbone.prefill(2, second)
        assert computed == len(second[-1])
        donor = [backbone.step([0], embeddings.embed(rows_of(frame[None]))) for frame in frames[6:]][-1]
        copied = [backbone.step([2], embeddings.embed(rows_of(frame[None]))) for frame in frames[:4]][-1]
    with opened(level, embeddings) as fresh:
        expected_hidden, expected_logits, _ = fresh.prefill(0, second)
        expected_copied = [fresh.step([0], embeddings.embed(rows_of(frame[None]))) for frame in frames[:4]][-1]
        fresh.prefill(0, first)
        expected_donor = [fresh.step([0], embeddings.embed(rows_of(frame[None]))) for frame in frames][-1]
    np.testing.assert_array_equal(hidden, expected_hidden)
    np.testing.assert_array_equal(logits, expected_logits)
    np.testing.assert_array_equal(copied[0], expected_copied[0])
    # Its first steps were made beside another sequence's: another order of the same sums.
    np.testing.assert_allclose(donor[0], expected_donor[0], rtol=0, atol=2e-5)


def test_sequences_step_together_or_alone(level: OpenLevel, embeddings: Embeddings, prompts: PromptBuilder) -> None:
    asked = [prompt_blocks(prompts, f"Sentence number {index}.", segments(index)) for index in range(3)]
    frames = [random_codes(4, seed) for seed in range(3)]
    with opened(level, embeddings, sequences=3) as backbone:
        for sequence, blocks in enumerate(asked):
            backbone.prefill(sequence, blocks)
        for turn in range(4):
            # Not in their own order: rows must come back to those that asked.
            rows = rows_of(np.stack([frames[sequence][turn] for sequence in (2, 0, 1)]))
            hidden, logits = backbone.step([2, 0, 1], embeddings.embed(rows))
    assert hidden.shape == (3, TINY.backbone.embed_dim)
    for row, sequence in enumerate((2, 0, 1)):
        with opened(level, embeddings) as alone:
            alone.prefill(0, asked[sequence])
            for frame in frames[sequence]:
                expected = alone.step([0], embeddings.embed(rows_of(frame[None])))
        np.testing.assert_allclose(hidden[row], expected[0][0], rtol=0, atol=2e-5)
        np.testing.assert_allclose(logits[row], expected[1][0], rtol=0, atol=2e-5)


def test_a_backbone_of_another_model_is_refused(level: OpenLevel, embeddings: Embeddings) -> None:
    message = r"width and vocabulary are \(256, 515\), expected \(64, 515\): not Micro's backbone"
    with pytest.raises(BundleError, match=message):
        Backbone(level.backbone, MICRO, embeddings, EngineOptions(threads=1))
    with pytest.raises(BundleError, match=r"width and vocabulary are \(256, 4120\), expected \(256, 515\)"):
        Backbone(level.decoder, TINY, embeddings, EngineOptions(threads=1))
