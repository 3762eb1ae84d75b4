"""The backbone: what is kept of a prompt changes no bit, and how it is cut into batches nothing that matters."""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from speaking import prefill, prompt_blocks, random_codes, segments

from builders import MICRO
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.models.flavors import TINY
from miso_gguf.models.reference import KVCache, Reference, Rows, audio_rows
from miso_gguf.native.llama import load_library
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


def opened(
    level: OpenLevel, embeddings: Embeddings, *, batch: int = 64, sequences: int = 1, longest_gap: int | None = None
) -> Backbone:
    options = EngineOptions(threads=1, sequences=sequences, exact=level.key == "f32")
    return Backbone(level.backbone, TINY, embeddings, options, prefill_rows=batch, longest_gap=longest_gap)


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
        hidden, logits, computed = prefill(backbone, 0, prompt)
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
        prefill(backbone, 0, prompt)
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
        assert prefill(backbone, 0, first)[2] == sum(map(len, first))
        for frame in random_codes(20):
            backbone.step([0], embeddings.embed(rows_of(frame[None])))
        assert backbone.shared(0, second) == 1
        kept = [prefill(backbone, 0, blocks) for blocks in (second, third, elsewhere, second)]
        again = prefill(backbone, 0, second)
    assert [computed for _, _, computed in kept] == [
        len(second[1]) + len(second[2]),
        len(third[1]),
        sum(map(len, elsewhere)),
        sum(map(len, second)),
    ]
    assert again[2] == len(second[-1]), "the last block is always computed: its result is wanted"
    for blocks, (hidden, logits, _) in zip((second, third, elsewhere, second, second), [*kept, again], strict=True):
        with opened(level, embeddings, batch=8) as fresh:
            fresh_hidden, fresh_logits, computed = prefill(fresh, 0, blocks)
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
        results = [prefill(backbone, sequence, blocks) for sequence, blocks in ((0, first), (0, second), (1, first))]
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
        prefill(backbone, 0, first)
        prefill(backbone, 2, busy)
        for frame in frames[:6]:  # the donor has gone on, and goes on
            backbone.step([0, 2], embeddings.embed(rows_of(np.stack([frame, frame]))))
        hidden, logits, computed = prefill(backbone, 2, second)
        assert computed == len(second[-1])
        donor = [backbone.step([0], embeddings.embed(rows_of(frame[None]))) for frame in frames[6:]][-1]
        copied = [backbone.step([2], embeddings.embed(rows_of(frame[None]))) for frame in frames[:4]][-1]
    with opened(level, embeddings) as fresh:
        expected_hidden, expected_logits, _ = prefill(fresh, 0, second)
        expected_copied = [fresh.step([0], embeddings.embed(rows_of(frame[None]))) for frame in frames[:4]][-1]
        prefill(fresh, 0, first)
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
            prefill(backbone, sequence, blocks)
        for turn in range(4):
            # Not in their own order: rows must come back to those that asked.
            rows = rows_of(np.stack([frames[sequence][turn] for sequence in (2, 0, 1)]))
            hidden, logits = backbone.step([2, 0, 1], embeddings.embed(rows))
    assert hidden.shape == (3, TINY.backbone.embed_dim)
    for row, sequence in enumerate((2, 0, 1)):
        with opened(level, embeddings) as alone:
            prefill(alone, 0, asked[sequence])
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


