"""Teacher forcing through the runtime: the reference's logits, a level's own bits, and halves that can be exchanged."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from speaking import load_engine, prompt_blocks, random_codes, reference_prompt, say, segments

from miso_gguf.models.flavors import TINY
from miso_gguf.models.reference import KVCache, Reference, audio_rows
from miso_gguf.quant_eval.run.teacher_forcing import Replay
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.utterance import Utterance

TEXT = "One two three, said the tiny model."


@pytest.fixture(scope="module")
def coarse(bundle: Path) -> Iterator[Engine]:
    with load_engine(bundle, "q4_k_m") as engine:
        yield engine


@pytest.mark.parametrize("as_spoken", [False, True])
@pytest.mark.parametrize("frames", [1, 70])
def test_logits_equal_the_reference(engine: Engine, reference: Reference, frames: int, as_spoken: bool) -> None:
    """Seventy frames are more than one batch of 64."""
    given, codes = segments(2), random_codes(frames, 9)
    replay = Replay(engine, as_spoken=as_spoken)
    replayed = replay.run(prompt_blocks(engine.prompts, TEXT, given), codes)
    logits = replay.all_logits(replayed)
    with torch.no_grad():
        cache, rows = KVCache(), audio_rows(TINY, torch.from_numpy(codes))
        first = reference.backbone(reference.embed(*reference_prompt(engine, TEXT, given)), cache)[-1:]
        hidden = torch.cat([first, reference.backbone(reference.embed(*rows), cache)])
        logits0 = reference.codebook0_logits(hidden).numpy()
        depth = reference.depth_logits(hidden[:-1], torch.from_numpy(codes[:, :-1])).numpy()
    assert replayed.frames == frames
    np.testing.assert_allclose(replayed.hidden, hidden.numpy(), rtol=0, atol=3e-5)
    np.testing.assert_allclose(replayed.logits0, logits0, rtol=0, atol=3e-5)
    assert logits.shape == (frames, TINY.codebooks, TINY.audio_vocab)
    np.testing.assert_array_equal(logits[:, 0], replayed.logits0[:-1])
    np.testing.assert_allclose(logits[:, 1:], depth, rtol=0, atol=3e-5)


def test_the_best_codes_of_a_greedy_run_are_those_it_said(engine: Engine) -> None:
    blocks = prompt_blocks(engine.prompts, TEXT, segments(1))
    (codes,) = say(engine, Utterance(blocks, 60, temperature=0))
    replay = Replay(engine)
    np.testing.assert_array_equal(replay.all_logits(replay.run(blocks, codes)).argmax(-1), codes)


@pytest.mark.parametrize("level", ["f32", "fp16", "q8_0", "q4_k_m"])
def test_as_spoken_gives_the_bits_of_the_run(bundle: Path, level: str) -> None:
    """With the options that people use: F16 cache, fused attention."""
    with load_engine(bundle, level) as engine:
        utterance = Utterance(prompt_blocks(engine.prompts, TEXT, segments(2)), 12, seed=4)
        results, sample = [], engine.sample
        engine.sample = lambda *given: results.append(given[:2]) or sample(*given)  # type: ignore[method-assign, func-returns-value]
        (codes,) = say(engine, utterance)
        replayed = Replay(engine, as_spoken=True).run(utterance.blocks, codes)
    for index, found in enumerate((replayed.hidden, replayed.logits0)):
        np.testing.assert_array_equal(found[:-1], np.concatenate([result[index] for result in results]))


@pytest.mark.parametrize("as_spoken", [False, True])
def test_again_is_the_same(coarse: Engine, as_spoken: bool) -> None:
    """Bit for bit, whatever was replayed or said in between: a level against itself differs by exactly nothing."""
    replay, codes = Replay(coarse, as_spoken=as_spoken), random_codes(20)
    blocks = prompt_blocks(coarse.prompts, TEXT, segments(2))
    first = replay.run(blocks, codes)
    first_logits = replay.all_logits(first)
    other = prompt_blocks(coarse.prompts, "Something else.", segments(1))
    say(coarse, Utterance(other, 5))
    replay.run(other, random_codes(7, 1))
    again = replay.run(blocks, codes)
    np.testing.assert_array_equal(first.hidden, again.hidden)
    np.testing.assert_array_equal(first.logits0, again.logits0)
    np.testing.assert_array_equal(first_logits, replay.all_logits(again))


def test_halves_of_two_levels(engine: Engine, coarse: Engine) -> None:
    """The backbone decides codebook 0 alone; the others depend on both halves, and each half does some damage."""
    codes = random_codes(20)
    fine_replay, coarse_replay = Replay(engine), Replay(coarse)
    blocks = prompt_blocks(engine.prompts, TEXT)
    fine, rough = fine_replay.run(blocks, codes), coarse_replay.run(blocks, codes)
    base, both = fine_replay.all_logits(fine), coarse_replay.all_logits(rough)
    backbone_only, decoder_only = fine_replay.all_logits(rough), coarse_replay.all_logits(fine)
    np.testing.assert_array_equal(decoder_only[:, 0], base[:, 0])
    np.testing.assert_array_equal(backbone_only[:, 0], both[:, 0])

    def error(logits: np.ndarray) -> float:
        return float(np.square(logits[:, 1:] - base[:, 1:]).mean())

    assert 0 < max(error(backbone_only), error(decoder_only)) < error(both)
    # Independent errors add up in the square.
    assert error(both) == pytest.approx(error(backbone_only) + error(decoder_only), rel=0.3)


def test_an_utterance_without_frames(engine: Engine) -> None:
    blocks = prompt_blocks(engine.prompts, TEXT)
    replay = Replay(engine)
    replayed = replay.run(blocks, random_codes(0))
    assert replayed.frames == 0
    assert replayed.hidden.shape == (1, TINY.backbone.embed_dim)
    assert replay.all_logits(replayed).shape == (0, TINY.codebooks, TINY.audio_vocab)
    np.testing.assert_array_equal(replayed.logits0, replay.run(blocks, random_codes(1)).logits0[:1])


def test_the_last_position_can_be_replayed(engine: Engine) -> None:
    text = engine.prompts.text("Say this.", 0)
    filling = Block(np.tile(text.rows[1:2], (TINY.max_positions - len(text) - 2, 1)))
    assert Replay(engine).run([filling, text], random_codes(2)).hidden.shape[0] == 3
    with pytest.raises(ValueError, match="a prompt of 2046 rows and 3 frames do not fit into 2048 positions"):
        Replay(engine).run([filling, text], random_codes(3))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (random_codes(2)[:, 1:], r"codes must be int64 \[frames, 8\], not int64 \[2, 7\]: were they spoken by another"),
        (random_codes(2)[0], r"codes must be int64 \[frames, 8\], not int64 \[8\]"),
        (random_codes(2).astype(np.int32), r"codes must be int64 \[frames, 8\], not int32 \[2, 8\]"),
        (random_codes(2) * 0 + 515, "codes must be 0 to 514, not 515 to 515"),
        (random_codes(2) * 0 - 1, "codes must be 0 to 514, not -1 to -1"),
    ],
)
def test_codes_of_another_model_are_refused(engine: Engine, codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(engine).run(prompt_blocks(engine.prompts, TEXT), codes)


def test_a_prompt_is_needed(engine: Engine) -> None:
    with pytest.raises(ValueError, match="a prompt of 0 rows and 1 frames do not fit"):
        Replay(engine).run([], random_codes(1))


def test_it_takes_a_sequence_and_gives_it_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = prompt_blocks(engine.prompts, TEXT)
    with monkeypatch.context() as patch:
        patch.setattr(engine.backbone, "extend", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Replay(engine).run(blocks, random_codes(1))
    assert Replay(engine).run(blocks, random_codes(1)).frames == 1
