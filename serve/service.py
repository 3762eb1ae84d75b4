"""What all endpoints share, in one place."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..runtime.tts import MisoTTS
from .errors import stopping
from .metrics import Metrics
from .model import HeldModel
from .options import ServeOptions
from .speech.backlog import Backlog, Shelf
from .speech.pace import Pace
from .speech.request import SpeechRequest
from .speech.worker import Worker
from .turns import Turns
from .voices.names import Voices

CLIPS_AT_ONCE = 2
"""Clips that are read: each takes a core, which those who speak need more. One is then made a voice."""
CLIPS_WAITING = 16
"""That wait for it, with all their bytes in memory."""
_CUTTING_S, _LOOK_S = 2.0, 0.02


class Service:
    """The parts of a server, and its end. All of it is the event loop's."""

    def __init__(self, options: ServeOptions, name: str, load: Callable[[], MisoTTS]) -> None:
        """`name` is the model's; `load` gives it, with as many sequences as there are `options.streams`.

        Raises `ValueError` if the directory of voices, or what the operator says in it, cannot be used.
        """
        self.options = options
        self.model = HeldModel(name, load, idle_s=options.idle_unload_s)
        self.voices = Voices(options.voices, most=options.most_voices)
        self.turns, self.pace = Turns(options.streams, options.queue), Pace()
        self.clips, self.uploads = Turns(CLIPS_AT_ONCE, CLIPS_WAITING), Turns(1, CLIPS_WAITING)
        self.metrics = Metrics(self.turns, self.model, self.pace)
        self.threads = ThreadPoolExecutor(options.streams, "miso-serve")
        self.is_stopping = False
        self._shelf = Shelf(options.most_backlog_bytes)
        self._workers: set[Worker] = set()

    def backlog(self) -> Backlog:
        """Where a request's sound waits for its client."""
        return Backlog(asyncio.get_running_loop(), self._shelf)

    def worker(self, request: SpeechRequest, backlog: Backlog) -> Worker:
        """Who speaks a request."""
        return Worker(
            request,
            backlog,
            voices=self.voices,
            turns=self.turns,
            pace=self.pace,
            most_seconds=self.options.most_seconds,
        )

    @contextmanager
    def speaking(self, worker: Worker) -> Iterator[None]:
        """A request that is under way, waiting or spoken."""
        self._workers.add(worker)
        try:
            yield
        finally:
            self._workers.discard(worker)

    def check(self) -> None:
        """Raise `ApiError` if no request to speak is taken at present."""
        if self.is_stopping:
            raise stopping()
        self.turns.check()

    def begin_stop(self) -> None:
        """Take nothing new; what is under way goes on."""
        self.is_stopping = True

    async def cut(self) -> None:
        """End what is under way, and give its clients a moment to see that."""
        self.begin_stop()
        for worker in [*self._workers]:
            worker.stop(stopping())
        end = time.monotonic() + _CUTTING_S
        while self._workers and time.monotonic() < end:
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """End it all, and free the model. Idempotent."""
        await self.cut()
        await self.model.close()
        self.threads.shutdown(wait=False)
