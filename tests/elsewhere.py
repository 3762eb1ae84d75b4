"""Work on another thread, for tests: its result, or what it raised; never a test that hangs."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

PATIENCE_S = 30.0
"""What takes longer than this has come to a stand."""


class Elsewhere(Generic[T]):
    """A function that runs on a thread of its own from now on."""

    def __init__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self._work = partial(work, *args, **kwargs)
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._errors.append(error)

    def is_done_after(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self, within_s: float = PATIENCE_S) -> T:
        """What it returned; raises what it raised."""
        assert self.is_done_after(within_s), "it never ends"
        if self._errors:
            raise self._errors[0]
        return self._results[0]


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true before patience ends."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True
