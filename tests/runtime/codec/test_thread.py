"""Decoding beside the producers: order, company, fairness, exceptions that travel, and nothing that stays."""

import gc
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.codec import thread as thread_module
from miso_gguf.runtime.codec.thread import CodecThread, Decoding

Codes = NDArray[np.int64]
Samples = NDArray[np.float32]

PATIENCE_S = 20.0
MANY = 1000
"""Calls: more than any test makes."""


def frames(*values: int) -> Codes:
    return np.repeat(np.array(values)[:, None], 3, axis=1)


class Playable:
    """A stream of `Echo`."""

    def playable(self, codes: Codes) -> Codes:
        return np.minimum(codes, 999)


class Echo:
    """A codec whose samples are the codes: two samples a frame. Waits where it is told to."""

    def __init__(self, fails_at: int | None = None, holds: bool = False, fails_together: bool = False) -> None:
        self.fails_at = fails_at
        self.fails_together = fails_together
        self.may_go_on = threading.Semaphore(0 if holds else MANY)
        self.begun = threading.Semaphore(0)
        self.threads: set[str] = set()
        self.calls: list[list[list[int]]] = []
        self.streams: list[weakref.ref[Playable]] = []

    def stream(self) -> Playable:
        stream = Playable()
        self.streams.append(weakref.ref(stream))
        return stream

    def decode_together(self, streams: Sequence[Playable], codes: Sequence[Codes]) -> list[Samples]:
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


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def held() -> Echo:
    """Begins each call, and ends it when it is let."""
    return Echo(holds=True)


def begin(echo: Echo, thread: CodecThread) -> Decoding:
    """An utterance whose one frame, 0, is being decoded: what is submitted next has to wait."""
    first = thread.stream()
    first.submit(frames(0))
    assert echo.begun.acquire(timeout=PATIENCE_S)
    return first


def let_go(echo: Echo) -> None:
    echo.may_go_on.release(MANY)


def collect(decoding: Decoding) -> list[list[float]]:
    return [chunk.tolist()[::2] for chunk in decoding.finish()]


def test_chunks_come_in_order_and_one_per_submission(echo: Echo) -> None:
    with CodecThread(echo) as thread, thread.stream() as decoding:
        chunks = []
        for value in range(200):
            decoding.submit(frames(value))
            chunks += decoding.poll()
        chunks += decoding.finish()
        assert decoding.pending == 0
    assert [chunk.tolist() for chunk in chunks] == [[value, value] for value in range(200)]
    assert echo.calls == [[[value]] for value in range(200)]
    assert echo.threads == {"miso-codec"}


def test_one_submission_of_several_frames_is_one_chunk(echo: Echo) -> None:
    with CodecThread(echo) as thread, thread.stream() as decoding:
        decoding.submit(frames(1, 2))
        decoding.submit(frames(3)[0])
        assert collect(decoding) == [[1, 2], [3]]
        decoding.submit(frames(4))
        assert collect(decoding) == [[4]], "finishing is waiting for what there is, and no more"


def test_the_producer_goes_on_while_the_codec_decodes(held: Echo) -> None:
    with CodecThread(held) as thread:
        decoding = begin(held, thread)
        assert decoding.poll() == []
        decoding.submit(frames(2))
        assert decoding.pending == 2
        let_go(held)
        assert collect(decoding) == [[0], [2]]


def test_the_first_chunk_can_be_had_before_the_second_frame(echo: Echo) -> None:
    with CodecThread(echo) as thread, thread.stream() as decoding:
        decoding.submit(frames(7))
        assert decoding.wait_one().tolist() == [7, 7]
        assert decoding.pending == 0
        with pytest.raises(ValueError, match="nothing to wait for"):
            decoding.wait_one()


def test_the_producer_may_reuse_its_array(held: Echo) -> None:
    with CodecThread(held) as thread, thread.stream() as decoding:
        codes = frames(1)
        decoding.submit(codes)
        codes[:] = 2
        let_go(held)
        assert decoding.wait_one().tolist() == [1, 1]


def test_playable_is_the_streams(echo: Echo) -> None:
    with CodecThread(echo) as thread:
        assert thread.stream().playable(frames(7, 2000)).tolist() == frames(7, 999).tolist()


