"""Bytes on their way from the thread that makes them to the event loop that sends them.

It holds whole speeches: a client that reads slowly does not keep a sequence of the model for that.
"""

import asyncio
import threading
import time
from collections import deque


class Shelf:
    """The memory that all backlogs of a server share."""

    def __init__(self, most_bytes: int) -> None:
        """When so many bytes lie there, whoever has some of them waits."""
        self.most_bytes, self.held_bytes = most_bytes, 0
        self.changed = threading.Condition()


class Backlog:
    """One thread puts, one task takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shelf: Shelf) -> None:
        self._loop, self._shelf = loop, shelf
        self._pieces: deque[bytes] = deque()
        self._size_bytes = 0
        self._closed = self._ended = False
        self._error: BaseException | None = None
        self._there = asyncio.Event()
        self.blocked_s = 0.0
        """How long the thread has waited for room."""

    def put(self, piece: bytes) -> None:
        """Add bytes; waits while the shelf is full and some of it is this one's. After an end they go nowhere."""
        with self._shelf.changed:
            if not self._may_put():
                begin = time.perf_counter()
                self._shelf.changed.wait_for(self._may_put)
                self.blocked_s += time.perf_counter() - begin
            if not piece or self._closed or self._ended:
                return
            self._pieces.append(piece)
            self._size_bytes += len(piece)
            self._shelf.held_bytes += len(piece)
        self._tell()

    def _may_put(self) -> bool:
        # Whoever takes what there is waits for nobody, however little the others take.
        has_room = not self._size_bytes or self._shelf.held_bytes < self._shelf.most_bytes
        return has_room or self._closed or self._ended

    def end(self, error: BaseException | None = None) -> None:
        """Nothing follows; whoever takes gets the error after all that was put. The first end counts."""
        with self._shelf.changed:
            if self._ended:
                return
            self._ended, self._error = True, error
            self._shelf.changed.notify_all()
        self._tell()

    def close(self) -> None:
        """Nobody takes any more. Does not wait."""
        with self._shelf.changed:
            self._closed = True
            self._all()

    def _all(self) -> list[bytes]:
        """Take what is there. Under the lock."""
        pieces = list(self._pieces)
        self._pieces.clear()
        self._shelf.held_bytes -= self._size_bytes
        self._size_bytes = 0
        self._shelf.changed.notify_all()
        return pieces

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._there.set)
        except RuntimeError:  # the loop is closed: nobody takes any more
            self.close()

    async def take(self) -> list[bytes]:
        """All that is there; waits for something. Empty at the end. Raises what ended it."""
        while True:
            await self._there.wait()
            self._there.clear()
            with self._shelf.changed:
                pieces, ended = self._all(), self._ended
            if ended:
                self._there.set()  # for the next call
            if pieces:
                return pieces
            if ended:
                if self._error is not None:
                    raise self._error
                return []
