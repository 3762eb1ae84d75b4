"""A ticket: what whoever admitted an utterance holds of it. It gives frames, and can be cancelled, from any thread.

It knows no models: the batcher fills it.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.arrays import I64Array
from ...core.closing import Closing
from ...core.errors import MisoError
from ...core.process import OwnProcess
from .prompt import Block
from .protocol import Result
from .utterance import Utterance

NO_SEQUENCE = -1


@dataclass
class TicketTimes:
    """Where the time of an utterance went, in seconds. A step that several share counts for each of them."""

    waited_s: float = 0.0
    """From its admission until it got a sequence."""
    first_frame_s: float = 0.0
    """From its admission until its first frame was there."""
    prefill_s: float = 0.0
    backbone_s: float = 0.0
    depth_s: float = 0.0
    host_s: float = 0.0
    """Drawing noise."""
    frames: int = 0
    """Computed, the EOS frame among them."""
    turns_waited: int = 0
    """Turns that the batcher made before it got a sequence."""


class Claim:
    """A claim to a sequence: it waits, holds one, has ended. Changed only under the batcher's lock."""

    def __init__(self, blocks: Sequence[Block], lock: threading.RLock, changed: threading.Condition) -> None:
        """`changed` tells the batcher, and is a condition on `lock`."""
        self.blocks, self.begin = blocks, time.perf_counter()
        self.sequence = NO_SEQUENCE
        self.ended: str | None = None
        self.error: BaseException | None = None
        self.lock, self.changed = lock, changed
        self.ready = threading.Condition(lock)

    def end(self, how: str) -> None:
        """It ends thus, unless it has ended before."""
        with self.lock:
            if self.ended is None:
                self.ended = how
                self.ready.notify_all()
                self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """It ends by an error, which whoever waits for it gets; unless it has ended before."""
        with self.lock:
            if self.ended is None:
                self.error = error
                self.end("error")


class Row(Claim):
    """An utterance's: what its ticket and the batcher share."""

    def __init__(self, utterance: Utterance, buffer: int, lock: threading.RLock, changed: threading.Condition) -> None:
        """At most `buffer` frames lie untaken."""
        super().__init__(utterance.blocks, lock, changed)
        self.utterance, self.buffer = utterance, buffer
        self.untaken: deque[I64Array] = deque()
        self.times = TicketTimes()
        self.frames = 0
        """Of speech, delivered so far."""
        self.codes = np.zeros(0, np.int64)
        """The last of them, which the backbone reads next."""

    @property
    def has_room(self) -> bool:
        """Whether its next frame may be computed."""
        return len(self.untaken) < self.buffer

    def accepts(self, result: Result) -> bool:
        """Whether the backbone's result of this row is numbers. If not, it ends: no later frame would be right."""
        if all(np.isfinite(array).all() for array in result):
            return True
        self.fail(
            MisoError(
                f"frame {self.frames}: the backbone gave what is no number (NaN or infinity). `miso-convert verify` "
                "says whether the bundle is damaged; if not, this device computes wrongly: try it without GPU"
            )
        )
        return False

    def deliver(self, codes: I64Array, now: float) -> None:
        """Its next frame, computed at `now`; zeros are the EOS frame."""
        self.times.frames += 1
        if self.ended is not None:
            return
        if not codes.any():
            self.end("eos")
            return
        if not self.frames:
            self.times.first_frame_s = now - self.begin
        self.frames += 1
        self.codes = codes
        self.untaken.append(codes)
        self.ready.notify_all()
        if self.frames == self.utterance.max_frames:
            self.end("cap")

    def cancel(self) -> None:
        """Compute no further frame; what was not taken is dropped."""
        with self.lock:
            self.untaken.clear()
            self.end("cancelled")

    def take(self) -> I64Array | None:
        """The next frame; waits for it. None at the end. Raises what ended it, after the frames before."""
        with self.lock:
            self.ready.wait_for(lambda: self.untaken or self.ended)
            if not self.untaken:
                if self.error is not None:
                    raise self.error
                return None
            if not self.has_room:
                self.changed.notify_all()
            return self.untaken.popleft()


class Ticket(Closing):
    """An utterance that was admitted: iterate for the codes [codebooks] of its frames; `close` cancels it.

    Any thread may iterate and any may cancel. One that is dropped is cancelled.
    """

    def __init__(self, row: Row, process: OwnProcess) -> None:
        self._row, self._process = row, process
        # The batcher keeps the row, not this. Without this a forgotten one would hold its sequence for ever.
        # It knows the row weakly: an error that was raised remembers this ticket, and the row the error.
        self._dropped = weakref.finalize(self, _cancel, weakref.ref(row), process)
        self._dropped.atexit = False

    def __iter__(self) -> "Ticket":
        return self

    def __next__(self) -> I64Array:
        """The codes of the next frame, int64 [codebooks]; waits for it.

        Raises what ended it before its time: `MisoError` if the model was closed, or gave what is no number.
        """
        self._process.check()
        codes = self._row.take()
        if codes is None:
            raise StopIteration
        return codes

    def cancel(self) -> None:
        """Compute no further frame, from the next on; what was not taken is dropped. Never waits; idempotent."""
        _cancel(weakref.ref(self._row), self._process)
        self._dropped.detach()  # an interrupt while it is dropped would be lost

    def close(self) -> None:
        """`cancel`."""
        self.cancel()

    @property
    def ended(self) -> str | None:
        """None while it goes on, then "eos", "cap", "cancelled" or "error"."""
        return self._row.ended

    @property
    def times(self) -> TicketTimes:
        """Where its time went, so far."""
        return self._row.times


def _cancel(row: "weakref.ref[Row]", process: OwnProcess) -> None:
    # After a fork nobody may be there to release the lock.
    if process.is_here and (here := row()) is not None:
        here.cancel()