def test_those_who_wait_are_decoded_together(held: Echo) -> None:
    with CodecThread(held) as thread:
        everyone = [begin(held, thread), *(thread.stream() for _ in range(3))]
        for value in (1, 2):
            for number, decoding in enumerate(everyone):
                decoding.submit(frames(10 * number + value))
        let_go(held)
        assert [collect(each) for each in everyone] == [[[0], [1], [2]], [[11], [12]], [[21], [22]], [[31], [32]]]
    assert held.calls == [[[0]], [[1], [11], [21], [31]], [[2], [12], [22], [32]]]


def test_pieces_of_other_lengths_wait_for_their_turn_and_the_oldest_goes_first(held: Echo) -> None:
    with CodecThread(held) as thread:
        begun, one, two, three = begin(held, thread), thread.stream(), thread.stream(), thread.stream()
        one.submit(frames(11, 12))
        two.submit(frames(21))
        one.submit(frames(13))
        three.submit(frames(31, 32))
        two.submit(frames(22, 23))
        let_go(held)
        expected = [[[0]], [[11, 12], [13]], [[21], [22, 23]], [[31, 32]]]
        assert [collect(each) for each in (begun, one, two, three)] == expected
    assert held.calls == [[[0]], [[11, 12], [31, 32]], [[21], [13]], [[22, 23]]]


@pytest.mark.parametrize(("length", "rows"), [(1, 16), (2, 8), (5, 3), (9, 1), (40, 1)])
def test_a_call_is_bounded_and_no_piece_is_cut(length: int, rows: int, held: Echo) -> None:
    with CodecThread(held) as thread:
        everyone = [begin(held, thread), *(thread.stream() for _ in range(18))]
        for decoding in everyone[1:]:
            decoding.submit(frames(*range(1, length + 1)))
        let_go(held)
        for decoding in everyone:
            collect(decoding)
    assert max(map(len, held.calls)) == rows
    assert {len(codes) for call in held.calls[1:] for codes in call} == {length}


@settings(max_examples=examples(15), deadline=None)
@given(data=st.data())
def test_everyone_gets_their_own_in_order_whatever_the_company(data: st.DataObject) -> None:
    lengths = st.lists(st.integers(1, 3), max_size=12)
    submissions = data.draw(st.lists(lengths, min_size=1, max_size=6))
    echo = Echo()

    def speak(number: int) -> bool:
        with thread.stream() as decoding:
            chunks, expected = [], []
            for index, length in enumerate(submissions[number]):
                expected.append([1000 * number + index] * length)
                decoding.submit(frames(*expected[-1]))
                if decoding.pending > 3:
                    chunks.append(decoding.wait_one().tolist()[::2])
                chunks += [chunk.tolist()[::2] for chunk in decoding.poll()]
            return chunks + collect(decoding) == expected

    with CodecThread(echo) as thread, ThreadPoolExecutor(6) as pool:
        assert all(pool.map(speak, range(len(submissions))))


def test_any_thread_may_submit_and_collect(echo: Echo) -> None:
    with CodecThread(echo) as thread, thread.stream() as decoding, ThreadPoolExecutor(2) as pool:
        for value in range(5):
            pool.submit(decoding.submit, frames(value)).result()
            assert pool.submit(decoding.wait_one).result().tolist() == [value, value]


def test_a_slow_reader_holds_back_only_itself(echo: Echo) -> None:
    with CodecThread(echo) as thread, thread.stream() as slow, thread.stream() as quick:
        for value in range(20):
            slow.submit(frames(value))
        for value in range(20):
            quick.submit(frames(value))
            assert quick.wait_one().tolist() == [value, value]
        assert slow.pending == 20
        assert collect(slow) == [[value] for value in range(20)]


def test_an_exception_reaches_its_owner_after_the_chunks_before_it() -> None:
    echo = Echo(fails_at=2)
    with CodecThread(echo) as thread, thread.stream() as decoding:
        collected = []
        for value in range(4):
            decoding.submit(frames(value))
        with pytest.raises(FloatingPointError, match="frame 2"):  # noqa: PT012
            for chunk in decoding.finish():
                collected.append(chunk.tolist())
        assert collected == [[0, 0], [1, 1]]
    assert [[3]] not in echo.calls, "what was submitted behind it is not decoded"


