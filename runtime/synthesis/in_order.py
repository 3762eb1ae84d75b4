"""Several whole speeches at once, given in the order in which they were asked for.

Each is read to its end by a thread of a few, which end when nothing is left to do. It knows plans and streams, and
neither models nor what is done with a speech.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial

from ...core.process import OwnProcess
from ..audio.loudness import normalise
from ..lm.call import Call
from ..speech import Speech
from .plan import SpeechPlan
from .stream import SpeechStream

_WAITING = 1
"""For each speech under way, so many more are planned or done and not taken: behind a long one the others go on."""
_PATIENCE_S = 5.0
"""How long threads that were stopped are waited for. Only who is inside the caller's own text takes longer."""

Begin = Callable[[SpeechPlan], SpeechStream]


def whole(stream: SpeechStream, loudness_lufs: float | None) -> Speech:
    """Read a stream that is not live to its end. Raises what the stream raises."""
    with stream:
        for _ in stream:
            pass
    speech = stream.speech
    if loudness_lufs is not None:
        speech.parts = [normalise(speech.samples, loudness_lufs)]
    return speech


def spoken_in_order(plans: Iterable[SpeechPlan], begin: Begin, at_once: int) -> Generator[Speech, None, None]:
    """The speeches of `plans`, in their order, `at_once` of them under way.

    `plans` are read in the thread that iterates this, a few ahead. The first error, of a speech or of `plans`, comes
    after the speeches before it, and ends the others; as closing this does, or dropping it. So does an interrupt, after
    those that are done.
    """
    crew, process = _Crew(begin, at_once), OwnProcess()
    # An interrupt may come before `finally` has done anything: then this is dropped.
    stop = weakref.finalize(holder := _Holder(), crew.stop)
    stop.atexit = False
    window: deque[Call[Speech]] = deque()
    consumer = threading.get_ident()
    try:
        for call in _asked(plans, crew):
            window.append(call)
            while window and (len(window) > (1 + _WAITING) * at_once or window[0].done()):
                process.check()
                yield _taken(window)
                consumer = threading.get_ident()
        while window:
            process.check()
            yield _taken(window)
            consumer = threading.get_ident()
    except KeyboardInterrupt:
        while window and window[0].done():
            try:
                speech = _taken(window)
            except Exception:
                break
            yield speech
        raise
    finally:
        if process.is_here:
            stop()
            # The garbage collector may close this on a thread that those wait for who are waited for here.
            if threading.get_ident() == consumer:
                crew.wait()
        del holder


def _taken(window: deque[Call[Speech]]) -> Speech:
    """The next one, which stays there while it is waited for: an interrupt then leaves no gap."""
    speech = window[0].result()
    window.popleft()
    return speech


class _Holder:
    """Goes with the generator that has it."""


def _asked(plans: Iterable[SpeechPlan], crew: "_Crew") -> Iterator[Call[Speech]]:
    """An error of `plans` is that of the speech which would have come."""
    try:
        for plan in plans:
            yield crew.ask(plan)
    except Exception as error:
        refused: Call[Speech] = Call(_nothing)
        refused.refuse(error)
        yield refused


def _nothing() -> Speech:
    raise AssertionError("a call that was refused is not made")


class _Crew:
    """Threads that speak what is asked for, first come, first served; who finds nothing to do ends."""

    def __init__(self, begin: Begin, at_once: int) -> None:
        self._begin, self._at_once = begin, at_once
        # Reentrant: the garbage collector may drop a generator wherever its thread is.
        self._lock = threading.RLock()
        self._waiting: deque[Call[Speech]] = deque()
        self._threads: set[threading.Thread] = set()
        self._streams: set[SpeechStream] = set()
        self._stopped = False

    def ask(self, plan: SpeechPlan) -> Call[Speech]:
        """Have it spoken."""
        call = Call(partial(self._speak, plan))
        with self._lock:
            self._waiting.append(call)
            if len(self._threads) < self._at_once:
                thread = threading.Thread(target=self._work, name="miso-in-order", daemon=True)
                self._threads.add(thread)
                thread.start()
        return call

    def stop(self) -> None:
        """Begin nothing more, and let what is under way end. Does not wait."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            streams = [*self._streams]
        for stream in streams:
            stream.stop()

    def wait(self) -> None:
        """Until the threads have ended."""
        end = time.monotonic() + _PATIENCE_S
        for thread in [*self._threads]:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call.make()

    def _next(self) -> Call[Speech] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _speak(self, plan: SpeechPlan) -> Speech:
        stream = self._begin(plan)
        with self._lock:
            self._streams.add(stream)
            if self._stopped:
                stream.stop()
        try:
            return whole(stream, plan.options.loudness_lufs)
        finally:
            with self._lock:
                self._streams.discard(stream)
