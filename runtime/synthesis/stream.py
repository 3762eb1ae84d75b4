"""Sound as it is made: what a listener holds of a text that is being spoken.

It knows threads; what is said, and on what, is `speaker.py`'s.
"""

import threading
from collections.abc import Iterator
from contextlib import suppress

from ...core.closing import Closing
from ...core.process import OwnProcess
from ..codec.codec import Codec
from ..codec.thread import CodecThread
from ..lm.batcher import Queue
from ..lm.engine import Engine
from ..speech import Chunk
from .plan import SpeechPlan
from .speaker import Speaker


class SpeechStream(Closing):
    """Sound as it is made: iterate for chunks; `speech` is the record of it. `close` stops early, as dropping it does.

    Any thread may iterate, one at a time, and any may close: whoever waits for a chunk then gets the end. What was
    heard of the sentence that was being spoken is in `speech`.

    Args:
        live: Chunks leave at once, so nothing that was heard can be taken back; otherwise a sentence leaves when it is
            whole, without what went wrong in it.
        queue: Where it waits for its turn; see `Batcher.admit`.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        codec_thread: CodecThread,
        plan: SpeechPlan,
        *,
        live: bool,
        queue: Queue = "limited",
    ) -> None:
        self._speaker = Speaker(engine, codec, codec_thread, plan, live=live, queue=queue)
        self.speech = self._speaker.speech
        # The generator must not know this object: in a circle, neither would go before the garbage collector comes by.
        self._chunks = self._speaker.speak()
        self._turn, self._process = threading.RLock(), OwnProcess()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._process.check()
        with self._turn:
            return next(self._chunks)

    @property
    def awaits_text(self) -> bool:
        """Whether it waits for whoever writes the text, whom nobody here can hurry."""
        return self._speaker.awaits_text

    def stop(self) -> None:
        """Let whoever iterates get the end, from the next frame on. From any thread; does not wait."""
        if self._process.is_here:
            self._speaker.stop()

    def close(self) -> None:
        """Stop, and free what the stream holds. Idempotent.

        Does not wait for a thread that waits for more of the text: that one stops when it gets it.
        """
        if not self._process.is_here:
            return
        self.stop()
        if self.awaits_text:
            return
        with self._turn, suppress(ValueError):  # a signal's handler may close what its own thread iterates
            self._chunks.close()
