"""Being asked to end: Ctrl-C, SIGTERM and a terminal that closes are one `KeyboardInterrupt`.

It knows no command: what an interrupt leaves is a matter of whoever is interrupted.
"""

import _thread
import math
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, TypeVar

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""To end, as far as a system has them."""
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_TOGETHER_S = 5.0
_SAME_S = 0.5
_AGAIN_S = 0.05

_Callback = TypeVar("_Callback", bound=Callable[..., Any])
_unheard: set[CodeType] = {
    weakref.finalize.__call__.__code__,
    # Not lost there, but a lock would be: kept for ever, or given back by who has it no more. See `_is_between`.
    *(getattr(threading.Condition, name).__code__ for name in ("__enter__", "__exit__", "_acquire_restore")),
}


def unheard(callback: _Callback) -> _Callback:
    """Mark a function that is to be done before an interrupt is heard.

    Native code calls it, so that what is raised in it goes no further and would be lost; or it makes something, and
    takes care that it is undone. Finalizers need no mark.
    """
    _unheard.add(callback.__code__)
    return callback


@contextmanager
def interruptible() -> Iterator[None]:
    """Whatever asks to end raises `KeyboardInterrupt` in the main thread, once: cleaning up is not interrupted.

    Ctrl-C reaches all processes of a terminal, some pass it on to those who have it, and who waits presses it again. So
    what comes within five seconds of the first is the same; after them it ends the cleaning up too.

    What is ignored, as Ctrl-C in the background is, and who has a handler of another's, stays so. Elsewhere than in the
    main thread, where no handler can be set, nothing changes.
    """
    raised_at, asked_by, others_hook = -math.inf, 0, sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised_at, asked_by
        if _is_unheard(frame):
            _send_later(number)
        elif time.monotonic() - raised_at > _TOGETHER_S:
            raised_at, asked_by = time.monotonic(), number
            raise KeyboardInterrupt

    def hear(what: "sys.UnraisableHookArgs") -> None:
        nonlocal raised_at
        if asked_by and issubclass(what.exc_type, KeyboardInterrupt):
            raised_at = -math.inf
            _send_later(asked_by)
        else:
            others_hook(what)

    kept: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _asking():
                if signal.getsignal(number) in _DEFAULTS:
                    # A function, which a program that is started does not inherit, as it would that all is ignored.
                    kept[number] = signal.signal(number, interrupt)
            # Of all callbacks, Python's and other packages', there is no list: what is lost in one is told to this.
            sys.unraisablehook = hear
        yield
    finally:
        if sys.unraisablehook is hear:
            sys.unraisablehook = others_hook
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def asked(tell: Callable[[], None]) -> Iterator[None]:
    """Whatever asks to end calls `tell` in the block, each time, and raises nothing, also within `interruptible`.

    What comes within half a second is the same: who passes Ctrl-C on does so at once. What is ignored stays
    so. Elsewhere than in the main thread nothing changes.
    """
    last_at = -math.inf

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal last_at
        if time.monotonic() - last_at > _SAME_S:
            last_at = time.monotonic()
            tell()

    kept: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _asking():
                if signal.getsignal(number) != signal.SIG_IGN:
                    kept[number] = signal.signal(number, hear)
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _asking() -> list[int]:
    return [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]


@contextmanager
def unasked_children() -> Iterator[None]:
    """Programs that are started in the block hear no Ctrl-C and no terminal that closes: who started them ends them.

    Both are held back meanwhile, not lost. (Not on Windows.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


def _is_unheard(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _unheard or frame.f_code.co_name == "__del__" or _is_between(frame):
            return True
        frame = frame.f_back
    return False


def _is_between(frame: FrameType) -> bool:
    """Whether a condition that is waited for gives its lock away, and would not take it back.

    Later it would: from the line before `try` on, which sets `gotit`. Source: `threading.py` of Python 3.10 to 3.13.
    """
    return frame.f_code is threading.Condition.wait.__code__ and "gotit" not in frame.f_locals


def _send_later(number: int) -> None:
    # Not `threading`: it takes locks, which whoever is interrupted may hold.
    _thread.start_new_thread(_send_again, (number,))


def _send_again(number: int) -> None:
    time.sleep(_AGAIN_S)
    if hasattr(signal, "pthread_kill"):  # which wakes the main thread, if it waits
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)
