"""Bodies within limits: of size, of time, of memory; on every path, before anything else looks at them."""

import asyncio
from collections.abc import Iterable

import pytest
from guarding import KEY, answered, ask, connected, echo, error_of, guarding, read_all, split
from starlette.types import Message

from miso_gguf.serve import security
from miso_gguf.serve.body import Body, Room
from miso_gguf.serve.errors import ApiError
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.security import guarded

OPTIONS = ServeOptions(most_upload_bytes=3 << 10, body_timeout_s=5)
MOST = OPTIONS.most_body_bytes
CHUNKED = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}


def test_the_limit_has_room_for_a_clip_in_base64() -> None:
    assert MOST == 4 * 1024 + 65536


@pytest.mark.parametrize("path", ["/echo", "/nowhere", "/health"])
def test_a_length_beyond_the_limit_is_refused_unread(path: str) -> None:
    app = guarded(echo(), OPTIONS)
    answer = ask(app, "POST", path, content=bytes(MOST + 1))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    error = error_of(answer)
    assert (error["message"], error["code"]) == (f"the body has more than {MOST} bytes", "request_too_large")
    assert ask(app, "POST", "/echo", content=bytes(MOST)).json()["bytes"] == MOST


@pytest.mark.parametrize(
    ("length", "status"), [("9" * 5000, 413), ("-1", 400), ("1_0", 400), ("\xb2", 400), ("+1", 400)]
)
def test_lengths_that_are_none(length: str, status: int) -> None:
    headers = [(b"content-length", length.encode("latin-1"))]
    assert ask(guarded(echo(), OPTIONS), "POST", "/echo", headers=headers).status_code == status


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "x", ""])
def test_an_encoded_body_is_refused(encoding: str) -> None:
    answer = ask(guarded(echo(), OPTIONS), "POST", "/echo", content=b"x", headers={"Content-Encoding": encoding})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_encoding")
    assert ask(
        guarded(echo(), OPTIONS), "POST", "/echo", content=b"x", headers={"Content-Encoding": "Identity"}
    ).is_success


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, bytes(size))


HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients here neither stop sending nor hang up."""
    monkeypatch.setattr(security, "_LINGER_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_body_without_a_length_is_counted() -> None:
    with guarding(OPTIONS) as place:
        with connected(place, HEAD + chunk(MOST - 1) + chunk(1) + b"0\r\n\r\n") as connection:
            assert answered(connection)[2]["bytes"] == MOST
        # It never ends: the client has its answer before the connection closes.
        with connected(place, HEAD + chunk(MOST) + chunk(1)) as connection:
            status, headers, body = split(read_all(connection))
    assert (status, headers["connection"], body["error"]["code"]) == (413, "close", "request_too_large")


def test_a_client_that_sends_on_reads_why_it_was_refused() -> None:
    """More than the sockets hold between them, so that it is still sending when it is refused."""
    with guarding(OPTIONS) as place:
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (32 << 20)
        with connected(place, head) as connection:
            connection.sendall(bytes(32 << 20))
            assert split(read_all(connection))[0] == 413


@pytest.mark.usefixtures("impatient")
def test_a_body_that_does_not_come() -> None:
    options = ServeOptions(body_timeout_s=0.05)
    with guarding(options) as place:
        head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
        with connected(place, head) as connection:
            status, headers, body = split(read_all(connection))
    assert (status, headers["connection"]) == (408, "close")
    assert body["error"] == {
        "message": "the body has not arrived within 0.05 s",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_timeout",
    }


def test_a_refused_body_is_not_taken_for_the_next_request() -> None:
    smuggled = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with guarding(ServeOptions(api_keys=(KEY,))) as place:
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
        with connected(place, head + smuggled + smuggled) as connection:
            assert split(read_all(connection))[0] == 401


def test_a_connection_is_kept_where_the_body_was_read() -> None:
    request = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab"
    with guarding(OPTIONS) as place, connected(place, request + request) as connection:
        got = b""
        while got.count(b"HTTP/1.1 404") < 2:
            got += connection.recv(1 << 16)
    assert b"connection: close" not in got.lower()


def reading(room: Room, pieces: Iterable[Message], options: ServeOptions = OPTIONS) -> Body:
    messages = iter(pieces)

    async def receive() -> Message:
        return next(messages)

    return Body(room, receive, options)


def piece(size: int, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": bytes(size), "more_body": more}


def test_large_bodies_have_room_together_or_are_sent_away() -> None:
    room = Room(1000)
    with reading(room, [piece(64 << 10), piece(600), piece(0, more=False)]) as first:
        asyncio.run(first.read(CHUNKED))
        assert room.left_bytes == 400
        with reading(room, [piece(64 << 10), piece(300), piece(200)]) as second:
            with pytest.raises(ApiError, match="too many large requests") as refused:
                asyncio.run(second.read(CHUNKED))
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "2"})
            assert room.left_bytes == 100
        assert room.left_bytes == 400
        with reading(room, [piece(64 << 10, more=False)]) as small:
            asyncio.run(small.read(CHUNKED))
            assert len(asyncio.run(small.receive())["body"]) == 64 << 10
    assert room.left_bytes == 1000


def test_whoever_hangs_up_leaves_nothing_behind() -> None:
    room = Room(1 << 20)
    with (
        reading(room, [piece(70000 - 600), {"type": "http.disconnect"}]) as body,
        pytest.raises(ConnectionResetError, match="hung up"),
    ):
        asyncio.run(body.read(CHUNKED))
    assert room == Room(1 << 20)


def test_what_follows_the_body_is_passed_on() -> None:
    gone = {"type": "http.disconnect"}

    async def all_of(body: Body) -> list[Message]:
        await body.read(CHUNKED)
        return [await body.receive(), await body.receive()]

    with reading(Room(0), [piece(0), piece(3), piece(0, more=False), gone]) as body:
        assert asyncio.run(all_of(body)) == [piece(3, more=False), gone]
    with reading(Room(0), [piece(0, more=False), gone]) as empty:
        assert asyncio.run(all_of(empty)) == [piece(0, more=False), gone]
