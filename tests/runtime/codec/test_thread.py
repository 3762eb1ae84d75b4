"""Decoding beside the producer: order, overlap, exceptions that travel, and no thread that stays."""

import threading
from collections.abc import Generator, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from miso_gguf.runtime.codec.thread import DecodeThread

Codes = NDArray[np.int64]
Samples = NDArray[np.float32]

PATIENCE_S = 20.0


def frame(value: int) -> Codes:
    return np.full((1, 3), value)


class Echo:
    """A codec whose samples are the codes: two samples a frame. Waits where it is told to."""

    def __init__(self, fails_at: int | None = None, holds: bool = False) -> None:
        self.fails_at = fails_at
        self.may_go_on = threading.Semaphore(0 if holds else 10**6)
        self.begun = threading.Semaphore(0)
        self.threads: set[str] = set()
        self.seen: list[int] = []

    def decode(self, codes: Codes) -> Samples:
        self.begun.release()
        assert self.may_go_on.acquire(timeout=PATIENCE_S)
        self.threads.add(threading.current_thread().name)
        self.seen.append(int(codes[0, 0]))
        if codes[0, 0] == self.fails_at:
            raise FloatingPointError(f"frame {self.fails_at}")
        return np.repeat(codes[:, 0], 2).astype(np.float32)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def test_chunks_come_in_order_and_one_per_submission() -> None:
    with DecodeThread(Echo()) as decoding:
        chunks = []
        for value in range(200):
            decoding.submit(frame(value))
            chunks += decoding.poll()
        chunks += decoding.finish()
        assert decoding.pending == 0
    assert [chunk.tolist() for chunk in chunks] == [[value, value] for value in range(200)]


def test_one_submission_of_several_frames_is_one_chunk() -> None:
    with DecodeThread(Echo()) as decoding:
        decoding.submit(np.concatenate([frame(1), frame(2)]))
        decoding.submit(frame(3)[0])
        assert [chunk.tolist() for chunk in decoding.finish()] == [[1, 1, 2, 2], [3, 3]]


def test_the_decoder_runs_on_another_thread_beside_the_producer() -> None:
    echo = Echo(holds=True)
    with DecodeThread(echo) as decoding:
        decoding.submit(frame(1))
        assert echo.begun.acquire(timeout=PATIENCE_S), "decoding begins at once"
        assert decoding.poll() == [], "and the producer goes on meanwhile"
        decoding.submit(frame(2))
        assert decoding.pending == 2
        echo.may_go_on.release(2)
        assert len(list(decoding.finish())) == 2
    assert echo.threads == {"miso-codec"}


def test_the_first_chunk_can_be_had_before_the_second_frame() -> None:
    with DecodeThread(Echo()) as decoding:
        decoding.submit(frame(7))
        assert decoding.wait_one().tolist() == [7, 7]
        assert decoding.pending == 0
        with pytest.raises(ValueError, match="nothing to wait for"):
            decoding.wait_one()


def test_the_producer_may_reuse_its_array() -> None:
    echo = Echo(holds=True)
    with DecodeThread(echo) as decoding:
        codes = frame(1)
        decoding.submit(codes)
        codes[:] = 2
        echo.may_go_on.release()
        assert decoding.wait_one().tolist() == [1, 1]


def test_a_decoders_exception_reaches_the_producer_after_the_chunks_before_it() -> None:
    with DecodeThread(Echo(fails_at=2)) as decoding:
        for value in range(4):
            decoding.submit(frame(value))
        collected = []
        with pytest.raises(FloatingPointError, match="frame 2"):  # noqa: PT012
            for chunk in decoding.finish():
                collected.append(chunk.tolist())
        assert collected == [[0, 0], [1, 1]]


@pytest.mark.parametrize("call", ["submit", "poll", "wait_one", "finish"])
def test_every_call_after_a_failure_raises_it(call: str) -> None:
    with DecodeThread(Echo(fails_at=0)) as decoding:
        decoding.submit(frame(0))
        with pytest.raises(FloatingPointError):
            decoding.wait_one()
        with pytest.raises(FloatingPointError):
            decoding.submit(frame(1)) if call == "submit" else list(getattr(decoding, call)() or ())


def test_polling_gives_the_chunks_before_a_failure_first() -> None:
    echo = Echo(fails_at=1)
    with DecodeThread(echo) as decoding:
        decoding.submit(frame(0))
        decoding.submit(frame(1))
        for _ in range(2):
            assert echo.begun.acquire(timeout=PATIENCE_S)
        decoding._thread.join(PATIENCE_S)
        assert [chunk.tolist() for chunk in decoding.poll()] == [[0, 0]]
        with pytest.raises(FloatingPointError):
            decoding.poll()


def test_closing_drops_what_is_left_and_may_be_repeated() -> None:
    echo = Echo(holds=True)
    decoding = DecodeThread(echo)
    for value in range(50):
        decoding.submit(frame(value))
    assert echo.begun.acquire(timeout=PATIENCE_S)
    going_on = threading.Timer(0.05, echo.may_go_on.release, [100])
    going_on.start()
    decoding.close()
    going_on.join()
    decoding.close()
    assert echo.seen == [0], "only the call under way was waited for"
    assert decoding.poll() == []
    assert list(decoding.finish()) == []
    with pytest.raises(ValueError, match="finished"):
        decoding.submit(frame(1))


def test_a_generator_that_is_left_early_leaves_no_thread() -> None:
    def speak() -> Generator[Samples, None, None]:
        with DecodeThread(Echo()) as decoding:
            for value in range(1000):
                decoding.submit(frame(value))
                yield decoding.wait_one()

    speaking = speak()
    assert next(speaking).tolist() == [0, 0]
    assert any(thread.name == "miso-codec" for thread in threading.enumerate())
    speaking.close()


def test_the_producers_exception_closes_too() -> None:
    with pytest.raises(KeyboardInterrupt), DecodeThread(Echo()) as decoding:  # noqa: PT012
        decoding.submit(frame(1))
        raise KeyboardInterrupt