def test_an_exception_is_not_raised_before_the_chunks_are_collected() -> None:
    echo = Echo(fails_at=1)
    with CodecThread(echo) as thread, thread.stream() as decoding, thread.stream() as other:
        decoding.submit(frames(0))
        decoding.submit(frames(1))
        other.submit(frames(5))
        other.wait_one()
        other.submit(frames(6))
        other.wait_one()
        decoding.submit(frames(2))
        assert [chunk.tolist() for chunk in decoding.poll()] == [[0, 0]]
        with pytest.raises(FloatingPointError):
            decoding.poll()


@pytest.mark.parametrize("call", ["submit", "poll", "wait_one", "finish"])
def test_every_call_after_a_failure_raises_it(call: str) -> None:
    with CodecThread(Echo(fails_at=0)) as thread, thread.stream() as decoding:
        decoding.submit(frames(0))
        with pytest.raises(FloatingPointError):
            decoding.wait_one()
        with pytest.raises(FloatingPointError):
            decoding.submit(frames(1)) if call == "submit" else list(getattr(decoding, call)() or ())


@pytest.mark.parametrize("together", [False, True])
def test_a_failure_in_company_hits_only_whom_it_belongs_to(together: bool) -> None:
    echo = Echo(fails_at=21, holds=True, fails_together=together)
    with CodecThread(echo) as thread:
        everyone = [begin(echo, thread), *(thread.stream() for _ in range(3))]
        for value in (1, 2):
            for number, decoding in enumerate(everyone):
                decoding.submit(frames(10 * number + value))
        let_go(echo)
        for number in (0, 1, 3):
            assert collect(everyone[number])[-2:] == [[10 * number + 1], [10 * number + 2]]
        with pytest.raises(FloatingPointError, match="frame 21"):
            collect(everyone[2])


def test_what_cannot_be_stacked_is_its_owners_error(codec: object) -> None:
    with CodecThread(codec) as thread:  # type: ignore[arg-type]
        good = thread.stream()
        codes = np.ones((1, 8), np.int64)
        for _ in range(3):
            good.submit(codes)
        wrong_ones: list[NDArray[Any]] = [codes[:, :3], codes.astype(np.float32), codes - 2]
        for wrong in wrong_ones:
            bad = thread.stream()
            good.submit(codes)
            bad.submit(wrong)
            with pytest.raises(ValueError, match=r"codes must be integers|code -1 of codebook 0"):
                bad.wait_one()
        assert len(collect(good)) == 6


def test_closing_drops_what_is_left_and_waits_for_nothing(held: Echo) -> None:
    with CodecThread(held) as thread:
        decoding, other = begin(held, thread), thread.stream()
        for value in range(1, 50):
            decoding.submit(frames(value))
        other.submit(frames(100))
        decoding.close()
        decoding.close()
        assert decoding.pending == 0
        for call in (
            decoding.poll,
            decoding.wait_one,
            lambda: list(decoding.finish()),
            lambda: decoding.submit(frames(1)),
        ):
            with pytest.raises(MisoError, match="this utterance was closed"):
                call()
        let_go(held)
        assert collect(other) == [[100]]
        with pytest.raises(MisoError):
            decoding.poll()
    assert held.calls == [[[0]], [[100]]], "only the call under way went on"


def test_closing_drops_what_is_done_too(echo: Echo) -> None:
    with CodecThread(echo) as thread, thread.stream() as decoding, thread.stream() as other:
        decoding.submit(frames(1))
        other.submit(frames(2))
        other.wait_one()
        decoding.close()
        for call in (decoding.poll, decoding.wait_one):
            with pytest.raises(MisoError, match="this utterance was closed"):
                call()


def waiting(call: Callable[[], object], thread: CodecThread) -> tuple[threading.Thread, list[str]]:
    """A thread that waits in `call`, and what it was told."""
    told: list[str] = []

    def wait() -> None:
        try:
            call()
        except MisoError as error:
            told.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not thread._delivered._waiters:  # type: ignore[attr-defined]
        threading.Event().wait(0.001)
    return waiter, told


