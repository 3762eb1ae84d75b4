"""Connections that are silent, slow, too many, or speak no HTTP."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from guarding import answered, connected, echo, guarding, read_all, split
from starlette.types import Receive, Scope, Send

from miso_gguf.serve.errors import ABORT
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.server import within_descriptors

GOOD = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, int]]:
    with guarding(ServeOptions()) as place:
        yield place


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /echo HTTP/1.1\r\nHost: localhost\r\nA: b"])
def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    with guarding(ServeOptions(header_timeout_s=0.05)) as place, connected(place, sent) as connection:
        assert read_all(connection) == b""


def test_a_head_that_trickles_is_not_waited_for() -> None:
    """However often a byte comes: each is sent as soon as the one before is there."""
    with guarding(ServeOptions(header_timeout_s=0.2)) as place, connected(place, GOOD + GOOD[:-2]) as connection:
        got = connection.recv(1 << 16)
        connection.settimeout(0.02)
        begin = time.monotonic()
        while time.monotonic() < begin + 20:
            try:
                connection.sendall(b"A")
                if not connection.recv(1 << 16):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("the connection stays open")
    assert got.startswith(b"HTTP/1.1 200")


def test_a_head_in_pieces_and_several_on_a_connection() -> None:
    with guarding(ServeOptions(header_timeout_s=20)) as place, connected(place) as connection:
        for _ in range(3):
            for cut in range(len(GOOD)):
                connection.sendall(GOOD[cut : cut + 1])
            assert answered(connection)[0] == 200


def test_who_asks_for_a_head_alone_gets_that_of_the_answer(place: tuple[str, int]) -> None:
    last = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connected(place, GOOD.replace(b"GET", b"HEAD") + last) as connection:
        head, _, rest = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: " in head
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n"), "the next answer follows at once"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA\x00: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * (17 << 10), 431),
    ],
    ids=range(10),
)
def test_what_is_no_http_is_told_so(place: tuple[str, int], sent: bytes, status: int) -> None:
    with connected(place, sent) as connection:
        found, headers, body = split(read_all(connection))
    assert (found, headers["connection"], headers["content-type"]) == (status, "close", "application/json")
    assert headers["x-request-id"].startswith("req_")
    assert (body["error"]["code"], body["error"]["param"]) == ("invalid_http", None)
    with connected(place, GOOD) as connection:
        assert answered(connection)[0] == 200


def test_too_many_connections() -> None:
    with guarding(ServeOptions(most_connections=2)) as place, ExitStack() as stack:
        two = [stack.enter_context(connected(place, GOOD)) for _ in range(2)]
        assert [answered(one)[0] for one in two] == [200, 200]
        with connected(place, GOOD) as third:
            status, headers, body = split(read_all(third))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert headers["x-request-id"].startswith("req_")
        assert body["error"] == {
            "message": "too many connections: try again later",
            "type": "server_error",
            "param": None,
            "code": "too_many_connections",
        }
        two[0].sendall(GOOD)
        assert answered(two[0])[0] == 200
        spare = [stack.enter_context(connected(place)) for _ in range(40)]
        assert read_all(spare[-1]) == b""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is counted there")
@pytest.mark.parametrize(
    ("now", "most", "then", "connections"),
    [(1024, 4096, 1024, 512), (256, 4096, 768, 512), (256, -1, 768, 512), (256, 600, 600, 344), (-1, -1, -1, 512)],
)
def test_as_many_connections_as_there_are_descriptors(
    monkeypatch: pytest.MonkeyPatch, now: int, most: int, then: int, connections: int
) -> None:
    import resource  # noqa: PLC0415

    limits = [(now, most)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert within_descriptors(ServeOptions(most_connections=512)).most_connections == connections
    assert limits[-1] == (then, most)


def test_a_client_that_takes_nothing_is_hung_up_on() -> None:
    """An answer that no socket holds; it is whole, and nothing waits for it but the connection."""
    size = 64 << 20
    large = b"GET /large/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % size
    with (
        guarding(ServeOptions(most_connections=1, reader_timeout_s=0.1)) as place,
        connected(place, large) as connection,
    ):
        connection.recv(100)
        until_let_in(place)
        assert len(read_all(connection)) < size - 100


def test_a_client_that_reads_slowly_gets_it_all() -> None:
    size = 8 << 20
    got = 0
    with guarding(ServeOptions(reader_timeout_s=1)) as place, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.connect(place)
        connection.sendall(b"GET /large/%d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % size)
        while piece := connection.recv(1 << 12):
            got += len(piece)
    assert got > size


def test_an_application_can_break_an_answer_off() -> None:
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        scope["extensions"][ABORT]()
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    with guarding(ServeOptions(), app) as place, connected(place, GOOD) as connection:
        got = read_all(connection)
        assert ended.wait(20)
    assert got.endswith(b"5\r\nbegun\r\n")


@pytest.mark.parametrize("more", [b"\r\n", GOOD, GOOD * 3 + b"GET"], ids=["line end", "request", "requests"])
def test_a_client_that_hangs_up_is_noticed_whatever_it_sent_meanwhile(more: bytes) -> None:
    waits, ended = threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        waits.set()
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    with guarding(ServeOptions(), app) as place:
        with connected(place, GOOD) as connection:
            assert waits.wait(20)
            connection.sendall(more)
            assert not ended.wait(0.05)
        assert ended.wait(20)


def test_who_sends_ever_more_before_the_answer_is_read_no_further() -> None:
    go = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(go.wait, 20)

    with guarding(ServeOptions(), app) as place, connected(place, GOOD) as connection:
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.sendall(bytes(64 << 20))
        go.set()


def test_a_client_that_hangs_up_anywhere_leaves_nothing_behind() -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
    with guarding(ServeOptions(most_connections=3), echo()) as place:
        for length in range(len(request) + 1):
            with connected(place, request[:length]):
                pass
        until_let_in(place)


def until_let_in(place: tuple[str, int]) -> None:
    """Until those before are gone."""
    while True:
        with suppress(ConnectionError), connected(place, GOOD) as connection:
            if answered(connection)[0] == 200:
                return
