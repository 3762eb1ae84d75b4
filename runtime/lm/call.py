"""A call that one thread wants made and another makes. It knows nothing of what is called."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Call(Generic[_T]):
    """Waits to be made, or refused. Whoever wants it waits for `result`, and takes it back by `cancel`."""

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function = function
        self._future: Future[_T] = Future()
        self.result, self.cancel, self.done = self._future.result, self._future.cancel, self._future.done

    def make(self) -> None:
        """Make it, if it was not taken back. What it raises is for whoever wanted it."""
        if self._future.set_running_or_notify_cancel():
            try:
                self._future.set_result(self._function())
            except BaseException as error:
                self._future.set_exception(error)

    def refuse(self, error: BaseException) -> None:
        """Do not make it."""
        if self._future.set_running_or_notify_cancel():
            self._future.set_exception(error)
