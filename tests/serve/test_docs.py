"""What docs/serve.md shows is done here: its commands against a real server, its Python, and its requests."""

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from clips import clip, tone
from serving import serving
from speaking import load_tts

from builders import Built
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service
from miso_gguf.serve.speech.request import SpeechRequest

TEXT = (Path(__file__).parents[2] / "docs/serve.md").read_text("utf-8")
ADDRESS, EXAMPLE_ID = "http://127.0.0.1:8080", "voice_0123456789abcdef01234567"
PLAYER = '#!/bin/sh\ncat > heard.pcm\n[ "$*" = "-f S16_LE -c 1 -r 24000" ]\n'


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader is: with a recording of himself, and a player."""
    place = tmp_path_factory.mktemp("reader")
    (place / "me.wav").write_bytes(clip(tone(1.0)))
    (place / "bin").mkdir()
    (place / "bin/aplay").write_text(PLAYER)
    (place / "bin/aplay").chmod(0o755)
    return place


@pytest.fixture(scope="module")
def address(built: Built, place: Path) -> Iterator[str]:
    options = ServeOptions(voices=place / "voices")
    with serving(Service(options, "tiny", lambda: load_tts(built.tiny("q4_k_m"), "q4_k_m"))) as address:
        yield address


def shell(command: str, place: Path, address: str) -> bytes:
    """What a command prints. It fails where the server's answer is an error, too."""
    command = command.replace("curl ", "curl --fail-with-body -sS ", 1).replace(ADDRESS, address)
    for uploaded in (place / "voices").glob("voice_*"):
        command = command.replace(EXAMPLE_ID, uploaded.stem)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail\n{command}"],
        cwd=place,
        env=os.environ | {"PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "MISO_API_KEY": "x"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return done.stdout


def check_events(said: bytes, _: Path) -> None:
    *deltas, done = [json.loads(event.removeprefix(b"data: ")) for event in said.strip().split(b"\n\n")]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert done["type"] == "speech.audio.done"


def check_file(name: str, kind: str) -> Callable[[bytes, Path], None]:
    def check(said: bytes, place: Path) -> None:
        assert said == b""
        check_sound((place / name).read_bytes(), kind)

    return check


def check_sound(content: bytes, kind: str) -> None:
    with av.open(io.BytesIO(content)) as container:
        assert container.format.name == kind
        assert np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).any()


def check_pcm(said: bytes, place: Path) -> None:
    assert said == b""
    assert np.frombuffer((place / "heard.pcm").read_bytes(), "<i2").any()


def check_json(**expected: object) -> Callable[[bytes, Path], None]:
    def check(said: bytes, _: Path) -> None:
        answer = json.loads(said)
        assert {name: answer[name] for name in expected} == expected

    return check


def check_metrics(said: bytes, _: Path) -> None:
    shown = set(re.findall(r"^\| `(.*?)(?:\{.*?\})?`", TEXT[TEXT.index("### Metrics") :], re.MULTILINE))
    assert "process_*" in shown
    for name in shown:
        if name.startswith("miso_"):
            assert f"\n{name}".encode() in said
    for line in re.findall(r"^# TYPE (\w+) \w+$", said.decode(), re.MULTILINE):
        assert line.startswith("process_") or line.removesuffix("_created") in TEXT


CHECKS: list[tuple[str, Callable[[bytes, Path], None]]] = [
    ("Hello there.", check_file("hello.mp3", "mp3")),
    ("aplay", check_pcm),
    ("/health", check_json(status="ok", model="tiny", speaking=0)),
    ('"sse"', check_events),
    ("-F name=anna", check_json(object="audio.voice", name="anna")),
    ("/v1/audio/voices", check_json(object="list")),
    ("Sounds like me.", check_file("me-too.mp3", "mp3")),
    (EXAMPLE_ID, check_json(object="audio.voice", name="anna")),
    ("DELETE", check_json(object="audio.voice.deleted", deleted=True)),
    ("/v1/models -H", check_json(object="list")),
    ("/v1/models", check_json(object="list")),
    ("/ready", check_json(status="ready")),
    ("/metrics", check_metrics),
]
"""What each command has in it, in their order, and what it is to give."""


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="no curl")
def test_every_command_does_what_it_says(place: Path, address: str) -> None:
    assert len(COMMANDS) == len(CHECKS)
    for command, (mark, check) in zip(COMMANDS, CHECKS, strict=True):
        assert mark in command
        check(shell(command, place, address), place)


def test_its_python_runs(place: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (snippet,) = blocks("python")
    heard: list[bytes] = []
    assert ADDRESS in snippet
    exec(snippet.replace(ADDRESS, address), {"play": heard.append})
    check_sound(Path("whole.mp3").read_bytes(), "mp3")
    check_sound(Path("take.wav").read_bytes(), "wav")
    assert np.frombuffer(b"".join(heard), "<i2").any()


def test_its_requests_are_requests() -> None:
    requests = blocks("json")
    assert requests
    for request in requests:
        SpeechRequest.read(request.encode(), 4096)


def test_it_names_every_field() -> None:
    table = TEXT[TEXT.index("## A request") : TEXT.index("### Formats")]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    assert named == set(SpeechRequest.model_fields)
