"""A stream for asyncio: its chunks are awaited, and so may the pieces of its text be.

A thread for each reads the stream, one chunk whenever one is asked for: the event loop never waits, and what nobody
asks for is not spoken. It knows nothing of how speech is made.
"""

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import AsyncIterable, Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TypeAlias, cast

from ...core.errors import MisoError
from ...core.process import OwnProcess
from ..speech import Chunk, Speech
from .stream import SpeechStream

_LOOK_S = 0.5
"""A thread that waits looks so often whether its event loop is closed, and nobody can ask or answer any more."""
_END = object()
"""After the last piece of a text: None, which some language models end with, is no text but an error."""

Asked: TypeAlias = asyncio.Future[Chunk | None]


class AsyncSpeechStream:
    """Sound as it is made: `async for` chunk; `speech` is the record of it.

    Leaving `async with` ends it, and so do `aclose`, cancelling who waits for a chunk, dropping it, and the end of the
    event loop.
    """

    def __init__(
        self, text: str | Iterable[str] | AsyncIterable[str], begin: Callable[[str | Iterable[str]], SpeechStream]
    ) -> None:
        """`begin` gives the stream of a text; both have to be of the same model."""
        self._awaited: _Awaited | None = None
        if isinstance(text, AsyncIterable):
            text = self._awaited = _Awaited(text)
        self._stream = begin(text)
        self.speech: Speech = self._stream.speech
        self._process = OwnProcess()
        self._reader: _Reader | None = None
        self._is_closed = False

    def __aiter__(self) -> "AsyncSpeechStream":
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk. Raises as `SpeechStream`, and what the iterator of the text raises."""
        self._process.check()
        if self._is_closed:
            raise StopAsyncIteration
        loop = asyncio.get_running_loop()
        if self._reader is None:
            self._reader = _Reader(self._stream, self._awaited, loop)
            # The thread keeps the reader, not this. Without this a forgotten one would hold its sequence for ever.
            weakref.finalize(self, self._reader.stop).atexit = False
            self._reader.start()
        try:
            chunk = await self._reader.ask(loop)
        except asyncio.CancelledError:
            self._reader.stop()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop, and wait until everything is free; but not for a text whose iterator blocks. Idempotent."""
        self._is_closed = True
        if self._reader is None:
            self._stream.close()
        else:
            self._reader.stop()
            await self._reader.wait()

    async def __aenter__(self) -> "AsyncSpeechStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Reader:
    """The thread of one stream, and what the event loop asks it for."""

    def __init__(self, stream: SpeechStream, text: "_Awaited | None", loop: asyncio.AbstractEventLoop) -> None:
        self._stream, self._text, self._loop, self._process = stream, text, loop, OwnProcess()
        if text is not None:
            text.loop = loop
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._ended = asyncio.Event()
        self._stopped = False

    def start(self) -> None:
        """Its thread."""
        threading.Thread(target=self._run, name="miso-astream", daemon=True).start()

    # In the event loop.

    def ask(self, loop: asyncio.AbstractEventLoop) -> Asked:
        """The next chunk, or None at the end."""
        if loop is not self._loop:
            raise MisoError("this stream was begun in another event loop: one loop reads it to its end")
        asked: Asked = loop.create_future()
        if self._ended.is_set():
            asked.set_result(None)
        else:
            self._asked.put(asked)
        return asked

    async def wait(self) -> None:
        """Until the thread has ended, or nobody can hurry it."""
        blocked = self._text is None and self._stream.awaits_text
        if asyncio.get_running_loop() is self._loop and self._process.is_here and not blocked:
            await self._ended.wait()

    def _end(self) -> None:
        self._ended.set()
        while True:
            try:
                asked = self._asked.get_nowait()
            except Empty:
                return
            if asked is not None:
                _answer(asked, None, None)

    # In any thread.

    def stop(self) -> None:
        """Let it end. Does not wait."""
        if not self._process.is_here:
            return
        self._stopped = True
        self._stream.stop()
        if self._text is not None:
            self._text.stop()
        self._asked.put(None)

    # In its own thread.

    def _run(self) -> None:
        try:
            with self._stream:
                while (asked := self._next_asked()) is not None and self._speak(asked):
                    pass
        finally:
            self._tell(self._end)

    def _next_asked(self) -> Asked | None:
        while not self._loop.is_closed():
            try:
                return self._asked.get(timeout=_LOOK_S)
            except Empty:
                pass
        return None

    def _speak(self, asked: Asked) -> bool:
        """Answer it. Whether there may be more."""
        chunk: Chunk | None = None
        error: BaseException | None = None
        try:
            chunk = next(self._stream, None)
        except BaseException as caught:  # whatever it is, it is for whoever asked
            error = None if self._stopped else caught
        self._tell(partial(_answer, asked, chunk, error))
        return chunk is not None

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # it is closed: nobody wants to know
            self._stopped = True


def _answer(asked: Asked, chunk: Chunk | None, error: BaseException | None) -> None:
    if asked.done():  # who asked was cancelled
        return
    if error is not None:
        asked.set_exception(error)
    else:
        asked.set_result(chunk)


class _Awaited:
    """The pieces of an async iterator for the thread that speaks them: it is awaited in the event loop."""

    def __init__(self, pieces: AsyncIterable[str]) -> None:
        self._pieces = aiter(pieces)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._next: concurrent.futures.Future[object] | None = None
        self._stopped = False

    def __iter__(self) -> "_Awaited":
        return self

    def __next__(self) -> str:
        """Raises what the iterator raises, and `CancelledError` after `stop`."""
        loop, following = self.loop, self._following()
        assert loop is not None, "only a thread reads it that knows its loop"
        try:
            self._next = asked = asyncio.run_coroutine_threadsafe(following, loop)
        except RuntimeError:  # it is closed
            following.close()
            raise
        if self._stopped:  # after the line above: whoever stops it looks at them in the other order
            asked.cancel()
        while not concurrent.futures.wait([asked], _LOOK_S).done:
            if loop.is_closed():
                raise concurrent.futures.CancelledError
        piece = asked.result()
        if piece is _END:
            raise StopIteration
        return cast(str, piece)  # whoever takes it looks

    async def _following(self) -> object:
        return await anext(self._pieces, _END)

    def stop(self) -> None:
        """Await no more."""
        self._stopped = True
        if self._next is not None and self.loop is not None and not self.loop.is_closed():
            self._next.cancel()
