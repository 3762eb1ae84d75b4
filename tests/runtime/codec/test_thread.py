"""Decoding beside the models: company, order, fairness, errors that find their owner, and nothing that stays."""

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from elsewhere import PATIENCE_S, soon
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from python_calls import python_calls

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.codec import thread as thread_module
from miso_gguf.runtime.codec.thread import CodecThread

Codes = NDArray[np.int64]
Samples = NDArray[np.float32]

MANY = 1000
"""Calls: more than any test makes."""


def frames(*values: int) -> Codes:
    return np.repeat(np.array(values)[:, None], 3, axis=1)


class Stream:
    """Of `Echo`."""


class Echo:
    """A codec whose samples are the codes: two samples a frame. Waits where it is told to."""

    def __init__(self, fails_at: int | None = None, holds: bool = False, fails_together: bool = False) -> None:
        self.fails_at, self.fails_together = fails_at, fails_together
        self.may_go_on = threading.Semaphore(0 if holds else MANY)
        self.begun = threading.Semaphore(0)
        self.threads: set[str] = set()
        self.calls: list[list[list[int]]] = []

    def decode_together(self, streams: Sequence[Stream], codes: Sequence[Codes]) -> list[Samples]:
        self.begun.release()
        assert self.may_go_on.acquire(timeout=PATIENCE_S)
        assert len(set(streams)) == len(streams) == len(codes)
        assert len({len(each) for each in codes}) == 1
        self.threads.add(threading.current_thread().name)
        self.calls.append([each[:, 0].tolist() for each in codes])
        if any((each == self.fails_at).any() for each in codes):
            raise FloatingPointError(f"frame {self.fails_at}")
        if self.fails_together and len(streams) > 1:
            raise MemoryError
        return [np.repeat(each[:, 0], 2).astype(np.float32) for each in codes]


class Callers:
    """Threads that ask, one for each call, in the order in which they were begun."""

    def __init__(self, thread: CodecThread, echo: Echo) -> None:
        self._thread, self._echo = thread, echo
        self._pool = ThreadPoolExecutor(16)

    def __enter__(self) -> "Callers":
        return self

    def __exit__(self, *_: object) -> None:
        self._echo.may_go_on.release(MANY)
        self._pool.shutdown()

    def ask(self, stream: Stream, codes: Codes) -> "Future[Samples]":
        waiting = len(self._thread._waiting)
        future = self._pool.submit(self._thread.decode, stream, codes)
        assert soon(lambda: len(self._thread._waiting) > waiting or future.done())
        return future

    def hold(self) -> "Future[Samples]":
        """A call that is under way until it is let go: what is asked next has to wait."""
        future = self._pool.submit(self._thread.decode, Stream(), frames(0))
        assert self._echo.begun.acquire(timeout=PATIENCE_S)
        return future


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def heard(samples: Samples) -> list[float]:
    return [float(value) for value in samples[::2]]


def test_one_stream_is_decoded_in_order_beside_its_caller() -> None:
    echo, stream = Echo(), Stream()
    with CodecThread(echo) as thread:
        assert [heard(thread.decode(stream, frames(*each))) for each in ([1], [2, 3], [4])] == [[1], [2, 3], [4]]
    assert echo.calls == [[[1]], [[2, 3]], [[4]]]
    assert echo.threads == {"miso-codec"}


def test_those_who_wait_are_decoded_together() -> None:
    echo = Echo(holds=True)
    with CodecThread(echo) as thread, Callers(thread, echo) as callers:
        callers.hold()
        futures = [callers.ask(Stream(), frames(index)) for index in (1, 2, 3)]
        echo.may_go_on.release(2)
        assert [heard(future.result(PATIENCE_S)) for future in futures] == [[1], [2], [3]]
    assert echo.calls == [[[0]], [[1], [2], [3]]]


def test_other_lengths_wait_for_their_turn_and_the_oldest_goes_first() -> None:
    echo = Echo(holds=True)
    with CodecThread(echo) as thread, Callers(thread, echo) as callers:
        callers.hold()
        asked = [frames(1, 1), frames(2), frames(3, 3), frames(4), frames(5, 5, 5)]
        futures = [callers.ask(Stream(), codes) for codes in asked]
        echo.may_go_on.release(MANY)
        for future, codes in zip(futures, asked, strict=True):
            assert heard(future.result(PATIENCE_S)) == codes[:, 0].tolist()
    assert echo.calls[1:] == [[[1, 1], [3, 3]], [[2], [4]], [[5, 5, 5]]]


@pytest.mark.parametrize(("length", "rows"), [(1, 16), (4, 4), (5, 3), (16, 1), (40, 1)])
def test_a_call_is_bounded_and_no_piece_is_cut(length: int, rows: int) -> None:
    echo = Echo(holds=True)
    with CodecThread(echo) as thread, Callers(thread, echo) as callers:
        callers.hold()
        count = min(rows + 1, 15)
        futures = [callers.ask(Stream(), frames(*[index] * length)) for index in range(1, count + 1)]
        echo.may_go_on.release(MANY)
        assert [heard(future.result(PATIENCE_S)) for future in futures] == [[n] * length for n in range(1, count + 1)]
    assert [len(call) for call in echo.calls[1:]] == ([rows, count - rows] if count > rows else [count])


