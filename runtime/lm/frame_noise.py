"""The noise of the frame loop: drawn when it is wanted, or one frame ahead while a GPU computes."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ...core.arrays import F32Array
from ...core.closing import Closing
from ...models.noise import gumbel_noise
from ...models.spec import ModelSpec
from .utterance import Utterance


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