@pytest.mark.parametrize("key", ["f32", "q4_k_m"])
@pytest.mark.parametrize("longest_gap", [0, 3])
def test_chunk_by_chunk_while_others_speak(bundle: Path, key: str, prompts: PromptBuilder, longest_gap: int) -> None:
    """Whatever steps between two chunks, and whether or not its rows reach over this one: not a bit is another."""
    level = open_level(bundle, key)
    embeddings = Embeddings(level.embeddings, TINY)
    blocks = prompt_blocks(prompts, "A prompt that is read while others are speaking.", segments(2))
    busy = prompt_blocks(prompts, "Somebody else.", segments(1))
    frames = embeddings.embed(rows_of(random_codes(2)))
    with opened(level, embeddings, batch=8, sequences=3, longest_gap=longest_gap) as backbone:
        prefill(backbone, 0, busy)
        prefill(backbone, 2, busy)
        found = []
        for result in backbone.prefill_chunks(1, blocks):
            found.append(result)
            backbone.step([2, 0], frames)
        again = prefill(backbone, 1, blocks)
    with opened(level, embeddings, batch=8) as fresh:
        expected = prefill(fresh, 0, blocks)
    # The first block lies in the others already.
    assert len(found) == sum(-(-len(block) // 8) for block in blocks[1:])
    assert found[:-1] == [None] * (len(found) - 1)
    assert again[2] == len(blocks[-1])
    assert found[-1] is not None
    for hidden, logits in (found[-1], again[:2]):
        np.testing.assert_array_equal(hidden, expected[0])
        np.testing.assert_array_equal(logits, expected[1])


@pytest.mark.parametrize(("sequences", "rows"), [(1, 64), (100, 64), (100, None)])
def test_how_many_can_speak_does_not_change_how_a_prompt_is_cut(
    level: OpenLevel, embeddings: Embeddings, sequences: int, rows: int | None
) -> None:
    options = EngineOptions(threads=1, sequences=sequences, exact=True)
    spec = replace(TINY, max_positions=200)
    block = Block(rows_of(random_codes(130)))
    with Backbone(level.backbone, spec, embeddings, options, prefill_rows=rows) as backbone:
        assert len(list(backbone.prefill_chunks(0, [block]))) == 3
        assert backbone.step(range(sequences), np.ones((sequences, TINY.backbone.embed_dim), np.float32))[0].shape == (
            sequences,
            TINY.backbone.embed_dim,
        )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The sequences of the rows of each call of llama.cpp."""
    calls: list[list[int]] = []
    lib = load_library()
    decode = lib.llama_decode

    def noting(handle: object, batch: ctypes.Structure) -> object:
        calls.append([batch.seq_id[row][0] for row in range(batch.n_tokens)])
        return decode(handle, batch)

    monkeypatch.setattr(lib, "llama_decode", noting)
    return calls


@pytest.mark.parametrize(
    ("longest_gap", "sequences", "rows"),
    [
        (0, [3, 0, 1], [0, 1, 3]),
        (3, [3, 0, 1], [0, 1, 2, 3]),
        (4, [5, 0], [0, 5]),  # 4 is full
        (2, [3, 0], [0, 1, 2, 3]),
        (1, [3, 0], [0, 3]),
    ],
)
def test_rows_that_nobody_asked_for_leave_nothing_behind(  # type: ignore[no-untyped-def]
    level: OpenLevel, embeddings: Embeddings, decoded: list[list[int]], longest_gap: int, sequences, rows
) -> None:
    """llama.cpp gets ascending rows, and each comes back to who asked for it."""
    spec, options = replace(TINY, max_positions=32), EngineOptions(threads=1, sequences=6, exact=True)
    block, fed = Block(rows_of(random_codes(9))), embeddings.embed(rows_of(random_codes(6, 1)))

    def prepare() -> None:
        for sequence in range(6):
            prefill(backbone, sequence, [block])
        backbone.extend(4, rows_of(random_codes(32 - 9)))

    with Backbone(level.backbone, spec, embeddings, options, longest_gap=longest_gap) as backbone:
        prepare()
        alone = {s: backbone.step([s], fed[s : s + 1]) for s in range(6) if s != 4}
        prepare()
        decoded.clear()
        hidden, logits = backbone.step(sequences, fed[sequences])
        assert decoded == [rows]
        afterwards = {s: backbone.step([s], fed[s : s + 1]) for s in alone if s not in sequences}
    for row, sequence in enumerate(sequences):
        np.testing.assert_allclose(hidden[row], alone[sequence][0][0], rtol=0, atol=2e-5)
        np.testing.assert_allclose(logits[row], alone[sequence][1][0], rtol=0, atol=2e-5)
    for sequence, results in afterwards.items():
        for found, expected in zip(results, alone[sequence], strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sequences", [[], [0, 0], [0], [0, 1, 1]])
def test_a_step_has_one_row_of_each(level: OpenLevel, embeddings: Embeddings, sequences: list[int]) -> None:
    with opened(level, embeddings, sequences=2) as backbone:
        rows = np.zeros((2 if len(sequences) < 3 else 3, TINY.backbone.embed_dim), np.float32)
        with pytest.raises(ValueError, match="a step has one row of each sequence, not"):
            backbone.step(sequences, rows)


def test_after_closing_everything_says_so(level: OpenLevel, embeddings: Embeddings, prompt: list[Block]) -> None:
    backbone = opened(level, embeddings)
    begun = backbone.prefill_chunks(0, prompt)
    next(begun)
    backbone.close()
    backbone.close()
    for call in (
        lambda: next(begun),
        lambda: next(backbone.prefill_chunks(0, prompt)),
        lambda: backbone.step([0], np.zeros((1, TINY.backbone.embed_dim), np.float32)),
        lambda: backbone.extend(0, prompt[0].rows),
        lambda: backbone.shared(0, prompt),
    ):
        with pytest.raises(MisoError, match="this model is closed: load it again"):
            call()
