"""The frame loop: prompts in, codes out, one frame at a time. Everything that speaks goes through it.

It draws the noise, and steps several utterances together. It knows no audio, no voices and no sentences.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...core.closing import Closing
from ...models.noise import gumbel_noise
from ...models.spec import ModelSpec
from .engine import Engine
from .prompt import Block


@dataclass(frozen=True)
class Utterance:
    """What is to be said: a prompt, and how to sample."""

    blocks: Sequence[Block]
    max_frames: int
    seed: int = 0
    stream: int = 0
    """Tells utterances of one seed apart."""
    temperature: float = 0.9
    top_k: int = 50


class FrameTimes(NamedTuple):
    """Where the time of one frame went, in seconds."""

    backbone_s: float
    depth_s: float
    host_s: float


class Step(NamedTuple):
    """One turn of the frame loop."""

    codes: dict[int, I64Array]
    """Utterance index -> codes [codebooks] of its new frame."""
    ended: dict[int, str]
    """Utterance index -> "eos" or "cap", for those that ended with this step."""
    times: FrameTimes


class FrameLoop(Closing):
    """Utterances on their way: iterate for steps, `stop` one early, `close` to give the sequences back."""

    def __init__(self, engine: Engine, utterances: Sequence[Utterance]) -> None:
        """Take a sequence for each utterance; waits until other threads leave enough of them.

        Raises:
            MisoError: If there are more utterances than sequences, or this thread itself holds those that are missing.
            ValueError: If `top_k` differs between them, or a prompt leaves no position for a frame.
        """
        if len({utterance.top_k for utterance in utterances}) != 1:
            raise ValueError("utterances that are spoken together must have the same top_k")
        for utterance in utterances:
            room = engine.spec.max_positions - sum(map(len, utterance.blocks))
            if not 1 <= utterance.max_frames <= room:
                raise ValueError(f"max_frames must be 1 to {room} after this prompt, not {utterance.max_frames}")
        self._engine, self._utterances = engine, utterances
        # A GPU leaves the CPU time for the next frame's noise; a CPU has none to spare.
        self._noise = FrameNoise(engine.spec, utterances, ahead=engine.gpu is not None)
        self._sequences = engine.pool.take([utterance.blocks for utterance in utterances])
        self._active = list(range(len(utterances)))
        self._codes: dict[int, I64Array] = {}
        self._frame = 0

    def close(self) -> None:
        """Give the sequences back. Idempotent."""
        self._active.clear()
        self._noise.close()
        sequences, self._sequences = self._sequences, []
        self._engine.pool.give_back(sequences)

    def stop(self, index: int) -> None:
        """Compute no further frames of an utterance."""
        if index in self._active:
            self._active.remove(index)

    def __iter__(self) -> Iterator[Step]:
        while self._active:
            yield self._step()

    def _step(self) -> Step:
        active, utterances = list(self._active), self._utterances
        begin = time.perf_counter()
        if self._frame == 0:
            results = [self._engine.prefill(self._sequences[i], utterances[i].blocks) for i in active]
            hidden, logits = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
        else:
            hidden, logits = self._engine.step([self._sequences[i] for i in active], [self._codes[i] for i in active])
        after_backbone = time.perf_counter()
        noise = self._noise.draw(active, self._frame)
        before_depth = time.perf_counter()
        codes = self._engine.sample(hidden, logits, noise, utterances[0].top_k)
        end = time.perf_counter()
        self._frame += 1
        new, ended = {}, {}
        for row, index in enumerate(active):
            if not codes[row].any():
                ended[index] = "eos"
                continue
            new[index] = self._codes[index] = codes[row]
            if self._frame == utterances[index].max_frames:
                ended[index] = "cap"
        for index in ended:
            self.stop(index)
        times = FrameTimes(after_backbone - begin, end - before_depth, before_depth - after_backbone)
        return Step(new, ended, times)


class FrameNoise(Closing):
    """The scaled noise of several utterances, frame by frame. `close` ends its thread."""

    def __init__(self, spec: ModelSpec, utterances: Sequence[Utterance], *, ahead: bool) -> None:
        """`ahead` draws the next frame's on a thread of its own: for each utterance half a millisecond to one."""
        self._spec, self._utterances = spec, utterances
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="noise") if ahead else None
        self._drawn: dict[tuple[int, int], Future[F32Array]] = {}

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def draw(self, indices: Sequence[int], frame: int) -> F32Array:
        """Of the utterances `indices`, float32 [B, codebooks, audio_vocab]."""
        noise = np.stack([self._of(index, frame) for index in indices])
        if self._thread is not None:
            for index in indices:
                self._drawn[index, frame + 1] = self._thread.submit(self._scaled, index, frame + 1)
        return noise

    def _of(self, index: int, frame: int) -> F32Array:
        drawn = self._drawn.pop((index, frame), None)
        return self._scaled(index, frame) if drawn is None else drawn.result()

    def _scaled(self, index: int, frame: int) -> F32Array:
        return scaled_noise(self._spec, self._utterances[index], frame)


def scaled_noise(spec: ModelSpec, utterance: Utterance, frame: int) -> F32Array:
    """The noise of one frame, times temperature; zeros for greedy. Float32 [codebooks, audio_vocab]."""
    if utterance.temperature == 0:
        return np.zeros((spec.codebooks, spec.audio_vocab), np.float32)
    noise = gumbel_noise(utterance.seed, frame, spec.codebooks, spec.audio_vocab, stream=utterance.stream)
    noise *= np.float32(utterance.temperature)
    return noise
