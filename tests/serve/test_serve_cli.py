"""`miso-serve` as its operator meets it: help, errors in one line, keys, what is loaded; and one real server."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from builders import Built
from miso_gguf.models.levels import Q4_K_M
from miso_gguf.runtime import choice
from miso_gguf.runtime.fit import MARGIN_BYTES, Room
from miso_gguf.runtime.synthesis import speaker
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve import cli, server
from miso_gguf.serve.keys import read_keys
from miso_gguf.serve.server import bound
from miso_gguf.serve.service import Service

GPU = Room("CUDA0 (card)", MARGIN_BYTES + 30_000_000, 10**9, is_gpu=True)
"""Q4_K_M takes 7.1 MB there, and 4.2 a stream."""


@dataclass
class Result:
    code: int
    err: str
    service: Service | None


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle([Q4_K_M])


@pytest.fixture
def levels() -> Iterator[None]:
    """Afterwards the log tells what it told before: tests that come later read it."""
    names = (None, "miso_gguf.serve", "python_multipart", speaker.__name__)
    kept = [(log, log.level) for log in map(logging.getLogger, names)]
    yield
    for log, level in kept:
        log.setLevel(level)


@pytest.fixture
def serve(
    bundle: Path, levels: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs the command up to where it would load the model and serve."""
    monkeypatch.setenv("MISO_MODEL", str(bundle))
    monkeypatch.delenv("MISO_API_KEY", raising=False)
    begun = list[Service]()

    def run_server(service: Service, listener: Any, started: Callable[[], None], _: Callable[[], None]) -> None:
        begun.append(service)
        started()

    monkeypatch.setattr(server, "run_server", run_server)

    def call(*arguments: object) -> Result:
        begun.clear()
        monkeypatch.setattr(sys, "argv", ["miso-serve", "--port", "0", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(stopped.value.code, int)
        return Result(stopped.value.code, captured.err or captured.out, begun[0] if begun else None)

    return call


def _fails_with(failed: Result, message: str) -> None:
    assert (failed.code, failed.service) == (2, None)
    assert failed.err.startswith("miso-serve: error: ")
    assert message in failed.err
    assert failed.err.count("\n") == 1


def test_help(serve: Callable[..., Result]) -> None:
    shown = serve("--help")
    assert shown.code == 0
    for part in (
        "MISO_MODEL",
        "MISO_API_KEY",
        "default: 8080",
        "--max-streams N|auto",
        "curl http",
        "miso-convert tiny",
    ):
        assert part in shown.err


def test_what_is_asked_for(serve: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--queue", 3, "--max-characters", 99, "--max-seconds", 7, "--grace", 1, "--idle-unload", 60)
    origins = ("--cors-origin", "http://a.example", "--cors-origin", "http://b.example")
    done = serve("--max-streams", 2, *options, *origins, "--voices", tmp_path / "voices", "--log-text")
    assert done.code == 0
    assert re.fullmatch(
        r"miso-serve: http://127\.0\.0\.1:\d+ speaks q4_k_m with 2 streams, no key is needed\n", done.err
    )
    assert done.service is not None
    asked = done.service.options
    assert (asked.streams, asked.queue, asked.most_characters, asked.most_seconds) == (2, 3, 99, 7)
    assert (asked.grace_s, asked.idle_unload_s, asked.log_text) == (1, 60, True)
    assert asked.cors_origins == ("http://a.example", "http://b.example")
    assert asked.voices == tmp_path / "voices"
    assert serve("--quiet").err == ""


@pytest.mark.parametrize(
    ("room", "arguments", "streams"),
    [
        (GPU, [], 5),
        (GPU, ["--kv-type", "q8_0"], 8),
        (GPU, ["--context", 1024], 8),
        (GPU, ["--max-streams", 1], 1),
        (GPU, ["--max-streams", 12, "--kv-type", "f16", "--quant", "Q4_K_M"], 12),
        (GPU, ["--gpu-layers", 0], 4),
        (replace(GPU, free_bytes=MARGIN_BYTES + 6_500_000), [], 1),
    ],
)
def test_streams(
    serve: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    room: Room,
    arguments: list[Any],
    streams: int,
) -> None:
    """What fits, at most 8, or 4 on a CPU; the engine gets as many sequences."""
    monkeypatch.setattr(choice, "memory_here", lambda _: room)
    loaded = dict[str, Any]()
    monkeypatch.setattr(MisoTTS, "load", lambda bundle, level, **named: loaded.update(named))
    service = serve(*arguments).service
    assert service is not None
    assert service.options.streams == streams
    service.model._load()
    assert loaded["options"].sequences == streams


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/place"], "no/such/place"),
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached by others: set a key (--api-key-file or MISO_API_KEY)"),
        (["--api-key-file", "no-such-file"], "no-such-file: No such file or directory, expected a file with one key"),
        (["--api-key-file", "."], ".: Is a directory, expected a file with one key a line"),
        (["--queue", -1], "error: --queue must be a whole number from 0 to 65536, not -1"),
        (["--max-characters", 0], "error: --max-characters must be a whole number from 1 to 1048576, not 0"),
        (["--idle-unload", 0], "error: --idle-unload must be a number"),
        (["--cors-origin", "example.org"], "'example.org' is no origin: expected one like https://example.org"),
        (["--cors-origin", "https://example.org/"], "'https://example.org/' is no origin"),
        (["--cors-origin", "https://A.example"], "'https://A.example' is no origin"),
        (["--quant", "f32"], "has no level f32, only q4_k_m"),
        (["--require-gpu", "--gpu-layers", 0], "--require-gpu and --gpu-layers 0"),
    ],
)
def test_errors_are_one_line(serve: Callable[..., Result], arguments: list[Any], message: str) -> None:
    _fails_with(serve(*arguments), message)


@pytest.mark.parametrize("streams", ["0", "257", "many"])
def test_numbers_of_streams_that_are_none(serve: Callable[..., Result], streams: str) -> None:
    failed = serve("--max-streams", streams)
    assert failed.code == 2
    assert streams in failed.err


def test_no_model(serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISO_MODEL")
    _fails_with(serve(), "which model? Pass --model DIR, or set MISO_MODEL")


def test_a_port_that_is_taken(serve: Callable[..., Result]) -> None:
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        _fails_with(serve("--port", port), f"127.0.0.1:{port} cannot be had")


def test_an_address_of_another_machine() -> None:
    with pytest.raises(OSError, match=r"203\.0\.113\.1:0 cannot be had: .*Choose another --host\."):
        bound("203.0.113.1", 0)


@pytest.mark.parametrize("package", cli._PACKAGES)
def test_without_the_extra(serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    _fails_with(serve(), f"miso-serve needs the package {package}: pip install 'miso-gguf[serve]'")


# Keys


def test_keys_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISO_API_KEY", "of-the-environment")
    file = tmp_path / "keys"
    file.write_text("# ours\n\n  first-key \nsecond\n")
    file.chmod(0o600)
    assert read_keys(file) == ("first-key", "second")
    assert not caplog.records
    file.write_bytes(b"\xef\xbb\xbffirst-key\r\nsecond\r\n")  # as Windows writes it
    assert read_keys(file) == ("first-key", "second")
    file.chmod(0o604)
    assert read_keys(file) == ("first-key", "second")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"chmod 600 {file}" in caplog.text


@pytest.mark.parametrize(("value", "keys"), [("one", ("one",)), ("", ()), ("  ", ())])
def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, keys: tuple[str, ...]) -> None:
    monkeypatch.setenv("MISO_API_KEY", value)
    assert read_keys(None) == keys
    monkeypatch.delenv("MISO_API_KEY")
    assert read_keys(None) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no key"),
        (b"# nothing\n\n", "has no key"),
        (b"ok\nsecret word\n", "line 2: a key is of ASCII letters"),
        ("schlüssel\n".encode(), "line 1: a key is of ASCII letters"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_keys_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ValueError, match=message) as error:
        read_keys(file)
    assert str(file) in str(error.value)
    assert "secret" not in str(error.value)


def test_an_address_for_others(serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = serve("--host", "0.0.0.0", "--insecure", "--quiet")
    assert shown.err == "WARNING: whoever reaches 0.0.0.0 can use this server and its voices: no key is needed\n"
    monkeypatch.setenv("MISO_API_KEY", "a-key")
    shown = serve("--host", "0.0.0.0")
    assert shown.err.endswith(", a key is needed\n")
    assert "a-key" not in shown.err
    assert shown.service is not None
    assert shown.service.options.api_keys == ("a-key",)


def test_the_log_of_requests_is_shown(serve: Callable[..., Result]) -> None:
    log = logging.getLogger("miso_gguf.serve")
    for arguments, level in (([], logging.INFO), (["--quiet"], logging.ERROR), (["--debug"], logging.DEBUG)):
        assert serve(*arguments).code == 0
        assert log.getEffectiveLevel() == level


def test_forms_that_are_none_write_no_lines(serve: Callable[..., Result]) -> None:
    parser = logging.getLogger("python_multipart.multipart")
    for arguments, level in (([], logging.ERROR), (["--debug"], logging.DEBUG)):
        assert serve(*arguments).code == 0
        assert parser.getEffectiveLevel() == level


# The real thing


LOADS_FOREVER = """
import threading
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve import cli

def load(*_, **named):
    print("loading", flush=True)
    threading.Event().wait()

MisoTTS.load = load
cli.main()
"""


def test_a_second_signal_ends_it_while_the_model_is_loaded(bundle: Path) -> None:
    line = [sys.executable, "-c", LOADS_FOREVER, "--model", str(bundle), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            said = process.stderr.readline().split(maxsplit=1)
            assert said == ["NOTE", "stopping when the model is loaded; once more ends at once\n"]
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.6)  # what comes at once is the same signal
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 2
            assert process.stderr.read() == "miso-serve: interrupted while loading\n"
        finally:
            process.kill()


def test_it_serves_until_it_is_told_to_stop(bundle: Path) -> None:
    line = [sys.executable, "-m", "miso_gguf.serve.cli", "--model", str(bundle), "--threads", "1", "--port", "0"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MISO_")}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stderr is not None
            said = [process.stderr.readline() for _ in range(2)]
            assert re.fullmatch(r"INFO +Miso-Tiny loaded in [\d.]+ s\n", said[0]), said
            found = re.search(r"http://127\.0\.0\.1:\d+", said[1])
            assert found is not None, said
            assert httpx.get(f"{found[0]}/ready").json() == {"status": "ready"}
            speech = {"model": "miso", "voice": "default", "input": "Hello.", "response_format": "pcm"}
            spoken = httpx.post(f"{found[0]}/v1/audio/speech", json=speech, timeout=60)
            assert spoken.status_code == 200
            assert len(spoken.content) > 24_000
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            log = process.stderr.read()
            assert "Traceback" not in log
            assert "of speech in" in log
            assert "Hello" not in log  # which this model never finishes: its voice says so, with the sentence
        finally:
            process.kill()