def test_two_pieces_of_a_stream_are_never_in_one_call() -> None:
    echo, stream = Echo(holds=True), Stream()
    with CodecThread(echo) as thread, Callers(thread, echo) as callers:
        callers.hold()
        futures = [callers.ask(which, frames(n)) for n, which in enumerate((stream, stream, Stream()), 1)]
        echo.may_go_on.release(MANY)
        assert [heard(future.result(PATIENCE_S)) for future in futures] == [[1], [2], [3]]
    assert echo.calls[1:] == [[[1], [3]], [[2]]]


def test_no_piece_overtakes_another_of_its_stream() -> None:
    """Though it has as many frames as what goes first, and the one before it has not."""
    echo, stream = Echo(holds=True), Stream()
    with CodecThread(echo) as thread, Callers(thread, echo) as callers:
        callers.hold()
        asked = [(Stream(), frames(1)), (stream, frames(2, 2)), (stream, frames(3))]
        futures = [callers.ask(*each) for each in asked]
        echo.may_go_on.release(MANY)
        assert [heard(future.result(PATIENCE_S)) for future in futures] == [[1], [2, 2], [3]]
    assert echo.calls[1:] == [[[1]], [[2, 2]], [[3]]]


@settings(max_examples=examples(20), deadline=None)
@given(data=st.data())
def test_everyone_gets_their_own_in_order_whatever_the_company(data: st.DataObject) -> None:
    echo = Echo()
    lengths = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=5))

    def speak(number: int) -> list[float]:
        stream, said, sound = Stream(), number * 100, list[float]()
        for length in lengths[number]:
            sound += heard(thread.decode(stream, frames(*range(said, said + length))))
            said += length
        return sound

    with CodecThread(echo) as thread, ThreadPoolExecutor(len(lengths)) as pool:
        for number, sound in enumerate(pool.map(speak, range(len(lengths)))):
            assert sound == list(range(number * 100, number * 100 + sum(lengths[number])))


@pytest.mark.parametrize("together", [False, True])
def test_a_failure_in_company_hits_only_whom_it_belongs_to(together: bool) -> None:
    echo = Echo(fails_at=2, holds=True, fails_together=together)
    with CodecThread(echo) as thread, Callers(thread, echo) as callers:
        callers.hold()
        futures = [callers.ask(Stream(), frames(n)) for n in (1, 2, 3)]
        echo.may_go_on.release(MANY)
        assert heard(futures[0].result(PATIENCE_S)) == [1]
        with pytest.raises(FloatingPointError, match="frame 2"):
            futures[1].result(PATIENCE_S)
        assert heard(futures[2].result(PATIENCE_S)) == [3]
        assert heard(thread.decode(Stream(), frames(4))) == [4], "the thread goes on"


def test_codes_that_are_none_are_refused_to_their_owner() -> None:
    with CodecThread(Echo()) as thread:
        with pytest.raises(TypeError):
            thread.decode(Stream(), None)  # type: ignore[arg-type]
        assert heard(thread.decode(Stream(), frames(4))) == [4], "the thread goes on"


def test_closing_ends_everyone_and_waits_for_the_call_under_way() -> None:
    echo = Echo(holds=True)
    thread = CodecThread(echo)
    with Callers(thread, echo) as callers:
        under_way = callers.hold()
        waiting = callers.ask(Stream(), frames(1))
        closing = threading.Thread(target=thread.close)
        closing.start()
        for future in (waiting, under_way):
            with pytest.raises(MisoError, match="the codec is closed: open it or load its model again"):
                future.result(PATIENCE_S)
        assert closing.is_alive()
        echo.may_go_on.release(MANY)
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
    thread.close()
    assert echo.calls == [[[0]]]
    with pytest.raises(MisoError, match="the codec is closed"):
        thread.decode(Stream(), frames(1))


def test_who_is_interrupted_wants_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    echo, stream = Echo(holds=True), Stream()
    with CodecThread(echo) as thread, Callers(thread, echo) as callers:
        callers.hold()
        with monkeypatch.context() as patch:

            def interrupted(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(threading.Condition, "wait_for", interrupted)
            with pytest.raises(KeyboardInterrupt):
                thread.decode(stream, frames(1))
        other = callers.ask(Stream(), frames(2))
        echo.may_go_on.release(MANY)
        assert heard(other.result(PATIENCE_S)) == [2]
    assert echo.calls == [[[0]], [[2]]]


def test_no_interrupt_keeps_the_lock() -> None:
    """With Python's own handler of Ctrl-C it may come wherever Python runs: not while a condition takes its lock."""
    with CodecThread(Echo()) as thread:
        thread.decode(Stream(), frames(1))
        with python_calls() as called:
            thread.decode(Stream(), frames(1))
    assert CodecThread.decode.__code__ in called
    for method in (threading.Condition.__enter__, threading.Condition.__exit__):
        assert method.__code__ not in called


def test_a_thread_that_was_never_needed_is_none() -> None:
    before = threading.active_count()
    with CodecThread(Echo()):
        assert threading.active_count() == before


def test_a_thread_without_work_ends_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_module, "_IDLE_S", 0.001)
    echo = Echo()
    with CodecThread(echo) as thread:
        for number in range(3):
            assert heard(thread.decode(Stream(), frames(number))) == [number]
            assert soon(lambda: thread._thread is None)


def test_nothing_is_kept_of_what_was_decoded() -> None:
    with CodecThread(Echo()) as thread:
        stream = Stream()
        there = weakref.ref(stream)
        thread.decode(stream, frames(1))
        del stream
        gc.collect()
        assert soon(lambda: there() is None)
