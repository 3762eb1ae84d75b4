"""An application that says what reaches it, behind the guard; and raw connections to a server."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI, Request
from serving import serving
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from miso_gguf.serve.errors import ApiError, install_handlers
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.request_id import REQUEST_ID
from miso_gguf.serve.security import guarded

KEY = "a key of somebody's"


def echo() -> FastAPI:
    """Answers with what it got; `/fails` and `/breaks` do what they say."""
    app = FastAPI()
    install_handlers(app)

    @app.post("/echo")
    @app.get("/health")
    @app.get("/echo")
    async def say(request: Request) -> dict[str, Any]:
        body = await request.body()
        return {"bytes": len(body), "state": request.state.request_id, "task": REQUEST_ID.get()}

    @app.get("/item/{number}")
    async def item(number: int) -> int:
        return number

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("a secret")

    @app.get("/says/{status}")
    async def says(status: int) -> None:
        raise ApiError(status, "half \ud800" + "x" * 1000, param="\udfff", code="c", headers={"X-Own": "1"})

    @app.get("/breaks")
    async def breaks() -> Response:
        async def pieces() -> Any:
            yield b"begun"
            raise RuntimeError("a secret")

        return StreamingResponse(pieces())

    @app.get("/large/{size}")
    async def large(size: int) -> Response:
        return Response(bytes(size))

    return app


def ask(app: ASGIApp, method: str, path: str, **how: Any) -> httpx.Response:
    """One request, without a network."""

    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            return await client.request(method, path, **how)

    return asyncio.run(answer())


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has the contract's shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


@dataclass
class Stub:
    """A service that speaks nothing."""

    options: ServeOptions

    def begin_stop(self) -> None:
        pass

    async def cut(self) -> None:
        pass

    async def close(self) -> None:
        pass


@contextmanager
def guarding(options: ServeOptions, app: ASGIApp | None = None) -> Iterator[tuple[str, int]]:
    """Where a server of the application answers, with these limits."""
    with serving(Stub(options), guarded(app or echo(), options)) as address:
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        yield parts.hostname, parts.port


@contextmanager
def connected(place: tuple[str, int], sent: bytes = b"") -> Iterator[socket.socket]:
    """A connection over which this was sent."""
    with socket.create_connection(place, timeout=20) as connection:
        connection.sendall(sent)
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    pieces = []
    try:
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def answered(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of the next answer."""
    answer = HTTPResponse(connection)
    answer.begin()
    body = json.loads(answer.read())
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def split(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of the one answer that is there."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)
