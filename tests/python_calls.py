"""Which Python functions run: an interrupt may come in any of them, and where Python ignores it, it is lost."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType


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
