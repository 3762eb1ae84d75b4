"""What stands before the application: who may ask, from where, and how much. What is asked it does not know.

Pure ASGI, so that answers stream through it.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body import Body, Room, has_body
from .errors import ApiError, as_api_error, stopping
from .options import ServeOptions
from .refusal_log import RefusalLog
from .request_id import HEADER, REQUEST_ID, request_id

log = logging.getLogger(__name__)

OPEN = ("/health", "/ready")
"""Paths that need no key: whoever watches over the server asks them."""
_EXPOSED = (HEADER, "X-Sample-Rate", "X-Ignored", "Content-Disposition", "Retry-After")
"""Headers that web pages may read."""
_SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""
_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
_LINGER_S = 2.0
"""For a client to stop sending what nobody reads, once it has its answer."""


def guarded(app: ASGIApp, options: ServeOptions, answered: Callable[[int], None] = lambda _: None) -> ASGIApp:
    """The application behind its guard, which tells `answered` the status of each answer."""
    app = _Guard(app, options)
    if options.cors_origins:
        # Before the key: a browser asks without it whether it may ask; and a page can read that its key is wrong.
        app = CORSMiddleware(
            app,
            allow_origins=options.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
    return _Outermost(app, answered)


class _Guard:
    """Lets through who may ask, with the body read."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app, self._options, self._room = app, options, Room.of(options)
        self._keys = [sha256(key.encode()).digest() for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with Body(self._room, receive, self._options) as body:
            try:
                self._check(scope, Headers(scope=scope))
                await body.read(scope)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
            except ConnectionResetError:
                return
            await self._app(scope, body.receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._keys:
            # A key is something that no web page knows, so neither Host nor Origin says anything beyond it; and a
            # proxy that adds the key for its own pages leaves their Origin as it is.
            if scope["path"] not in OPEN and not self._has_key(headers):
                raise ApiError(
                    401,
                    "the API key is missing or wrong: send Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return
        host = headers.get("host", "")
        if self._options.is_loopback and not _LOOPBACK_HOST.fullmatch(host):
            # A page of any site may give its own name this machine's address, and would be of the same origin then.
            raise ApiError(421, "Host is no name of this machine: ask localhost, or set a key", code="invalid_host")
        if scope["method"] not in _SAFE and not self._is_own(headers.getlist("origin"), host):
            # Browsers send forms and plain text to any address for any page; who may read the answer comes later.
            raise ApiError(403, "Origin may not ask: name it with --cors-origin, or set a key", code="invalid_origin")

    def _has_key(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(" ")
        digest = sha256(key.strip().encode("latin-1")).digest()
        # A list, so that all are compared: how long it takes says nothing about any of them.
        return scheme.lower() == "bearer" and any([compare_digest(digest, known) for known in self._keys])  # noqa: C419

    def _is_own(self, origins: list[str], host: str) -> bool:
        allowed = self._options.cors_origins
        return "*" in allowed or all(
            origin in allowed or origin.lower().partition("://")[2] == host.lower() for origin in origins
        )


class _Outermost:
    """What holds for every answer: it has an id, it is in the contract's shape, it ends its connection in time, and it
    is told of."""

    def __init__(self, app: ASGIApp, answered: Callable[[int], None]) -> None:
        self._app, self._answered, self._refusals = app, answered, RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(scope, receive, send, self._answered, self._refusals)
        if scope["method"] == "HEAD":
            # What watches over servers asks so. The server below, whose own scope stays, sends the head alone.
            scope = {**scope, "method": "GET"}
        try:
            await self._app(scope, answer.receive, answer.send)
        except asyncio.CancelledError:
            if answer.is_begun:
                raise
            # uvicorn ends so what is left when the server stops; its own answer would not be in our shape.
            await stopping().response()(scope, answer.receive, answer.send)
        except Exception as error:
            if answer.is_begun:
                if not answer.is_whole:
                    log.error("%s: an answer breaks off", REQUEST_ID.get(), exc_info=error)
                    raise
                return  # the application has answered and logged it
            await as_api_error(error).response()(scope, answer.receive, answer.send)


class _Answer:
    """One answer on its way."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, answered: Callable[[int], None], refusals: RefusalLog
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._answered, self._refusals, self._status = answered, refusals, 0
        self._id = request_id(Headers(scope=scope).get(HEADER))
        REQUEST_ID.set(self._id)
        scope.setdefault("state", {})["request_id"] = self._id
        self._is_unread = has_body(scope)
        self.is_begun = self.is_whole = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_unread &= message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_begun, self._status = True, message["status"]
            self._answered(self._status)
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            headers[HEADER] = self._id
            headers["X-Content-Type-Options"] = "nosniff"
            if self._is_unread:
                # What still comes would be taken for the next request, or never end.
                headers["Connection"] = "close"
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            if self._status >= 400:
                self._refusals.tell(self._scope, self._status, message.get("body", b""))
            if self._is_unread:
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b""}
            self.is_whole = True
        await self._send(message)

    async def _linger(self) -> None:
        """A client that sends when the connection is closed loses the answer that it already has."""
        try:
            await asyncio.wait_for(self._read_rest(), _LINGER_S)
        except asyncio.TimeoutError:
            log.debug("a client sends on after its answer")

    async def _read_rest(self) -> None:
        while self._is_unread:
            await self.receive()
