"""Bytes on their way from the thread that makes them to the event loop that sends them.

It holds minutes of speech: a client that reads slowly does not keep a sequence of the model for that.
"""

import asyncio
import threading
import time
from collections import deque


class Backlog:
    """One thread puts, one task takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most_bytes: int) -> None:
        """`put` waits while so many bytes lie there."""
        self._loop, self._most_bytes = loop, most_bytes
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._size_bytes = 0
        self._closed = self._ended = False
        self._error: BaseException | None = None
        self._there = asyncio.Event()
        self.blocked_s = 0.0
        """How long the thread has waited for room."""

    def put(self, piece: bytes) -> None:
        """Add bytes; waits while it is full. What is put after `close` goes nowhere."""
        with self._changed:
            if self._size_bytes >= self._most_bytes and not self._closed:
                begin = time.perf_counter()
                self._changed.wait_for(lambda: self._size_bytes < self._most_bytes or self._closed)
                self.blocked_s += time.perf_counter() - begin
            if not piece or self._closed:
                return
            self._pieces.append(piece)
            self._size_bytes += len(piece)
        self._tell()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing follows; whoever takes gets the error after all that was put. The first end counts."""
        with self._changed:
            if self._ended:
                return
            self._ended, self._error = True, error
        self._tell()

    def close(self) -> None:
        """Nobody takes any more. Does not wait."""
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()

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
            with self._changed:
                pieces, ended = list(self._pieces), self._ended
                self._pieces.clear()
                self._size_bytes = 0
                self._changed.notify_all()
            if ended:
                self._there.set()  # for the next call
            if pieces:
                return pieces
            if ended:
                if self._error is not None:
                    raise self._error
                return []
