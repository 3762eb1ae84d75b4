"""Signals that ask to end, sent to this process."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from miso_gguf.core import interrupts
from miso_gguf.core.interrupts import interruptible, unasked_children
from miso_gguf.native import messages

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def at_first() -> Iterator[None]:
    """As a process starts, whatever started this one."""
    kept = {number: signal.signal(number, signal.SIG_DFL) for number in ASKING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKING)
def test_each_is_an_interrupt(number: int) -> None:
    before = [signal.getsignal(each) for each in ASKING]
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert [signal.getsignal(each) for each in ASKING] == before


def test_cleaning_up_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    @contextmanager
    def cleaning_up() -> Iterator[None]:
        try:
            yield
        finally:
            for number in ASKING * 3:
                signal.raise_signal(number)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt), interruptible(), cleaning_up():
        signal.raise_signal(signal.SIGTERM)
    assert cleaned
    # But not without end: who waits for long may insist.
    monkeypatch.setattr(interrupts, "_TOGETHER_S", 0.0)
    with pytest.raises(KeyboardInterrupt), interruptible(), cleaning_up():
        signal.raise_signal(signal.SIGTERM)
    assert len(cleaned) == 1


def test_what_is_ignored_or_anothers_stays_so() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda number, _frame: heard.append(number))
    with interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGHUP]


def test_in_another_thread_nothing_changes() -> None:
    handlers: list[Any] = []

    def look() -> None:
        with interruptible():
            handlers.extend(map(signal.getsignal, ASKING))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]


def test_in_a_function_that_native_code_calls_it_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C was while a model was loaded: llama.cpp talks, and what its listener raises goes nowhere."""
    said: list[bytes] = []

    class Errors:
        def append(self, message: bytes) -> None:
            signal.raise_signal(signal.SIGTERM)
            said.append(message)

    monkeypatch.setattr(messages, "_errors", Errors())
    with pytest.raises(KeyboardInterrupt), interruptible():  # noqa: PT012
        messages._LOG_CALLBACK(messages._LOG_LEVEL_ERROR, b"no memory", None)
        assert said == [b"no memory"]
        time.sleep(10)


class Dropped:
    """An object with a finalizer, either Python's own kind or `weakref.finalize`."""

    def __init__(self, finalizer: Callable[[], None]) -> None:
        weakref.finalize(self, finalizer)


class Deleted:
    def __init__(self, finalizer: Callable[[], None]) -> None:
        self._finalizer = finalizer

    def __del__(self) -> None:
        self._finalizer()


@pytest.mark.parametrize("kind", [Dropped, Deleted])
def test_in_a_finalizer_it_is_not_lost_and_does_not_cut_it_short(kind: Callable[[Callable[[], None]], object]) -> None:
    """As Ctrl-C was between two sentences, when the ticket of the first was dropped."""
    ended = []

    def finalizer() -> None:
        signal.raise_signal(signal.SIGTERM)
        ended.append(True)

    dropped = kind(finalizer)
    with pytest.raises(KeyboardInterrupt), interruptible():  # noqa: PT012
        del dropped
        assert ended
        time.sleep(10)


def test_where_python_says_only_that_it_ignores_it_it_comes_again() -> None:
    """A callback of which nobody knows. What else is ignored is told to whoever listened before."""
    told: list[Any] = []
    kept, sys.unraisablehook = sys.unraisablehook, told.append

    def interrupted(_reference: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    def fails(_reference: object) -> None:
        raise ValueError

    try:
        for callback, count in ((interrupted, 0), (fails, 1)):
            dropped = {1, 2}
            reference = weakref.ref(dropped, callback)
            with pytest.raises(KeyboardInterrupt), interruptible():  # noqa: PT012
                del dropped
                assert reference() is None
                if callback is fails:
                    signal.raise_signal(signal.SIGTERM)
                time.sleep(10)
            assert len(told) == count
        assert sys.unraisablehook == told.append
    finally:
        sys.unraisablehook = kept


class Asking:
    """A lock during whose `at`-th call Ctrl-C comes, before or after it does what it is for."""

    def __init__(self, at: int, *, early: bool) -> None:
        self._lock, self._left, self._early = threading.Lock(), at, early

    def acquire(self, *arguments: Any) -> bool:
        return bool(self._call(lambda: self._lock.acquire(*arguments)))

    def release(self) -> None:
        self._call(self._lock.release)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def _call(self, method: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._early and not self._left:
            signal.raise_signal(signal.SIGINT)
        result = method()
        if not self._early and not self._left:
            signal.raise_signal(signal.SIGINT)
        return result


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_condition_gives_its_lock_back_once(at: int, early: bool) -> None:
    """One that is kept holds up all others; one that is not there cannot be given back, which hides the interrupt."""
    lock = Asking(at, early=early)
    condition = threading.Condition(lock)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt), interruptible():  # noqa: PT012
        with condition:
            condition.wait(0)
        assert lock._left <= 0
        time.sleep(10)
    assert not lock.locked()


def test_children() -> None:
    """They have a system's own handlers, and do not hear Ctrl-C where they should not."""
    code = (
        "import signal, sys\n"
        "blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, {signal.SIGINT, signal.SIGHUP} <= blocked)\n"
    )

    def child() -> str:
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    with pytest.raises(KeyboardInterrupt), interruptible():  # noqa: PT012
        assert child() == "True False"
        with unasked_children():
            assert child() == "True True"
            signal.raise_signal(signal.SIGINT)  # which is held back until here
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
