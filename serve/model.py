"""The model that the server holds: loaded when somebody wants to speak, unloaded when nobody has for a while."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..core.errors import MisoError
from ..runtime.tts import MisoTTS

log = logging.getLogger(__name__)


class HeldModel:
    """A model, loaded on demand. All of it is the event loop's; loading and unloading have a thread."""

    def __init__(self, name: str, load: Callable[[], MisoTTS], *, idle_s: float | None = None) -> None:
        """`load` gives the model, as often as it is asked; after `idle_s` without a user it is closed."""
        self.name, self._load, self._idle_s = name, load, idle_s
        self.loads = 0
        self._tts: MisoTTS | None = None
        self._users = 0
        self._changing = asyncio.Lock()
        self._unload: asyncio.TimerHandle | None = None
        self._closed = False
        self._is_loading = False

    @property
    def is_loading(self) -> bool:
        """Whether a thread loads it, which nothing can stop."""
        return self._is_loading

    @property
    def is_loaded(self) -> bool:
        """Whether the next request need not wait for it."""
        return self._tts is not None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[MisoTTS]:
        """The model, which stays while it is used. Raises `MisoError` if it cannot be loaded."""
        self._users += 1
        self._keep()
        try:
            yield await self._loaded()
        finally:
            self._users -= 1
            self._let_go()

    async def _loaded(self) -> MisoTTS:
        # A task of its own: whoever is cancelled while it is loaded was not the only one who wants it.
        return await asyncio.shield(asyncio.create_task(self._load_once()))

    async def _load_once(self) -> MisoTTS:
        async with self._changing:
            if self._closed:
                raise MisoError("the server has closed the model")
            if self._tts is None:
                begin, self._is_loading = time.perf_counter(), True
                try:
                    self._tts = await asyncio.to_thread(self._load)
                except (ValueError, OSError, MemoryError) as error:
                    raise MisoError(f"{self.name} cannot be loaded: {error}") from error
                finally:
                    self._is_loading = False
                self.loads += 1
                log.info("%s loaded in %.1f s", self.name, time.perf_counter() - begin)
                self._let_go()  # in case that nobody is left
            return self._tts

    def _keep(self) -> None:
        if self._unload is not None:
            self._unload.cancel()
            self._unload = None

    def _let_go(self) -> None:
        if not self._users and self._idle_s is not None and self._tts is not None and not self._closed:
            loop = asyncio.get_running_loop()
            self._unload = loop.call_later(self._idle_s, lambda: loop.create_task(self._unload_if_idle()))

    async def _unload_if_idle(self) -> None:
        async with self._changing:
            if self._users or self._tts is None:
                return
            tts, self._tts = self._tts, None
            await asyncio.to_thread(tts.close)
            log.info("%s unloaded: nobody has spoken for %g s", self.name, self._idle_s)

    async def close(self) -> None:
        """Close the model, and end what it still speaks. Idempotent."""
        self._closed = True
        self._keep()
        async with self._changing:
            tts, self._tts = self._tts, None
            if tts is not None:
                await asyncio.to_thread(tts.close)
