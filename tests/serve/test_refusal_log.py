"""What is told of answers: all are counted, and each refusal is a line of the log, with nothing that was sent."""

import errno
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from guarding import ask, echo, error_of
from scripted_speech import ScriptedTTS, scripted_server
from starlette.types import Receive, Scope, Send

from miso_gguf.serve import refusal_log
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.refusal_log import MOST_LINES, RefusalLog
from miso_gguf.serve.security import guarded

HOME = {"Host": "localhost", "X-Request-Id": "mine"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Of this log alone, as they come."""
    found = list[str]()
    caplog.set_level(logging.INFO, refusal_log.__name__)
    handler = logging.Handler()
    vars(handler)["emit"] = lambda record: found.append(record.getMessage())
    refusal_log.log.addHandler(handler)
    yield found
    refusal_log.log.removeHandler(handler)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "line"),
    [
        ("GET", "/echo?secret", {}, 401, "mine: GET /echo: 401 invalid_api_key"),
        ("GET", "/health", {}, 200, None),
        ("HEAD", "/nowhere", {"Authorization": "Bearer k"}, 404, "mine: HEAD /nowhere: 404 "),
        ("PUT", "/echo", {"Authorization": "Bearer k"}, 405, "mine: PUT /echo: 405 "),
        ("GET", "/item/secret", {"Authorization": "Bearer k"}, 400, "mine: GET /item/secret: 400 int_parsing"),
        ("GET", "/fails", {"Authorization": "Bearer k"}, 500, "mine: GET /fails: 500 internal_error"),
        ("GET", f"/{'x' * 300}", {}, 401, f"mine: GET /{'x' * 95}: 401 invalid_api_key"),
        ("GET", "/a%0A%1B[2J", {}, 401, r"mine: 'GET /a\n\x1b[2J': 401 invalid_api_key"),
    ],
)
def test_each_answer_is_counted_and_each_refusal_told(
    lines: list[str], method: str, path: str, headers: dict[str, str], status: int, line: str | None
) -> None:
    counted = list[int]()
    app = guarded(echo(), ServeOptions(api_keys=("k",)), counted.append)
    assert ask(app, method, path, headers=HOME | headers).status_code == status
    assert counted == [status]
    assert lines == ([] if line is None else [line])


def test_they_are_few_however_many_ask(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now, scope = 0.0, {"method": "GET", "path": "/"}
    monkeypatch.setattr(refusal_log, "time", SimpleNamespace(monotonic=lambda: now))
    told = RefusalLog()
    for _ in range(MOST_LINES + 7):
        told.tell(scope, 404, b'{"error": {"code": null}}')
    assert lines == ["-: GET /: 404 "] * MOST_LINES
    lines.clear()
    now = 60.0
    told.tell(scope, 418, b"no JSON")
    now = 120.0
    told.tell(scope, 418, b"[1]")
    assert lines == ["7 more requests were refused", "-: GET /: 418 ", "-: GET /: 418 "]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_a_machine_that_has_nothing_left_is_busy(number: int, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError(number, "nothing left")

    answer = ask(guarded(app, ServeOptions()), "GET", "/", headers=HOME)
    assert (answer.status_code, error_of(answer)["code"], answer.headers["retry-after"]) == (503, "server_busy", "2")
    assert "mine: refused for want of resources: nothing left" in caplog.messages
    assert not any(record.exc_info for record in caplog.records)


def test_another_error_of_the_system_is_a_fault_of_ours() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError(errno.ENOENT, "secret")

    assert ask(guarded(app, ServeOptions()), "GET", "/").status_code == 500


def test_all_methods_of_a_path_are_named() -> None:
    cases: dict[str, Any] = {
        "/v1/audio/voices": "GET, POST",
        "/v1/audio/voices/voice_1": "DELETE, GET",
        "/v1/audio/speech": "POST",
        "/health": "GET",
    }
    with scripted_server(ScriptedTTS(1)) as (_, address), httpx.Client(base_url=address) as client:
        for path, allowed in cases.items():
            answer = client.put(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
            message = f"PUT is nothing for this path, which takes {allowed}"
            assert answer.json()["error"]["message"] == message
