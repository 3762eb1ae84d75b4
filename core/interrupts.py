"""Being asked to end: Ctrl-C, SIGTERM and a terminal that closes are one `KeyboardInterrupt`.

It knows no command: what an interrupt leaves is a matter of whoever is interrupted.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, TypeVar

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""To end, as far as a system has them."""
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_TOGETHER_S = 5.0
_AGAIN_S = 0.05

_Callback = TypeVar("_Callback", bound=Callable[..., Any])
_unheard: set[CodeType] = set()


def unheard(callback: _Callback) -> _Callback:
    """Mark a function that native code calls: what is raised in it goes no further, and would be lost."""
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
    raised_at = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised_at
        if _is_unheard(frame):
            again = threading.Timer(_AGAIN_S, _send_again, (number,))
            again.daemon = True
            again.start()
        elif time.monotonic() - raised_at > _TOGETHER_S:
            raised_at = time.monotonic()
            raise KeyboardInterrupt

    kept: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _ASKING if hasattr(signal, name)):
                if signal.getsignal(number) in _DEFAULTS:
                    # A function, which a program that is started does not inherit, as it would that all is ignored.
                    kept[number] = signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


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
        if frame.f_code in _unheard:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # which wakes the main thread, if it waits
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)
