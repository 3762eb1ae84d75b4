"""How a server ends: by signals as a process, by its deadline, and with what error if it cannot begin."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from guarding import Stub, answered, connected
from scripted_speech import ScriptedTTS
from starlette.types import Receive, Scope, Send

from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve import server
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.security import guarded
from miso_gguf.serve.server import HttpServer, address_of, bound
from miso_gguf.serve.service import Service

PATIENCE_S = 60


@contextmanager
def stub(grace_s: float = 60) -> Iterator[tuple["subprocess.Popen[str]", httpx.Client]]:
    """The command of `stub_command.py`, and a client of it."""
    line = [sys.executable, str(Path(__file__).with_name("stub_command.py")), str(grace_s)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            with httpx.Client(base_url=process.stdout.readline().strip(), timeout=PATIENCE_S) as client:
                yield process, client
        finally:
            process.kill()


def until_stopping(client: httpx.Client) -> None:
    while client.get("/stopping").text != "True":
        pass


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)],
    ids=lambda number: number.name,
)
def test_what_is_under_way_is_finished(number: signal.Signals) -> None:
    with stub() as (process, client):
        with client.stream("GET", "/held") as held:
            parts = held.iter_raw()
            assert next(parts) == b"a"
            process.send_signal(number)
            process.send_signal(number)  # as from whoever passes Ctrl-C on
            until_stopping(client)
            assert client.get("/go").status_code == 200
            assert b"".join(parts) == b"b"
        assert process.wait(PATIENCE_S) == 0
        assert process.communicate() == ("closed\n", "")


def test_a_second_signal_ends_at_once() -> None:
    with stub() as (process, client), client.stream("GET", "/held") as held:
        parts = held.iter_raw()
        assert next(parts) == b"a"
        process.send_signal(signal.SIGTERM)
        until_stopping(client)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)  # what comes at once is the same signal
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.communicate() == ("closed\n", "")
        with pytest.raises(httpx.RemoteProtocolError):
            next(parts)


class Held:
    """A service and its application: what it answers ends when it is cut."""

    def __init__(self) -> None:
        self.options = ServeOptions(grace_s=0)
        self.told = list[str]()
        self._cut = threading.Event()

    def begin_stop(self) -> None:
        self.told.append("stop")

    async def cut(self) -> None:
        self.told.append("cut")
        self._cut.set()

    async def close(self) -> None:
        self.told.append("close")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while not self._cut.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"b"})


def test_at_the_deadline_it_is_cut() -> None:
    service, started = Held(), threading.Event()
    listener = bound("127.0.0.1", 0)
    stopping = HttpServer(service, service, listener, started.set)
    thread = threading.Thread(target=stopping.run, daemon=True)
    thread.start()
    assert started.wait(PATIENCE_S)
    with httpx.stream("GET", address_of(listener), timeout=PATIENCE_S) as held:
        parts = held.iter_raw()
        assert next(parts) == b"a"
        stopping.stop()
        assert b"".join(parts) == b"b"
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert service.told == ["stop", "cut", "close"]


def test_who_is_stopped_before_he_serves_lets_nobody_in() -> None:
    service, started = Held(), threading.Event()
    with bound("127.0.0.1", 0) as listener:
        server = HttpServer(service, service, listener, started.set)
        server.stop()
        server.run()
    assert not started.is_set()
    assert service.told == ["close"]


def test_who_has_no_answer_at_the_deadline_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it waits for: here for its own body, and for an application that never answers."""
    monkeypatch.setattr(server, "_CLOSING_S", 0.05)
    options, waits, started = ServeOptions(grace_s=0), threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waits.set()
        await asyncio.Event().wait()

    listener = bound("127.0.0.1", 0)
    stopping = HttpServer(guarded(app, options), Stub(options), listener, started.set)
    thread = threading.Thread(target=stopping.run, daemon=True)
    thread.start()
    assert started.wait(PATIENCE_S)
    place = listener.getsockname()
    half = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    with connected(place, half) as upload, connected(place, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as other:
        assert upload.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert waits.wait(PATIENCE_S)
        stopping.stop()
        for connection in (upload, other):
            status, _, body = answered(connection)
            assert (status, body["error"]["code"]) == (503, "server_stopping")
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_one_that_is_stopped_while_the_model_is_loaded_lets_nobody_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load() -> MisoTTS:
        os.kill(os.getpid(), signal.SIGTERM)
        return tts.as_tts

    tts = ScriptedTTS()
    service, started = Service(ServeOptions(), "scripted", load), threading.Event()
    with bound("127.0.0.1", 0) as listener:
        server.run_server(service, listener, started.set, lambda: None)
        assert not started.is_set()
        assert tts.closed == 1
    assert "stopping when the model is loaded; once more ends at once" in caplog.messages


def test_nobody_is_let_in_before_it_serves() -> None:
    with bound("127.0.0.1", 0) as listener, pytest.raises(httpx.ConnectError):
        httpx.get(address_of(listener))


def test_addresses_that_cannot_be_had() -> None:
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"^127\.0\.0\.1:{port} cannot be had: .*in use. Choose another --port\.$"):
            bound("127.0.0.1", port)
    with pytest.raises(OSError, match=re.escape("no.such.invalid is no address of this machine: ")):
        bound("no.such.invalid", 0)
