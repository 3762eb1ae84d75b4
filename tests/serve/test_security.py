"""Who may ask, from where; the ids of answers; errors in the contract's shape."""

from hashlib import sha256
from hmac import compare_digest

import pytest
from guarding import KEY, ask, echo, error_of
from starlette.types import Receive, Scope, Send

from miso_gguf.serve import security
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.request_id import HEADER
from miso_gguf.serve.security import guarded

OPEN = guarded(echo(), ServeOptions())
LOCKED = guarded(echo(), ServeOptions(host="0.0.0.0", api_keys=("another", KEY)))
PAGE = "https://page.example"


@pytest.mark.parametrize("path", ["/echo", "/nowhere", "/openapi.json", "/docs", "/health/", "/metrics"])
@pytest.mark.parametrize(
    "given",
    [
        [],
        [KEY],
        [f"Basic {KEY}"],
        [f"Bearer {KEY[:-1]}"],
        [f"Bearer {KEY}x"],
        ["Bearer "],
        ["Bearer \xff"],
        [f"Bearer {KEY}", f"Bearer {KEY}"],
    ],
    ids=str,
)
def test_without_the_key_nothing_is_answered(path: str, given: list[str]) -> None:
    headers = [(b"authorization", value.encode("latin-1")) for value in given]
    answer = ask(LOCKED, "GET", path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer) == {
        "message": "the API key is missing or wrong: send Authorization: Bearer KEY",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }


def test_how_long_it_takes_says_nothing_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the key is compared with all of each, whether or not one before has matched."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return compare_digest(given, known)

    monkeypatch.setattr(security, "compare_digest", compare)
    assert ask(LOCKED, "GET", "/echo", headers={"Authorization": "Bearer another"}).status_code == 200
    assert [len(key) for pair in compared for key in pair] == [sha256().digest_size] * 4


