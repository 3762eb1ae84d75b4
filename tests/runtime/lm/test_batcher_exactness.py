"""Random schedules on the tiny model at F32: what each utterance says among others is what it says alone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from elsewhere import Elsewhere
from numpy.typing import NDArray
from speaking import load_engine, prompt_blocks, say, segments

from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.noise import scaled_noise
from miso_gguf.runtime.lm.prompt import audio_rows
from miso_gguf.runtime.lm.utterance import Utterance

Codes = NDArray[np.int64]

TIE = 1e-4
"""Two candidates whose logits with noise differ by less: which of them is the larger is a matter of rounding."""
TEXTS = ("One thing.", "Say this, and say it slowly.", "Another thing, quite different from the first one.", "Yes.")


@dataclass
class Heard:
    """What became of an utterance among others."""

    utterance: Utterance
    codes: Codes
    cancelled: bool


@pytest.fixture(scope="module")
def wide(bundle: Path) -> Iterator[Engine]:
    with load_engine(bundle, exact=True, sequences=4) as engine:
        yield engine


def random_utterance(engine: Engine, draw: np.random.Generator, longest: int) -> Utterance:
    voices = segments(3)
    first = int(draw.integers(3))
    return Utterance(
        prompt_blocks(engine.prompts, str(draw.choice(TEXTS)), voices[first : first + int(draw.integers(3))]),
        int(draw.integers(1, longest + 1)),
        seed=int(draw.integers(1 << 63)),
        stream=int(draw.integers(9)),
        temperature=float(draw.choice([0.0, 0.6, 0.9])),
        top_k=int(draw.choice([1, 5, 50, 300])),
    )


def speak(engine: Engine, seed: int, count: int, longest: int) -> list[Heard]:
    """One of those who come and go: it admits now and then, reads at its own pace, and cancels every fifth."""
    draw = np.random.default_rng(seed)
    heard = []
    for _ in range(count):
        time.sleep(draw.exponential(0.003))
        utterance = random_utterance(engine, draw, longest)
        enough = int(draw.integers(1, utterance.max_frames + 1)) if draw.random() < 0.2 else None
        frames = []
        with engine.batcher.admit(utterance, buffer=int(draw.integers(1, 20))) as ticket:
            for codes in ticket:
                frames.append(codes)
                if len(frames) == enough:
                    break
        said = np.array(frames, np.int64).reshape(-1, engine.spec.codebooks)
        heard.append(Heard(utterance, said, ticket.ended == "cancelled"))
    return heard


def assert_as_alone(alone: Engine, heard: Heard) -> bool:
    """Whether they are the same, all frames; otherwise the first difference must be a near-tie."""
    (expected,) = say(alone, heard.utterance)
    if heard.cancelled:
        expected = expected[: len(heard.codes)]
    if np.array_equal(heard.codes, expected):
        return True
    frames = max(len(expected), len(heard.codes)) + 1
    padded = [np.pad(codes, ((0, frames - len(codes)), (0, 0))) for codes in (expected, heard.codes)]
    frame, book = np.argwhere(padded[0] != padded[1])[0].tolist()
    assert gap(alone, heard.utterance, padded[0][:frame], padded[0][frame], padded[1][frame], book) < TIE
    return False


def gap(engine: Engine, utterance: Utterance, before: Codes, one: Codes, other: Codes, book: int) -> float:
    """How far two codes are apart at the codebook that they first differ in: in logits with noise, or in rank."""
    with engine.batcher.lend(utterance.blocks) as sequence:
        hidden, logits = engine.prefill(sequence, utterance.blocks)
        if len(before):
            hidden, logits = engine.extend(sequence, audio_rows(before), at_once=1)
    found = logits[-1] if book == 0 else engine.depth_logits(hidden[-1:], one[np.newaxis])[0, book - 1]
    noisy = found + scaled_noise(engine.spec, utterance, len(before))[book]
    falling = np.sort(found)[::-1]
    last = min(utterance.top_k, len(falling) - 1)
    return float(min(abs(noisy[one[book]] - noisy[other[book]]), falling[last - 1] - falling[last]))


@pytest.mark.parametrize(
    ("speakers", "each", "longest"), [(5, 4, 25), pytest.param(6, 50, 200, marks=pytest.mark.long)], ids=["20", "300"]
)
def test_random_schedules(wide: Engine, engine: Engine, speakers: int, each: int, longest: int) -> None:
    others = [Elsewhere(speak, wide, seed, each, longest) for seed in range(speakers)]
    heard = [one for other in others for one in other.result(600)]
    assert len(heard) == speakers * each
    assert 0 < sum(one.cancelled for one in heard) < len(heard) / 2
    same = [assert_as_alone(engine, one) for one in heard]
    assert sum(same) >= 0.95 * len(same), "near-ties are rare"


def test_a_gap_is_what_decides(engine: Engine) -> None:
    """So a difference that is none of rounding would be found: the code that was said is first, another is not."""
    utterance = Utterance(prompt_blocks(engine.prompts, TEXTS[0]), 4, seed=3)
    (codes,) = say(engine, utterance)
    for frame, book in ((0, 0), (3, 0), (2, 5)):
        wrong = codes[frame].copy()
        wrong[book] += 1 if wrong[book] < 500 else -1
        assert gap(engine, utterance, codes[:frame], codes[frame], wrong, book) > TIE
        assert gap(engine, utterance, codes[:frame], codes[frame], codes[frame], book) == 0
