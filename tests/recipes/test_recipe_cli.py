"""The command: what it prints, its exit codes, and that every command in its manual runs as it stands there."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import miso_gguf
from miso_gguf.convert import cli as convert_cli
from miso_gguf.recipes import cli
from miso_gguf.recipes.collector import Collector
from miso_gguf.runtime import cli as speak_cli

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--prompts", "2", "--threads", "1", "--gpu-layers", "0")
DOCS = Path(miso_gguf.__file__).parent / "docs" / "recipes.md"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`miso-recipe`, or another of our commands, in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object, main: Callable[[], None] = cli.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["miso-recipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, captured.out, captured.err

    return call


def test_it_says_what_it_does_and_what_it_did(run: Run, speaking: Path, tmp_path: Path) -> None:
    command = ("imatrix", speaking, "--out", tmp_path, *SMALL)
    code, out, err = run(*command)
    assert code == 0
    said = r"2 clips, about \d+ s of speech \(tiny:2 \(\w+\), said by f32, seed 0\); about \d+ s\. "
    assert re.match(said, err)
    assert re.search(r"backbone +│ +29 │", out)
    assert re.search(r"decoder +│ +15 │", out)
    assert re.search(r"^\d+ frames, \d+\.\d s$", out, re.MULTILINE)
    code, out, _ = run(*command)
    assert code == 0
    assert "both files were there already: nothing was done" in out
    code, out, _ = run(*command, "--json")
    found = json.loads(out)
    assert (found["was_there"], set(found["files"])) == (True, {"backbone", "decoder"})
    assert found["files"]["decoder"]["chunk_rows"] == 8


def test_what_cannot_be_done_is_one_line(run: Run, speaking: Path, tmp_path: Path) -> None:
    (tmp_path / "mute").mkdir()
    cases = {
        ("imatrix", tmp_path / "nowhere", "--out", tmp_path / "out"): "no such directory",
        ("imatrix", speaking, "--out", tmp_path / "out", "--quant", "q8_0"): "has no level q8_0, only f32, q4_k_m",
        ("imatrix", speaking, "--out", tmp_path / "out", "--recordings", tmp_path / "mute"): "has no recordings",
        ("imatrix", speaking, "--out", tmp_path / "out", "--corpus", "none.jsonl"): "no such corpus",
        ("merge", tmp_path, "--out", tmp_path / "out"): "a merge takes two directories or more",
        ("merge", tmp_path, tmp_path / "mute", "--out", tmp_path / "out"): "no such file",
    }
    for arguments, said in cases.items():
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert said in err
        assert re.fullmatch(r"miso-recipe: error: [^\n]+\n", err)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_is_no_answer(run: Run, speaking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Collector, "hear", interrupt)
    code, _, err = run("imatrix", speaking, "--out", tmp_path, *SMALL)
    assert code == 2
    assert "interrupted" in err


@pytest.mark.parametrize("command", [("imatrix",), ("merge",), ()])
def test_it_helps(run: Run, command: tuple[str, ...]) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage: miso-recipe" in out


@pytest.mark.long
def test_the_manuals_commands_run_as_they_stand_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Two threads on cores that others use wait for each other.
    monkeypatch.setattr("miso_gguf.native.threads._cores", lambda: 1)
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    mains = {"miso-recipe": cli.main, "miso-convert": convert_cli.main, "miso-speak": speak_cli.main}
    ran = 0
    for line in "".join(blocks).splitlines():
        command = shlex.split(line, comments=True)
        if main := mains.get(command[0]):
            code, _, err = run(*command[1:], main=main)
            assert code == 0, (line, err)
            ran += 1
        else:
            subprocess.run(line, shell=True, check=True)
    assert ran == 8
