"""Whose turn it is: as many requests at once as may be, first come, first served.

Those that speak are as many as there are sequences. The batcher has a queue too, but for sentences: a request keeps its
turn for all of its sentences, so that none of them waits for a sequence while somebody listens. All of it is the event
loop's.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .errors import ApiError

_FIRST_GUESS_S = 5.0
"""How long a turn takes, before one has been seen."""
_NEWEST_SHARE = 0.2
"""Of the newest turn in the average."""
_LONGEST_RETRY_S = 120
"""OpenAI's client does not come again after longer ones. Source: its `_calculate_retry_timeout`."""


class Turns:
    """A queue of requests before `streams` turns."""

    def __init__(self, streams: int, queue: int) -> None:
        """At most `queue` requests wait."""
        self.streams, self._most_waiting = streams, queue
        self.speaking = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turn_s, self._ended = _FIRST_GUESS_S, 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def retry_after_s(self) -> int:
        """When it is worth to come again: when as many have spoken as wait now, and there is room for one more."""
        rounds = (self.waiting + 1) / self.streams
        return max(1, min(_LONGEST_RETRY_S, math.ceil(rounds * self._turn_s)))

    def check(self) -> None:
        """Raise `ApiError`, with the time after which to try again, if as many wait as may."""
        if self.speaking >= self.streams and self.waiting >= self._most_waiting:
            raise ApiError(
                429,
                f"too many requests: {self.speaking} under way, {self.waiting} waiting; try again later",
                code="server_busy",
                headers={"Retry-After": str(self.retry_after_s)},
            )

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it. Raises as `check`, before it waits."""
        self.check()
        if self.speaking < self.streams and not self._waiting:
            self.speaking += 1
        else:
            await self._wait()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._ended += 1
            share = max(_NEWEST_SHARE, 1 / self._ended)  # the first ones are all that is known
            self._turn_s += share * (time.perf_counter() - begin - self._turn_s)
            self._hand_on()

    async def _wait(self) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                self._hand_on()  # it was given one, and does not want it any more
            elif mine in self._waiting:  # else a turn was over just now, and it was passed over
                self._waiting.remove(mine)
            raise

    def _hand_on(self) -> None:
        """Give a turn that is over to whoever waits longest."""
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done():
                following.set_result(None)
                return
        self.speaking -= 1
