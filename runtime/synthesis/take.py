"""One try at one utterance: its ticket, the codec beside it, and the stopping criteria over both."""

import threading
from collections.abc import Iterator

import numpy as np

from ...core.arrays import I64Array
from ..audio.samples import Samples, cut_off
from ..codec.codec import Codec
from ..codec.thread import CodecThread
from ..lm.batcher import Queue
from ..lm.engine import Engine
from ..lm.ticket import Ticket
from ..lm.utterance import Utterance
from ..speech import Timing
from .stopping import StoppingCriteria


class Take:
    """Iterate for the sound, chunk by chunk; afterwards the other members say how it went.

    The first chunk is one frame, and what is cut ends at zero. `stop` ends it, from any thread.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        codec_thread: CodecThread,
        utterance: Utterance,
        timing: Timing,
        chunk_frames: int = 1,
        *,
        queue: Queue = "limited",
    ) -> None:
        """`queue`: see `Batcher.admit`; what goes on with a text is "first", which `Busy` must not tear."""
        self._engine, self._codec, self._codec_thread = engine, codec, codec_thread
        self._utterance, self._timing, self._chunk_frames, self._queue = utterance, timing, chunk_frames, queue
        self._stopping = StoppingCriteria(engine.spec.codebooks, utterance.max_frames)
        self._codes: list[I64Array] = []
        self._ticket: Ticket | None = None
        self._stopped = threading.Event()
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

    def stop(self) -> None:
        """Compute no more. From any thread."""
        self._stopped.set()
        if self._ticket is not None:
            self._ticket.cancel()

    def __iter__(self) -> Iterator[Samples]:
        stream, waiting = self._codec.stream(), list[I64Array]()
        self._ticket = ticket = self._engine.batcher.admit(self._utterance, queue=self._queue)
        if self._stopped.is_set():
            ticket.cancel()

        def heard() -> Samples:
            # The models go on meanwhile: the batcher has a thread of its own.
            samples = self._codec_thread.decode(stream, stream.playable(np.stack(waiting)))
            waiting.clear()
            if self._stopping.hear(samples):
                ticket.cancel()
            # With a verdict nothing follows, and a cut would click.
            return samples if self._stopping.verdict is None else cut_off(samples)

        try:
            with ticket:
                for codes in ticket:
                    self._codes.append(codes)
                    waiting.append(codes)
                    if self._stopping.observe(codes):
                        ticket.cancel()
                    if len(waiting) == self._chunk_frames or len(self._codes) == 1:
                        yield heard()
                if waiting:
                    yield heard()
        finally:
            self._count(ticket)
        if not self._codes:
            self.ended = "empty"
        elif self._stopping.verdict is not None:
            self.ended = self._stopping.verdict.value

    def _count(self, ticket: Ticket) -> None:
        timing, times = self._timing, ticket.times
        timing.prefill_s += times.prefill_s
        timing.backbone_s += times.backbone_s
        timing.depth_s += times.depth_s
        timing.host_s += times.host_s
        timing.frames += times.frames
