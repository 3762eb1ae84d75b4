"""Which Python functions and lines run: an interrupt may come in any of them, and is lost where Python ignores it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any


@contextmanager
def python_calls() -> Iterator[list[CodeType]]:
    """The code of each that this thread calls in the block, in their order, and of what ends the block."""
    called: list[CodeType] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            called.append(frame.f_code)

    kept = sys.getprofile()
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(kept)


def interrupted(
    call: Callable[[], object],
    at_line: int,
    is_traced: Callable[[FrameType], bool],
    counts: Callable[[FrameType], bool] = lambda _: True,
) -> bool:
    """Run `call` up to its line number `at_line`, of those that run and count; whether it has so many.

    Only functions that are traced have lines.
    """
    left = at_line

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if not is_traced(frame):
            return None
        if event == "line" and counts(frame):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
