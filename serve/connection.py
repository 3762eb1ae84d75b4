"""A connection: hangs up on a client that is silent or takes nothing, and on too many; tells one that speaks no HTTP.

It adds to uvicorn's own; what is asked over it, it does not know.
"""

import asyncio
import sys
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ABORT, ApiError
from .options import ServeOptions
from .request_id import HEADER, request_id

_SPARE = 32
"""Connections beyond the most that are answered: that there are too many. Further ones are cut."""
_AHEAD_BYTES = 64 << 10
"""Of requests that a client sends before it has its answer: beyond them nothing is read."""


def protocol(options: ServeOptions) -> type[H11Protocol]:
    """What uvicorn takes as `http`."""
    return type("Protocol", (_Protocol,), {"options": options})


class _Protocol(H11Protocol):
    options: ServeOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._answer, self.app = self.app, self._run
        self.limit_concurrency = None  # its answer is not in our shape
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: Any = self._answer
        if len(self.connections) > self.options.most_connections:
            error = _error(503, "too many connections: try again later", "too_many_connections", **{"Retry-After": "1"})
            app = error.response()
        scope["extensions"] = {**scope.get("extensions", {}), ABORT: self.transport.abort}
        await app(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # What is not taken at once counts as waiting, so that nobody leaves a last piece untaken for ever.
        transport.set_write_buffer_limits(0)
        if len(self.connections) > self.options.most_connections + _SPARE:
            transport.abort()
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head_timer, self._reader_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= _AHEAD_BYTES:
            # uvicorn stops to read here; and whoever does not read does not see that the client hangs up.
            self.flow.resume_reading()

    def _watch_head(self) -> None:
        """From the first byte of a head to its last, however it trickles; and for the first byte of a connection."""
        if self.conn.their_state is h11.IDLE:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(self.options.header_timeout_s, self.timeout_keep_alive_handler)
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()

    def _watch_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < waiting:
                self._watch_reader()
            else:
                self.transport.abort()

        self._reader_timer = self.loop.call_later(self.options.reader_timeout_s, look)

    def send_400_response(self, msg: str) -> None:
        """Of what h11 does not understand; it is called where that is handled."""
        is_long = getattr(sys.exc_info()[1], "error_status_hint", 400) == 431
        status, message = (431, "the head of the request is too large") if is_long else (400, "this is no HTTP")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = _error(status, message, "invalid_http").response()
            for event in (
                h11.Response(status_code=status, headers=response.raw_headers),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            # Whoever answers what came before must not answer after this.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def _error(status: int, message: str, code: str, **headers: str) -> ApiError:
    """An answer that never reaches the application; it is the connection's last."""
    return ApiError(status, message, code=code, headers={"Connection": "close", HEADER: request_id(None), **headers})
