"""`miso-speak` while its text comes, several lines at once, and what is kept when it does not get to the end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import soundfile

from builders import Built
from miso_gguf import Voice
from miso_gguf.models.levels import Q4_K_M
from miso_gguf.runtime import cli
from miso_gguf.runtime.audio.pipe import open_output
from miso_gguf.runtime.synthesis.speaker import Speaker

COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from miso_gguf.runtime.cli import main; main()"
)
SHORT = ("--max-seconds", "0.4", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle([Q4_K_M])


@contextmanager
def speaking(bundle: Path, directory: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """The command as a process, and its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments, *SHORT],
        env={**os.environ, "MISO_MODEL": str(bundle)},
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    try:
        assert process.stdin is not None
        yield process, process.stdin
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def speak(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISO_MODEL", str(bundle))

    def call(*arguments: str, given: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(given)))
        monkeypatch.setattr(sys, "argv", ["miso-speak", *arguments, *SHORT])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert not list(tmp_path.glob(".*.miso-partial"))
        return int(str(stopped.value.code)), captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("first", "second"),
    [(b"Hello there.\n", b"Goodbye now.\n"), (b'{"text": "Hello there."}\n', b'{"text": "Bye."}\n')],
)
def test_the_first_line_is_heard_before_the_second_comes(
    bundle: Path, tmp_path: Path, first: bytes, second: bytes
) -> None:
    with speaking(bundle, tmp_path, "-", "--out", "-") as (process, text):
        assert process.stdout is not None
        text.write(first)
        heard = process.stdout.read(3840)
        assert heard
        text.write(second)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(heard + out) / 2 >= 2 * 4 * 1920


def test_pieces_give_the_sound_of_the_whole(speak: Callable[..., tuple[int, str, str]]) -> None:
    text = "Hello there, my good old friend. How are you today, my dear? I am quite well."
    assert speak("-", "--out", "pieces.wav", given=text.encode())[0] == 0
    assert speak(text, "--out", "whole.wav")[0] == 0
    assert Path("pieces.wav").read_bytes() == Path("whole.wav").read_bytes()


def test_an_interrupt_while_text_is_awaited(bundle: Path, tmp_path: Path) -> None:
    with speaking(bundle, tmp_path, "-", "--out", "-", "--debug") as (process, text):
        assert process.stdout is not None
        text.write(b"0: Hello there.\n")
        assert process.stdout.read(3840)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 2
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors


def test_an_error_in_a_later_line(speak: Callable[..., tuple[int, str, str]]) -> None:
    given = b'{"text": "Hello."}\n{"text": "Hi."}\n{"text": "Bye.", "voice": "none.safetensors"}\n'
    code, out, errors = speak("-", "--json", "--out", "a.wav", given=given)
    assert code == 2
    said = json.loads(out)
    assert ([sentence["text"] for sentence in said["sentences"]], said["is_whole"]) == (["Hello.", "Hi."], False)
    kept = re.fullmatch(
        r"miso-speak: error: line 3: none\.safetensors: no such voice .*; a\.wav: (\d\.\d) s of speech are kept\n",
        errors,
    )
    assert kept
    info = soundfile.info("a.wav")
    assert info.duration == pytest.approx(float(kept[1]), abs=0.06)
    assert said["seconds"] == pytest.approx(info.duration, abs=1e-3)


@pytest.mark.parametrize(
    "given", [b'{"text": 3}\n', b"", b'{"text": "a", "voice": "none.safetensors"}\n', b"caf\xe9\n"]
)
def test_what_is_wrong_with_the_first_line_is_said_before_the_model_is_loaded(
    speak: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, given: bytes
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(cli, "_load", load)
    code, out, errors = speak("-", given=given)
    assert (code, out) == (2, "")
    assert errors.startswith("miso-speak: error: ")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("options", [(), ("--loudness", "-20")])
def test_a_model_that_fails_half_way_loses_nothing(
    speak: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    sentence, sentences = Speaker._sentence, list[str]()

    def failing(self: Speaker, text: str) -> Any:
        sentences.append(text)
        if len(sentences) == 3:
            raise MemoryError("no memory left")
        return sentence(self, text)

    monkeypatch.setattr(Speaker, "_sentence", failing)
    text = "Hello there, my good old friend. How are you today, my dear? I am quite well, thank you so much."
    code, out, errors = speak(text, "--out", "a.wav", *options)
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"miso-speak: error: no memory left; a\.wav: 0\.\d s of speech are kept\n", errors.splitlines(keepends=True)[-1]
    )
    assert soundfile.info("a.wav").duration == pytest.approx(0.9, abs=0.03)


def test_an_interrupt_when_the_file_is_begun_leaves_none(
    speak: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heard when the file is known to be undone, and not before."""

    def interrupted(target: str, rate: int) -> Any:
        writer = open_output(target, rate)
        os.kill(os.getpid(), signal.SIGINT)
        return writer

    def load(*_: object) -> None:
        time.sleep(30)
        raise AssertionError("not interrupted")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(cli, "open_output", interrupted)
        monkeypatch.setattr(cli, "_load", load)
        code, _, errors = speak("Hello there.")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 2
    assert errors.splitlines()[-1] == "interrupted"
    assert not list(Path().iterdir())


def test_independent_lines_are_spoken_alone(speak: Callable[..., tuple[int, str, str]]) -> None:
    for number in (0, 1):
        codes = np.full((5, 8), number + 1, np.int64)
        Voice(codes, "I am.", number).save(f"{number}.safetensors")
    lines = [{"text": f"This is line {n}.", "speaker": n % 2, "voice": f"{n % 2}.safetensors"} for n in range(4)]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = {}
    for name, *options in (
        ("alone", "--independent"),
        ("together", "--independent", "--sequences", "3"),
        ("dialogue",),
    ):
        code, out, errors = speak("--file", "lines.jsonl", "--json", "--out", f"{name}.wav", *options)
        assert code == 0, errors
        said[name] = json.loads(out)
    rows = {name: [sentence["prompt_rows"] for sentence in facts["sentences"]] for name, facts in said.items()}
    assert rows["alone"] == rows["together"] == [rows["alone"][0]] * 4
    assert rows["dialogue"][0] > rows["alone"][0]
    assert rows["dialogue"] == sorted(set(rows["dialogue"]))
    assert [sentence["speaker"] for sentence in said["together"]["sentences"]] == [0, 1, 0, 1]
    assert said["together"]["seconds"] == pytest.approx(said["alone"]["seconds"], abs=0.5)


def test_sequences_are_for_several_lines(speak: Callable[..., tuple[int, str, str]]) -> None:
    """Plain text that comes is one turn: it is spoken as it comes all the same."""
    assert speak("-", "--independent", "--sequences", "2", "--out", "a.wav", given=b"Hello there.")[0] == 0
    assert speak("Hello there.", "--out", "b.wav")[0] == 0
    assert soundfile.info("a.wav").frames == soundfile.info("b.wav").frames
