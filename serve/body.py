"""The body of a request, read whole before anything is done with it: within limits of size, of time and of memory.

What it says it does not know.
"""

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from ..core.closing import Closing
from .errors import ApiError
from .options import ServeOptions

_LARGEST_TOGETHER = 8
"""Bodies of the largest size that are in memory together."""
_SMALL_BYTES = 64 << 10
"""Of each body that do not count for that: clips may find no room, words always do."""
_MOST_DIGITS = 18
"""Of a length: of thousands int() would raise."""


@dataclass
class Room:
    """How much more may be held, of all requests together. All of it is the event loop's."""

    left_bytes: int

    @classmethod
    def of(cls, options: ServeOptions) -> "Room":
        """What one server has."""
        return cls(_LARGEST_TOGETHER * options.most_body_bytes)


class Body(Closing):
    """One of them. It has its room until it is closed."""

    def __init__(self, room: Room, receive: Receive, options: ServeOptions) -> None:
        self._room, self._receive = room, receive
        self._most_bytes, self._timeout_s = options.most_body_bytes, options.body_timeout_s
        self._content = bytearray()
        self._is_there = False
        self._held_bytes = 0

    async def read(self, scope: Scope) -> None:
        """Read it, if there is one.

        Raises:
            ApiError: If it is too large, too slow, encoded, or there is no room for it.
            ConnectionResetError: If the client hangs up meanwhile.
        """
        if not has_body(scope):
            return
        self._check(Headers(scope=scope))
        try:
            await asyncio.wait_for(self._read(), self._timeout_s)
        except asyncio.TimeoutError:
            message = f"the body has not arrived within {self._timeout_s:g} s"
            raise ApiError(408, message, code="request_timeout") from None

    def _check(self, headers: Headers) -> None:
        """What the head says of it, before any of it is read."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "the body is encoded: send it as it is", code="unsupported_encoding")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise ApiError(400, "Content-Length is no number")
        if len(length) > _MOST_DIGITS or int(length) > self._most_bytes:
            raise self._too_large()

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the client has hung up")
            self._content += message.get("body", b"")
            if len(self._content) > self._most_bytes:
                raise self._too_large()
            self._hold(max(0, len(self._content) - _SMALL_BYTES))
            if not message.get("more_body", False):
                self._is_there = True
                return

    def _hold(self, size_bytes: int) -> None:
        if size_bytes - self._held_bytes > self._room.left_bytes:
            message = "too many large requests at once: try again later"
            raise ApiError(503, message, code="server_busy", headers={"Retry-After": "2"})
        self._room.left_bytes -= size_bytes - self._held_bytes
        self._held_bytes = size_bytes

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._most_bytes} bytes", code="request_too_large")

    async def receive(self) -> Message:
        """All of it as one message, and then what follows it."""
        if not self._is_there:
            return await self._receive()
        whole, self._content, self._is_there = bytes(self._content), bytearray(), False
        return {"type": "http.request", "body": whole, "more_body": False}

    def close(self) -> None:
        """Give its room back."""
        self._room.left_bytes += self._held_bytes
        self._held_bytes = 0


def has_body(scope: Scope) -> bool:
    """Whether a body follows the head."""
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
