"""The answer to a request to speak: it waits its turn, sends sound as it is made, and ends when its client hangs up."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...models.mimi import SAMPLE_RATE_HZ
from ..errors import ABORT, as_api_error
from ..request_id import REQUEST_ID
from ..service import Service
from ..sound.formats import FORMATS
from ..voices.clip import clip_bytes, read_clip
from .request import SpeechRequest

log = logging.getLogger(__name__)


class SpeechResponse(Response):
    """Speaks one request. Errors before the first byte are answers of their own; after it the connection breaks."""

    def __init__(self, service: Service, request: SpeechRequest) -> None:
        super().__init__()
        self._service, self._request = service, request
        self._format = FORMATS[request.response_format]
        self._backlog = service.backlog()
        self._worker = service.worker(request, self._backlog)
        self._has_begun = False
        self._outcome = "hung_up"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._service.speaking(self._worker):
            producing = asyncio.create_task(self._produce())
            listening = asyncio.create_task(_hung_up(receive))
            sending = asyncio.create_task(self._send(send))
            try:
                await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and (failure := sending.exception()) is not None:
                    await self._fail(failure, scope, receive, send)
                elif sending.done():
                    self._outcome = "done"
            finally:
                for task in (sending, listening, producing):
                    task.cancel()
                await asyncio.gather(sending, listening, producing, return_exceptions=True)
                self._service.metrics.spoken(self._worker, self._request.response_format, self._outcome)
                self._log()

    async def _fail(self, failure: BaseException, scope: Scope, receive: Receive, send: Send) -> None:
        error = as_api_error(failure)
        self._outcome = error.code or str(error.status)
        if not self._has_begun:
            await error.response()(scope, receive, send)
        elif self._request.stream_format == "sse":
            await send(_body(_event(error.body), more=False))
        else:
            _abort(scope)

    def _log(self) -> None:
        """One line, without a word of what was said unless the operator wants that."""
        worker, request = self._worker, self._request
        said = repr(request.input) if self._service.options.log_text else f"{worker.characters} characters"
        log.info(
            "%s %s: %s as %s, first audio after %.3f s, %.1f s of speech in %.1f s",
            REQUEST_ID.get(),
            self._outcome,
            said,
            request.response_format,
            worker.first_s,
            worker.audio_s,
            time.perf_counter() - worker.begin,
        )

    async def _produce(self) -> None:
        service, worker = self._service, self._worker
        try:
            if self._request.ref_audio is not None:
                data = clip_bytes(self._request.ref_audio, service.options.most_upload_bytes)
                async with service.clips.turn():
                    worker.clip = await read_clip(data, "ref_audio")
            async with service.turns.turn(), service.model.use() as tts:
                await _in_thread(service.threads, partial(worker.run, tts), worker.stop)
            self._backlog.end()
        except BaseException as error:
            self._backlog.end(error)
            if not isinstance(error, Exception):
                raise

    async def _send(self, send: Send) -> None:
        if not self._request.is_streamed:
            whole = b"".join([piece async for piece in self._pieces()])
            await send(self._start(**{"Content-Length": str(len(whole))}))
            await send(_body(whole, more=False))
            return
        is_sse = self._request.stream_format == "sse"
        async for piece in self._pieces():
            if not self._has_begun:
                await send(self._start())
            if is_sse:
                audio = base64.b64encode(piece).decode()
                piece = _event({"type": "speech.audio.delta", "audio": audio})  # noqa: PLW2901
            await send(_body(piece, more=True))
        await send(_body(_event(self._done()) if is_sse else b"", more=False))

    async def _pieces(self) -> Any:
        while pieces := await self._backlog.take():
            yield b"".join(pieces)

    def _start(self, **more: str) -> dict[str, Any]:
        """Status and headers."""
        self._has_begun = True
        is_sse = self._request.stream_format == "sse"
        headers = {
            "Content-Type": "text/event-stream" if is_sse else self._format.media_type,
            "Content-Disposition": f'attachment; filename="speech{self._format.ending}"',
            "X-Sample-Rate": str(SAMPLE_RATE_HZ),
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            **more,
        }
        if is_sse:
            del headers["Content-Disposition"]
        if self._request.instructions:
            headers["X-Ignored"] = "instructions"
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": raw}

    def _done(self) -> dict[str, Any]:
        worker = self._worker
        frames = len(worker.speech.codes) if worker.speech is not None else 0
        usage = {
            "input_tokens": worker.input_tokens,
            "output_tokens": frames,
            "total_tokens": worker.input_tokens + frames,
        }
        return {"type": "speech.audio.done", "usage": usage}


def _body(content: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def _event(content: Any) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def _abort(scope: Scope) -> None:
    abort: Callable[[], None] | None = scope.get("extensions", {}).get(ABORT)
    if abort is None:
        raise ConnectionAbortedError("this answer is cut")
    abort()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _in_thread(threads: Executor, call: Callable[[], None], stop: Callable[[], None]) -> None:
    """Make a call in a thread. Whoever is cancelled meanwhile stops it, and leaves when it has ended."""
    done = asyncio.get_running_loop().run_in_executor(threads, call)
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait([done])
        raise