def test_closing_wakes_who_waits(held: Echo) -> None:
    with CodecThread(held) as thread:
        decoding = begin(held, thread)
        waiter, told = waiting(decoding.wait_one, thread)
        decoding.close()
        waiter.join(PATIENCE_S)
        assert told == ["this utterance was closed: nothing more of it is decoded"]
        let_go(held)


def test_closing_the_codecs_thread_ends_everyone(held: Echo) -> None:
    thread = CodecThread(held)
    decoding, idle = begin(held, thread), thread.stream()
    decoding.submit(frames(1))
    waiter, told = waiting(lambda: list(decoding.finish()), thread)
    closing = threading.Thread(target=thread.close)
    closing.start()
    waiter.join(PATIENCE_S)
    assert told == ["the codec is closed: open it again"], "before the call under way is done"
    let_go(held)
    closing.join(PATIENCE_S)
    thread.close()
    assert held.calls == [[[0]]]
    for each in (decoding, idle):
        for call in (each.poll, each.wait_one, lambda each=each: each.submit(frames(1))):
            with pytest.raises(MisoError, match="the codec is closed"):
                call()
        each.close()
    with pytest.raises(MisoError, match="the codec is closed"):
        thread.stream()


def test_a_thread_that_was_never_needed_is_none(echo: Echo) -> None:
    before = threading.active_count()
    with CodecThread(echo) as thread, thread.stream() as decoding:
        assert decoding.poll() == []
        assert list(decoding.finish()) == []
        assert threading.active_count() == before


def test_a_thread_without_work_ends_and_begins_again(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_module, "_IDLE_S", 0.01)
    thread = CodecThread(echo)
    decoding = thread.stream()
    for value in range(3):
        decoding.submit(frames(value))
        worker = thread._thread
        assert decoding.wait_one().tolist() == [value, value]
        if worker is not None:
            worker.join(PATIENCE_S)
            assert not worker.is_alive()
    gone = weakref.ref(thread)
    del thread, decoding
    assert gone() is None, "nothing keeps what was not closed"


def test_a_thread_that_cannot_start_is_told_and_tried_again(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    with CodecThread(echo) as thread, thread.stream() as decoding:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                decoding.submit(frames(1))
        assert decoding.pending == 0
        decoding.submit(frames(2))
        assert collect(decoding) == [[2]]


def test_a_dropped_utterance_is_gone_at_once_and_not_decoded(held: Echo) -> None:
    with CodecThread(held) as thread:
        first, dropped, last = begin(held, thread), thread.stream(), thread.stream()
        for value in range(5):
            dropped.submit(frames(10 + value))
        last.submit(frames(20))
        gc.disable()
        try:
            del dropped
            assert held.streams[1]() is None
            let_go(held)
            assert collect(last) == [[20]]
            assert collect(first) == [[0]]
            del first
            last.submit(frames(21))
            assert collect(last) == [[21]]
            assert held.streams[0]() is None
            del last
            worker = thread._thread
            while worker is not None and held.streams[2]() is not None and worker.is_alive():
                worker.join(0.001)
            assert held.streams[2]() is None, "nor does the thread keep who was decoded last"
        finally:
            gc.enable()
    assert held.calls == [[[0]], [[20]], [[21]]]


def test_the_collector_may_close_an_utterance_within_a_call(echo: Echo) -> None:
    with CodecThread(echo) as thread, thread.stream() as decoding:
        with thread.lock:  # where the collector comes by
            thread.stream().close()
        decoding.submit(frames(1))
        assert collect(decoding) == [[1]]


def test_a_generator_that_is_left_early_ends_its_utterance(echo: Echo) -> None:
    def speak(thread: CodecThread) -> Generator[Samples, None, None]:
        with thread.stream() as decoding:
            for value in range(1000):
                decoding.submit(frames(value))
                yield decoding.wait_one()

    with CodecThread(echo) as thread:
        speaking = speak(thread)
        assert next(speaking).tolist() == [0, 0]
        speaking.close()
        assert echo.streams[0]() is None


def test_the_producers_exception_closes_too(echo: Echo) -> None:
    with pytest.raises(KeyboardInterrupt), CodecThread(echo) as thread, thread.stream() as decoding:  # noqa: PT012
        decoding.submit(frames(1))
        raise KeyboardInterrupt
