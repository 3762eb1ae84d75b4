"""A gate that calls of another thread come to, for tests that need to know where it is."""

import threading

from elsewhere import PATIENCE_S


class Gate:
    """Lets calls through: all, or as many as a test says."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: int | None = None
        self._stopped = False

    def shut(self) -> None:
        """The next call stops before it has done anything."""
        with self._changed:
            self._left = 0

    def open(self) -> None:
        """Let all through."""
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def allow(self, calls: int) -> None:
        """Let so many more through, unless all are let through."""
        with self._changed:
            if self._left is not None:
                self._left += calls
                self._stopped = False
                self._changed.notify_all()

    def let(self, calls: int) -> None:
        """As `allow`, and return when the next one stands before the gate."""
        self.allow(calls)
        self.wait_for_call()

    def wait_for_call(self) -> None:
        """Return when a call stands before the shut gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._stopped and self._left == 0, PATIENCE_S), "no call comes"

    def pass_through(self) -> None:
        """Of a call."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._left is None or self._left > 0)
            self._stopped = False
            if self._left is not None:
                self._left -= 1
