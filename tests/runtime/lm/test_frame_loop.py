"""The frame loop: noise, batches, ends, and the lending of sequences."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from speaking import Scripted, load_engine, prompt_blocks, random_codes, say, segments

from miso_gguf.core.errors import MisoError
from miso_gguf.models.noise import gumbel_noise
from miso_gguf.runtime.lm.backbone import Backbone
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.frame_loop import FrameLoop, Utterance
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.sequences import SequencePool

FRAMES = 14


@pytest.fixture(scope="module")
def wide(bundle: Path) -> Iterator[Engine]:
    """Eight utterances at a time."""
    with load_engine(bundle, exact=True, sequences=8) as engine:
        yield engine


def utterances(engine: Engine, count: int) -> list[Utterance]:
    """All different: prompt, length, seed, stream and temperature."""
    return [
        Utterance(
            prompt_blocks(engine.prompts, f"Say this, number {index}.", segments(index % 3)),
            FRAMES - index,
            seed=5 + index // 2,
            stream=index,
            temperature=0.0 if index == 1 else 0.9,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("batch", [2, 3, 4, 7, 8])
def test_together_or_alone_they_say_the_same(wide: Engine, engine: Engine, batch: int) -> None:
    """Seven become a graph of eight, then of four as they end: neither the filling nor the company shows."""
    asked = utterances(wide, batch)
    for utterance, found in zip(asked, say(wide, *asked), strict=True):
        assert len(found) == utterance.max_frames
        np.testing.assert_array_equal(found, say(engine, utterance)[0])


def test_what_was_said_before_does_not_matter(bundle: Path, engine: Engine) -> None:
    """Nor does a new process, as far as a new engine is one."""
    asked = utterances(engine, 3)
    first = [say(engine, utterance)[0] for utterance in asked]
    for utterance, expected in zip(reversed(asked), reversed(first), strict=True):
        np.testing.assert_array_equal(say(engine, utterance)[0], expected)
    with load_engine(bundle, exact=True) as fresh:
        np.testing.assert_array_equal(say(fresh, asked[1])[0], first[1])


def test_seed_stream_and_temperature_each_matter(engine: Engine) -> None:
    blocks = prompt_blocks(engine.prompts, "Say this.")
    variants = [{}, {"seed": 1}, {"stream": 1}, {"temperature": 0.5}, {"top_k": 3}]
    said = [say(engine, Utterance(blocks, 4, **cast(Any, variant)))[0].tobytes() for variant in variants]
    assert len(set(said)) == len(said)


class Recorder:
    """Keeps the noise that an engine is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
        self.noise: list[NDArray[np.float32]] = []
        sample = engine.sample

        def recording(hidden: Any, logits: Any, noise: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
            self.noise.append(noise.copy())
            return sample(hidden, logits, noise, top_k)

        monkeypatch.setattr(engine, "sample", recording)


def test_noise_is_a_function_of_seed_stream_and_frame(wide: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else is there, and whoever has left: the third utterance goes on when the others have ended."""
    recorder = Recorder(monkeypatch, wide)
    blocks = prompt_blocks(wide.prompts, "Say this.")
    say(
        wide,
        Utterance(blocks, 1, seed=3, temperature=0),
        Utterance(blocks, 2, seed=3, stream=1, temperature=0.5),
        Utterance(blocks, 3, seed=2**64 - 1, stream=7, temperature=0.9),
    )

    def expected(seed: int, frame: int, stream: int, temperature: float) -> NDArray[np.float32]:
        noise: NDArray[np.float32] = gumbel_noise(seed, frame, 8, 515, stream=stream) * np.float32(temperature)
        return noise

    assert [len(noise) for noise in recorder.noise] == [3, 2, 1]
    assert not recorder.noise[0][0].any(), "temperature 0 is greedy"
    for frame in (0, 1):
        np.testing.assert_array_equal(recorder.noise[frame][-2], expected(3, frame, 1, 0.5))
    for frame in (0, 1, 2):
        np.testing.assert_array_equal(recorder.noise[frame][-1], expected(2**64 - 1, frame, 7, 0.9))


def test_levels_see_the_same_draws(bundle: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = Recorder(monkeypatch, engine)
    blocks = prompt_blocks(engine.prompts, "Say this.")
    (spoken,) = say(engine, Utterance(blocks, 3))
    with load_engine(bundle, "q4_k_m") as coarse_engine:
        coarse = Recorder(monkeypatch, coarse_engine)
        (coarsely,) = say(coarse_engine, Utterance(blocks, 3))
    np.testing.assert_array_equal(np.stack(fine.noise), np.stack(coarse.noise))
    assert (spoken != coarsely).any()


def test_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = prompt_blocks(engine.prompts, "Say this.")
    Scripted(monkeypatch, engine, [random_codes(2), random_codes(9), random_codes(0)])
    with FrameLoop(engine, [Utterance(blocks, 5)]) as loop:
        steps = list(loop)
    assert [len(step.codes) for step in steps] == [1, 1, 0]
    assert [step.ended for step in steps] == [{}, {}, {0: "eos"}]
    assert all(min(step.times) >= 0 for step in steps)
    with FrameLoop(engine, [Utterance(blocks, 5)]) as loop:
        assert [step.ended for step in loop] == [{}] * 4 + [{0: "cap"}]
    with FrameLoop(engine, [Utterance(blocks, 5)]) as loop:
        assert [(step.codes, step.ended) for step in loop] == [({}, {0: "eos"})]


def test_stopping_one_of_several(wide: Engine) -> None:
    asked = utterances(wide, 3)
    alone = say(wide, asked[2])[0]
    frames: list[NDArray[np.int64]] = []
    with FrameLoop(wide, asked) as loop:
        for number, step in enumerate(loop):
            if number == 3:
                loop.stop(0)
                loop.stop(0)
            assert (0 in step.codes) == (number <= 3)
            if 2 in step.codes:
                frames.append(step.codes[2])
    np.testing.assert_array_equal(np.stack(frames), alone)


def test_what_cannot_be_spoken_is_refused(engine: Engine) -> None:
    blocks = prompt_blocks(engine.prompts, "Say this.")
    room = engine.spec.max_positions - len(blocks[0])
    for frames in (0, -1, room + 1):
        with pytest.raises(ValueError, match=f"max_frames must be 1 to {room} after this prompt, not {frames}"):
            FrameLoop(engine, [Utterance(blocks, frames)])
    with pytest.raises(ValueError, match="must have the same top_k"):
        FrameLoop(engine, [Utterance(blocks, 1, top_k=5), Utterance(blocks, 1, top_k=6)])
    with pytest.raises(MisoError, match="2 more utterances at the same time need 2 sequences, there are 1"):
        FrameLoop(engine, [Utterance(blocks, 1)] * 2)
    assert len(say(engine, Utterance(blocks, 1))[0]) == 1, "a refusal takes no sequence with it"


def test_the_last_position_can_be_used(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that leaves two positions: two frames, the second of which is fed nowhere."""
    text = engine.prompts.text("Say this.", 0)
    filling = Block(np.tile(text.rows[1:2], (engine.spec.max_positions - len(text) - 2, 1)))
    (found,) = say(engine, Utterance([filling, text], 2))
    assert found.shape == (2, 8)
    with pytest.raises(ValueError, match="max_frames must be 1 to 2 after this prompt, not 3"):
        FrameLoop(engine, [Utterance([filling, text], 3)])


class FakeBackbone:
    """Sequences that hold what a test says."""

    def __init__(self, held: Sequence[int]) -> None:
        self._held, self.sequences = held, len(held)

    def shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        return self._held[sequence]


def pool_of(*held: int) -> SequencePool:
    return SequencePool(cast(Backbone, FakeBackbone(held)))


def test_the_sequence_that_holds_most_of_the_prompt_is_lent_first() -> None:
    pool = pool_of(0, 2, 1)
    assert pool.take([[]]) == [1]
    assert pool.take([[], []]) == [2, 0]
    pool.give_back([1])
    assert pool.take([[]]) == [1]


def test_a_thread_does_not_wait_for_itself() -> None:
    pool = pool_of(0, 0)
    taken = pool.take([[]])
    with pytest.raises(MisoError, match="2 more utterances at the same time need 3 sequences, there are 2: finish or"):
        pool.take([[], []])
    pool.give_back(taken)
    assert sorted(pool.take([[], []])) == [0, 1]


def test_a_thread_waits_for_others() -> None:
    pool = pool_of(0)
    taken = pool.take([[]])
    got: list[object] = []
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        mine = pool.take([[]])
        got.append(mine)
        pool.give_back(mine)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait(10)
    thread.join(0.1)
    assert thread.is_alive()
    assert not got
    pool.give_back(taken)
    thread.join(10)
    assert got == [[0]]


def test_a_pool_closes_only_when_all_is_back() -> None:
    pool = pool_of(0, 0)
    taken = pool.take([[]])
    with pytest.raises(MisoError, match="still speaking: finish or close its streams"):
        pool.close()
    pool.give_back(taken)
    pool.close()
    pool.close()
    with pytest.raises(MisoError, match="this model is closed"):
        pool.take([[]])
