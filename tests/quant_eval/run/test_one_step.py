"""One-step decoding: on its own history and noise, a level says what it has said."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speaking import load_engine, prompt_blocks, random_codes, say, segments

from miso_gguf.quant_eval.run.teacher_forcing import Replay, one_step_codes
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.utterance import Utterance

TEXT = "One two three, said the tiny model."


def asked(engine: Engine, **changes: Any) -> Utterance:
    return replace(Utterance(prompt_blocks(engine.prompts, TEXT, segments(2)), 30, seed=5, stream=2), **changes)


@pytest.fixture(scope="module")
def coarse(bundle: Path) -> Iterator[Engine]:
    with load_engine(bundle, "q4_k_m") as engine:
        yield engine


@pytest.mark.parametrize("at_once", [1, 3, 8, 100])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_at_f32_the_run_is_drawn_again(engine: Engine, temperature: float, at_once: int) -> None:
    """In batches of any size, replayed in batches."""
    utterance = asked(engine, temperature=temperature)
    (spoken,) = say(engine, utterance)
    replayed = Replay(engine).run(utterance.blocks, spoken)
    np.testing.assert_array_equal(one_step_codes(engine, replayed, utterance, at_once=at_once), spoken)


@pytest.mark.parametrize("level", ["fp16", "q8_0", "q4_k_m"])
def test_as_spoken_every_level_draws_its_run_again(bundle: Path, level: str) -> None:
    with load_engine(bundle, level) as engine:
        utterance = asked(engine)
        (spoken,) = say(engine, utterance)
        replayed = Replay(engine, as_spoken=True).run(utterance.blocks, spoken)
        np.testing.assert_array_equal(one_step_codes(engine, replayed, utterance, at_once=1), spoken)


def test_the_noise_is_the_batchers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    utterance = asked(engine, max_frames=5, temperature=0.7, top_k=30)
    noise: list[Any] = []
    sample = engine.sample

    def recording(*given: Any) -> Any:
        noise.append(given[2:])
        return sample(*given)

    monkeypatch.setattr(engine, "sample", recording)
    (spoken,) = say(engine, utterance)
    heard = list(noise)
    noise.clear()
    one_step_codes(engine, Replay(engine).run(utterance.blocks, spoken), utterance, at_once=5)
    np.testing.assert_array_equal(noise[0][0], np.concatenate([each for each, _ in heard]))
    assert [top_k for _, top_k in (*heard, *noise)] == [[30]] * len(heard) + [30]


def test_a_frame_depends_on_the_frames_before_it_alone(engine: Engine) -> None:
    """Not on what was spoken in its own place, nor after it."""
    utterance, codes = asked(engine), random_codes(10)
    changed = codes.copy()
    changed[6] = random_codes(1, 99)
    first, second = (
        one_step_codes(engine, Replay(engine).run(utterance.blocks, c), utterance) for c in (codes, changed)
    )
    np.testing.assert_array_equal(first[:7], second[:7])
    assert (first[7] != second[7]).any()
    assert (first != codes).mean() > 0.5, "what is drawn is not what was given"


def test_a_level_flips_some_codes(engine: Engine, coarse: Engine) -> None:
    """One codebook after another, as the chain within a frame parts; against itself, none."""
    utterance = asked(engine)
    (spoken,) = say(engine, utterance)
    base, level = (one_step_codes(e, Replay(e).run(utterance.blocks, spoken), utterance) for e in (engine, coarse))
    again = one_step_codes(coarse, Replay(coarse).run(utterance.blocks, spoken), utterance)
    np.testing.assert_array_equal(level, again)
    flips = (base != level).mean(axis=0)
    assert 0 < flips.mean() < 0.9
    assert flips[:2].mean() < flips[-2:].mean()


def test_no_frames(engine: Engine) -> None:
    utterance = asked(engine)
    replayed = Replay(engine).run(utterance.blocks, random_codes(0))
    assert one_step_codes(engine, replayed, utterance).shape == (0, 8)
    with pytest.raises(ValueError, match="at_once must be at least 1, not 0"):
        one_step_codes(engine, replayed, utterance, at_once=0)


def test_no_sequence_is_needed(engine: Engine) -> None:
    """Only the replay takes one: what it found can be drawn from while the engine speaks."""
    utterance = asked(engine, max_frames=2)
    replayed = Replay(engine).run(utterance.blocks, random_codes(2))
    with engine.batcher.lend(utterance.blocks):
        assert one_step_codes(engine, replayed, utterance).shape == (2, 8)
