"""The noise that utterances are sampled with, frame by frame; where the CPU is idle, drawn before it is wanted."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ...core.arrays import F32Array
from ...core.closing import Closing
from ...models.noise import gumbel_noise
from ...models.spec import ModelSpec
from .utterance import Utterance

_Key = tuple[int, int, float, int]


def scaled_noise(spec: ModelSpec, utterance: Utterance, frame: int) -> F32Array:
    """The noise of one frame, times temperature; zeros for greedy. Float32 [codebooks, audio_vocab]."""
    return _scaled(spec, _key(utterance, frame))


class FrameNoise(Closing):
    """Draws it for the utterances of a batch. `close` ends its thread."""

    def __init__(self, spec: ModelSpec, *, ahead: bool) -> None:
        """`ahead` draws the next frame's on a thread of its own: for each utterance half a millisecond to one."""
        self._spec = spec
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="miso-noise") if ahead else None
        self._drawn: dict[_Key, Future[F32Array]] = {}

    def close(self) -> None:
        """End the thread. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)
        self._drawn.clear()

    def draw(self, utterances: Sequence[Utterance], frames: Sequence[int]) -> F32Array:
        """Of each utterance the frame that stands beside it, float32 [B, codebooks, audio_vocab]."""
        drawn = self._drawn
        noise = np.stack([self._of(_key(*which)) for which in zip(utterances, frames, strict=True)])
        if self._thread is not None:
            following = [_key(utterance, frame + 1) for utterance, frame in zip(utterances, frames, strict=True)]
            # Of an utterance that waits or has left nothing is kept: to draw it again gives the same.
            try:
                self._drawn = {
                    key: drawn.get(key) or self._thread.submit(_scaled, self._spec, key) for key in following
                }
            except RuntimeError:  # at the main thread's end executors take no more; other threads may still speak
                self._drawn = {}
        return noise

    def _of(self, key: _Key) -> F32Array:
        drawn = self._drawn.get(key)
        return _scaled(self._spec, key) if drawn is None else drawn.result()


def _key(utterance: Utterance, frame: int) -> _Key:
    """All that the noise of a frame follows from."""
    return utterance.seed, utterance.stream, utterance.temperature, frame


def _scaled(spec: ModelSpec, key: _Key) -> F32Array:
    seed, stream, temperature, frame = key
    if temperature == 0:
        return np.zeros((spec.codebooks, spec.audio_vocab), np.float32)
    noise = gumbel_noise(seed, frame, spec.codebooks, spec.audio_vocab, stream=stream)
    noise *= np.float32(temperature)
    return noise
