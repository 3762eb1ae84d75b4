"""One try at one utterance: the frame loop, the codec beside it, and the stopping criteria over both."""

import logging
from collections.abc import Iterator

import numpy as np

from ...core.arrays import I64Array
from ..audio.samples import Samples
from ..codec.codec import Codec
from ..codec.thread import CodecThread
from ..lm.engine import Engine
from ..lm.frame_loop import FrameLoop, Utterance
from ..speech import Timing
from .stopping import StoppingCriteria

log = logging.getLogger(__name__)

_MOST_PENDING = 8
"""Chunks that the codec may lag behind: on a fast GPU with the codec on the CPU it would pile up."""


class Take:
    """Iterate for the sound, chunk by chunk; afterwards the other members say how it went.

    The first chunk is one frame and leaves before the second frame is computed.
    """

    def __init__(
        self, engine: Engine, codec: Codec, utterance: Utterance, timing: Timing, chunk_frames: int = 1
    ) -> None:
        self._engine, self._codec, self._utterance, self._timing = engine, codec, utterance, timing
        self._chunk_frames = chunk_frames
        self._stopping = StoppingCriteria(engine.spec.codebooks, utterance.max_frames)
        self._codes: list[I64Array] = []
        self.ended = "eos"
        """"eos", "cap", "loop", "silence", or "empty" if there was no frame at all."""

    @property
    def codes(self) -> I64Array:
        """The frames, [frames, codebooks]."""
        return np.array(self._codes, np.int64).reshape(-1, self._engine.spec.codebooks)

    @property
    def good_frames(self) -> int:
        """How many of them are worth keeping: those before a loop or a silence without end."""
        return self._stopping.good_frames

    def __iter__(self) -> Iterator[Samples]:
        waiting: list[I64Array] = []
        with (
            FrameLoop(self._engine, [self._utterance]) as loop,
            CodecThread(self._codec) as thread,
            thread.stream() as decoding,
        ):

            def submit() -> None:
                decoding.submit(decoding.playable(np.stack(waiting)))
                waiting.clear()

            for step in loop:
                self._count(step.times.backbone_s, step.times.depth_s, step.times.host_s)
                if 0 in step.codes:
                    self._codes.append(step.codes[0])
                    waiting.append(step.codes[0])
                    if self._stopping.observe(step.codes[0]):
                        loop.stop(0)
                if len(waiting) == self._chunk_frames or (waiting and len(self._codes) == 1):
                    submit()
                is_first = len(self._codes) == 1 and decoding.pending
                if is_first or decoding.pending > _MOST_PENDING:
                    yield self._heard(decoding.wait_one(), loop)
                for samples in decoding.poll():
                    yield self._heard(samples, loop)
            if waiting:
                submit()
            for samples in decoding.finish():
                yield self._heard(samples, loop)
        if not self._codes:
            self.ended = "empty"
        elif self._stopping.verdict is not None:
            self.ended = self._stopping.verdict.value

    def _heard(self, samples: Samples, loop: FrameLoop) -> Samples:
        if self._stopping.hear(samples):
            loop.stop(0)
        return samples

    def _count(self, backbone_s: float, depth_s: float, host_s: float) -> None:
        timing = self._timing
        if self._codes:
            timing.backbone_s += backbone_s
        else:
            timing.prefill_s += backbone_s
        timing.depth_s += depth_s
        timing.host_s += host_s
        timing.frames += 1