@pytest.mark.parametrize("key", [KEY, "another"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_key_opens(key: str, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {key}", "Host": "speech.example", "Origin": PAGE}
    assert ask(LOCKED, "POST", "/echo", headers=headers, content=b"abc").json()["bytes"] == 3


def test_health_needs_no_key() -> None:
    assert ask(LOCKED, "GET", "/health").status_code == 200
    assert ask(LOCKED, "GET", "/ready").status_code == 404  # it came through to the application


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080", "[::1]"])
def test_names_of_this_machine(host: str) -> None:
    assert ask(OPEN, "GET", "/echo", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["rebound.example", "rebound.example:8080", "localhost.example", "127.0.0.1.example", ""]
)
@pytest.mark.parametrize("path", ["/echo", "/health"])
def test_a_name_that_somebody_gave_this_machine_is_refused(host: str, path: str) -> None:
    answer = ask(OPEN, "GET", path, headers={"Host": host})
    assert (answer.status_code, error_of(answer)["code"]) == (421, "invalid_host")


def test_any_name_where_others_may_ask_without_a_key() -> None:
    insecure = guarded(echo(), ServeOptions(host="0.0.0.0", insecure=True))
    assert ask(insecure, "GET", "/echo", headers={"Host": "speech.example"}).status_code == 200
    assert ask(insecure, "POST", "/echo", headers={"Host": "speech.example", "Origin": PAGE}).status_code == 403


@pytest.mark.parametrize("origin", [PAGE, "null", "http://127.0.0.1:8081", "http://localhost:8080", "http://127.0.0.1"])
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_a_page_of_others_changes_nothing(origin: str, method: str) -> None:
    answer = ask(OPEN, method, "/echo", headers={"Origin": origin, "Content-Type": "text/plain"}, content=b"{}")
    assert (answer.status_code, error_of(answer)["code"]) == (403, "invalid_origin")
    assert error_of(answer)["type"] == "permission_error"
    assert "access-control-allow-origin" not in answer.headers


def test_an_own_page_and_one_that_was_named_may_ask() -> None:
    assert ask(OPEN, "POST", "/echo", headers={"Origin": "http://127.0.0.1:8080"}).status_code == 200
    named = guarded(echo(), ServeOptions(cors_origins=(PAGE,)))
    answer = ask(named, "POST", "/echo", headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    other = ask(named, "POST", "/echo", headers={"Origin": "https://other.example"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers
    everybody = guarded(echo(), ServeOptions(cors_origins=("*",)))
    assert ask(everybody, "POST", "/echo", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == "*"


def test_a_browser_asks_without_the_key_whether_it_may() -> None:
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-lang",
    }
    app = guarded(echo(), ServeOptions(api_keys=(KEY,), cors_origins=(PAGE,)))
    may = ask(app, "OPTIONS", "/echo", headers=asked)
    assert may.status_code == 200
    assert may.headers["access-control-allow-origin"] == PAGE
    assert may.headers["access-control-allow-headers"] == "authorization,x-stainless-lang"
    assert ask(app, "OPTIONS", "/echo", headers={**asked, "Origin": "https://other.example"}).status_code == 400
    refused = ask(app, "POST", "/echo", headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
    assert ask(LOCKED, "OPTIONS", "/echo", headers=asked).status_code == 401
    assert ask(OPEN, "OPTIONS", "/echo", headers=asked).status_code == 405


@pytest.mark.parametrize("path", ["/echo", "/nowhere", "/fails"])
def test_every_answer_has_an_id(path: str) -> None:
    ids = {ask(OPEN, "GET", path).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(name.startswith("req_") and len(name) == 36 for name in ids)
    assert ask(OPEN, "GET", path, headers={"Host": "rebound.example"}).headers["x-request-id"].startswith("req_")


def test_the_id_is_known_inside() -> None:
    answer = ask(OPEN, "GET", "/echo", headers={"X-Request-Id": "the-clients_own.7"})
    assert answer.headers["x-request-id"] == "the-clients_own.7"
    assert answer.json()["state"] == answer.json()["task"] == "the-clients_own.7"


@pytest.mark.parametrize("given", ["", "a b", "a;b", "x" * 65, "\xe4", "<b>", "%0a"])
def test_an_id_that_may_do_harm_is_not_taken(given: str) -> None:
    answer = ask(OPEN, "GET", "/echo", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert answer.headers["x-request-id"].startswith("req_")


def test_errors_of_the_framework_are_in_the_contracts_shape() -> None:
    nowhere = ask(OPEN, "GET", "/nowhere")
    assert nowhere.status_code == 404
    message = "nothing is at this path: GET /openapi.json lists what there is; a client's base URL ends in /v1"
    assert error_of(nowhere) == {"message": message, "type": "not_found_error", "param": None, "code": None}
    wrong = ask(OPEN, "PUT", "/echo")
    message = "PUT is nothing for this path, which takes GET, POST"
    assert (wrong.status_code, error_of(wrong)["message"]) == (405, message)
    assert wrong.headers["allow"] == "GET, POST"
    item = ask(OPEN, "GET", "/item/secret")
    assert item.status_code == 400
    assert (error_of(item)["param"], error_of(item)["code"]) == ("number", "int_parsing")
    assert "secret" not in item.text


def test_an_error_of_ours_is_cut_and_made_writable() -> None:
    answer = ask(OPEN, "GET", "/says/418")
    assert (answer.status_code, answer.headers["x-own"]) == (418, "1")
    error = error_of(answer)
    assert (error["message"], error["param"]) == ("half ?" + "x" * 294, "?")


def test_what_nobody_expected_is_for_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(OPEN, "GET", "/fails")
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal_error"
    assert "secret" not in answer.text
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        f"{answer.headers[HEADER]}: internal error"
    ]


def test_what_is_raised_before_the_application_is_answered_too(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a secret")

    answer = ask(guarded(broken, ServeOptions()), "GET", "/")
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "a secret" in caplog.text


def test_an_answer_that_breaks_off_is_not_ended(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="a secret"):
        ask(OPEN, "GET", "/breaks")
    assert "an answer breaks off" in caplog.text
