"""The batcher: one thread owns the models, and utterances join and leave the batch that it steps.

It turns: what was cancelled or has ended leaves; one chunk of one waiting prompt is computed; the backbone makes one
step, and the depth decoder one frame, of all that speak; the frames are delivered. So nobody waits longer for a frame
than a chunk and a frame take, however long the prompts of others are. It knows no audio, no voices and no sentences.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np

from ...core.closing import CLOSED, Closing
from ...core.errors import Busy, MisoError
from ...core.process import OwnProcess
from ..options import EngineOptions
from .call import Call
from .noise import FrameNoise
from .prompt import Block
from .protocol import Models, Result
from .ticket import NO_SEQUENCE, Claim, Row, Ticket
from .utterance import Utterance

log = logging.getLogger(__name__)

_T = TypeVar("_T")

BUFFER_FRAMES = 16
"""Frames that may lie untaken, 1.28 s of speech: whoever does not take them is not stepped, and holds up nobody."""
_PATIENCE_S = 10.0
"""How long the waiting wait, at least, when all that could leave are tickets which nobody reads; at most twice that."""

Queue = Literal["limited", "unlimited", "first"]


class Batcher(Closing):
    """Speaks what is admitted, as many together as there are sequences, first come, first served.

    Any thread may admit, take and cancel. `close` ends what is open.
    """

    def __init__(
        self, models: Models, *, waiting: int = EngineOptions.waiting, patience_s: float = _PATIENCE_S
    ) -> None:
        """Its thread is started by the first who wants something.

        Args:
            models: What it owns from now on.
            waiting: How many utterances may wait for a sequence.
            patience_s: How long they do while every sequence is held by a ticket whose frames nobody takes.
        """
        self._models, self._most_waiting, self._patience_s = models, waiting, patience_s
        self._process = OwnProcess()
        # Reentrant: the garbage collector may drop a ticket wherever its thread is.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Claim] = deque()
        self._asked: deque[Call[Any]] = deque()
        self._rows: list[Row] = []
        self._prompt: tuple[Row, Iterator[Result | None]] | None = None
        self._free = set(range(models.sequences))
        self._noise = FrameNoise(models.spec, ahead=models.draws_ahead)
        self._thread: threading.Thread | None = None
        self._closed = False

    def close(self) -> None:
        """End all tickets that are open, and the thread. Waits for the call that it is in. Idempotent."""
        if not self._process.is_here:
            return
        with self._lock:
            self._closed = True
            self._end_all(MisoError("the model was closed while this was being spoken"))
            self._changed.notify_all()
        if self._thread is not None and self._thread.ident is not None and not self.is_own_thread:
            self._thread.join()
            atexit.unregister(self.close)
        self._noise.close()

    @property
    def is_own_thread(self) -> bool:
        """Whether it is the thread that owns the models who asks."""
        return threading.current_thread() is self._thread

    @property
    def running(self) -> int:
        """How many utterances have a sequence."""
        return len(self._seated())

    @property
    def waiting(self) -> int:
        """How many wait for one; who was cancelled meanwhile does not."""
        return sum(claim.ended is None for claim in [*self._waiting])

    def admit(self, utterance: Utterance, *, buffer: int = BUFFER_FRAMES, queue: Queue = "limited") -> Ticket:
        """Have an utterance spoken.

        Args:
            utterance: What, and how.
            buffer: Frames that may lie untaken.
            queue: Where it waits: "limited", if not as many wait as may; "unlimited", if it is one of many that its
                asker knows of; "first", if it goes on with what is being heard.

        Raises:
            ValueError: If its prompt leaves no room for its frames.
            Busy: If as many wait as may, and `queue` is "limited".
            MisoError: If the model is closed, or was loaded before a fork.
        """
        self._process.check()
        room = self._models.spec.max_positions - utterance.rows
        if utterance.max_frames > room:
            raise ValueError(f"max_frames must be 1 to {room} after this prompt, not {utterance.max_frames}")
        if not (isinstance(buffer, int | np.integer) and buffer >= 1):
            raise ValueError(f"buffer must be at least 1 frame, not {buffer}")
        with self._lock:
            self._start()
            if queue == "limited" and not self._may_wait():
                raise Busy(self.waiting)
            row = Row(utterance, buffer, self._lock, self._changed)
            ticket = Ticket(row, self._process)  # first: an interrupt after the next line drops it, and so cancels
            (self._waiting.appendleft if queue == "first" else self._waiting.append)(row)
            self._changed.notify_all()
        return ticket

    @contextmanager
    def lend(self, blocks: Sequence[Block]) -> Iterator[int]:
        """A sequence to compute with by the models' own calls, the best for `blocks`; waits its turn for it.

        Raises `MisoError` if the model is closed, or was loaded before a fork.
        """
        self._process.check()
        loan = Claim(blocks, self._lock, self._changed)
        try:
            with self._lock:
                self._start()
                self._waiting.append(loan)
                self._changed.notify_all()
                loan.ready.wait_for(lambda: loan.sequence != NO_SEQUENCE or loan.ended)
            if loan.error is not None:
                raise loan.error
            yield loan.sequence
        finally:
            if self._process.is_here:
                with self._lock:
                    loan.end("cancelled")
                    self._give_back(loan)

    def run(self, call: Callable[[], _T]) -> _T:
        """What `call` gives, made by the thread that owns the models, between two of its turns.

        OpenMP keeps a team for every thread that computes. With more of them than cores, its barriers sleep instead of
        spinning, and a frame takes 1.5 to 5 times as long: so all computing is that one thread's.

        Raises what it raises; `MisoError` if the model is closed, or was loaded before a fork.
        """
        self._process.check()
        if self.is_own_thread:
            return call()
        asked = Call(call)
        try:
            with self._lock:
                self._start()
                self._asked.append(asked)
                self._changed.notify_all()
            return asked.result()
        finally:
            asked.cancel()  # if it has not begun: whoever was interrupted wants it no more

    def _may_wait(self) -> bool:
        # Who has ended holds a sequence until the next turn, for nobody.
        leaving = sum(row.ended is not None for row in self._seated())
        return self.waiting < self._most_waiting + len(self._free) + leaving

    def _seated(self) -> list[Row]:
        """Who has a sequence."""
        return self._rows if self._prompt is None else [*self._rows, self._prompt[0]]

    def check(self) -> None:
        """Raise `MisoError` if the model is closed, or was loaded before a fork."""
        self._process.check()
        if self._closed:
            raise MisoError(CLOSED)

    def _start(self) -> None:
        """Under the lock. Errors as `check`."""
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="miso-batcher", daemon=True)
            atexit.register(self.close)  # the interpreter must not end under a thread that computes
        if self._thread.ident is None:  # nor was it started before: the system may have had no room
            self._thread.start()

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.exception("the batcher's thread failed")
            with self._lock:
                self._closed = True
                self._end_all(error)

    def _turn(self) -> bool:
        """One turn; waits until there is something to do. False when closed."""
        with self._lock:
            if not self._changed.wait_for(self._has_work, self._patience_s):
                self._fail_waiting()
            if self._closed:
                return False
            self._reap()
            self._seat()
            asked = self._asked.popleft() if self._asked else None
            # Rows that ascend without a gap are one pass over the weights: see `Backbone.step`.
            going = sorted((row for row in self._rows if row.has_room), key=lambda row: row.sequence)
        if asked is not None:
            asked.make()
        ready = [*self._prefill(), *self._step(going)]
        if ready:
            self._frame(ready)
        return True

    def _has_work(self) -> bool:
        if self._closed or self._asked or self._prompt is not None or (self._waiting and self._free):
            return True
        return any(row.ended or row.has_room for row in self._rows) or any(claim.ended for claim in self._waiting)

    def _fail_waiting(self) -> None:
        """Nothing was to be done for so long. If that is because nobody reads, whoever waits would do so for ever."""
        held = self._models.sequences
        if len(self._rows) < held:
            return
        overdue = time.perf_counter() - self._patience_s
        for claim in self._waiting:
            if claim.begin < overdue:
                claim.fail(
                    MisoError(
                        f"for {self._patience_s:g} s nobody has read what is open, and it holds all sequences "
                        f"({held}): finish or close those streams, or load with sequences={held + 1}"
                    )
                )

    def _reap(self) -> None:
        """Take out what was cancelled or has ended."""
        self._waiting = deque(claim for claim in self._waiting if claim.ended is None)
        for row in self._seated():
            if row.ended:
                self._give_back(row)
        if self._prompt is not None and self._prompt[0].ended:
            self._prompt = None
        self._rows = [row for row in self._rows if not row.ended]

    def _give_back(self, claim: Claim) -> None:
        if claim.sequence != NO_SEQUENCE:
            self._free.add(claim.sequence)
            claim.sequence = NO_SEQUENCE
            self._changed.notify_all()

    def _seat(self) -> None:
        """Give sequences to those who came first."""
        while self._waiting and self._free and self._prompt is None:
            claim = self._waiting.popleft()
            try:
                best = max(sorted(self._free), key=lambda free: self._models.shared(free, claim.blocks))
            except Exception as error:  # whatever it is, it is for whoever asked
                claim.fail(error)
                continue
            self._free.remove(best)
            claim.sequence = best
            if isinstance(claim, Row):
                claim.times.waited_s = time.perf_counter() - claim.begin
                self._prompt = claim, self._models.prefill_chunks(best, claim.blocks)
            claim.ready.notify_all()
            self._changed.notify_all()
        for claim in self._waiting:
            if isinstance(claim, Row):
                claim.times.turns_waited += 1

    def _prefill(self) -> list[tuple[Row, Result]]:
        """One chunk of the prompt that is being read; with its last one, the row."""
        if self._prompt is None:
            return []
        row, chunks = self._prompt
        begin = time.perf_counter()
        try:
            result = next(chunks)
        except Exception as error:  # whatever it is, it is for whoever asked
            row.fail(error)
            return []
        row.times.prefill_s += time.perf_counter() - begin
        if result is None:
            return []
        with self._lock:
            self._prompt = None
            self._rows.append(row)
        return [(row, result)]

    def _step(self, rows: Sequence[Row]) -> list[tuple[Row, Result]]:
        """One step of the backbone: each row reads its last frame."""
        if not rows:
            return []
        begin = time.perf_counter()
        try:
            hidden, logits = self._models.step([row.sequence for row in rows], [row.codes for row in rows])
        except Exception as error:
            for row in rows:
                row.fail(error)
            return []
        for row in rows:
            row.times.backbone_s += time.perf_counter() - begin
        return [(row, (hidden[i : i + 1], logits[i : i + 1])) for i, row in enumerate(rows)]

    def _frame(self, ready: Sequence[tuple[Row, Result]]) -> None:
        """One frame of the depth decoder for all rows that have a result of the backbone, and its delivery."""
        sound = [(row, result) for row, result in ready if row.ended is None and row.accepts(result)]
        if not sound:
            return
        rows = [row for row, _ in sound]
        hidden, logits = (np.concatenate(arrays) for arrays in zip(*(result for _, result in sound), strict=True))
        begin = time.perf_counter()
        try:
            noise = self._noise.draw([row.utterance for row in rows], [row.frames for row in rows])
            drawn = time.perf_counter()
            codes = self._models.sample(hidden, logits, noise, [row.utterance.top_k for row in rows])
        except Exception as error:
            for row in rows:
                row.fail(error)
            return
        end = time.perf_counter()
        with self._lock:
            for row, frame in zip(rows, codes, strict=True):
                row.times.host_s += drawn - begin
                row.times.depth_s += end - drawn
                row.deliver(frame, end)

    def _end_all(self, error: BaseException) -> None:
        for claim in [*self._waiting, *self._seated()]:
            claim.fail(error)
        while self._asked:
            self._asked.popleft().refuse(error)
        for row in self._rows:
            # Frames that were computed before an error are heard before it; but a model that is closed says no more.
            if row.error is error:
                row.untaken.clear()
