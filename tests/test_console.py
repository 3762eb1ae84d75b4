"""Commands whose output nobody reads, or nobody can write: the work is done and the answer stays."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from rich.console import Console

from builders import MICRO, Built
from miso_gguf.console import DONE, counted_bar, table
from miso_gguf.console import run as run_command
from miso_gguf.convert import cli as convert_cli
from miso_gguf.core.note import NOTE
from miso_gguf.models.levels import Q8_0
from miso_gguf.models.manifest import MANIFEST_NAME
from miso_gguf.quant_eval import cli as eval_cli
from miso_gguf.runtime import cli as speak_cli

FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and /dev/full")


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle([Q8_0], MICRO)


@contextmanager
def closed_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def command(first: str = "") -> list[str]:
    """miso-convert as a process of its own, which ends as Python ends."""
    return [sys.executable, "-c", f"{first}\nfrom miso_gguf.convert.cli import main; main()"]


def run_process(*arguments: object, first: str = "", out: int, err: int = subprocess.PIPE) -> tuple[int, str | None]:
    line = [*command(first), *map(str, arguments)]
    done = subprocess.run(line, stdout=out, stderr=err, text=True, check=False, env=ENVIRONMENT)
    return done.returncode, done.stderr


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(main: Callable[[], None], *arguments: object, out: int) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["miso", *map(str, arguments)])
        with os.fdopen(out, "w", closefd=False) as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            with pytest.raises(SystemExit) as stopped:
                main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, capsys.readouterr().err

    return call


Arguments = Callable[[Path], list[object]]
COMMANDS: dict[str, tuple[Callable[[], None], Arguments, int]] = {
    "inspect": (convert_cli.main, lambda bundle: ["inspect", bundle], 0),
    "inspect as JSON": (convert_cli.main, lambda bundle: ["inspect", bundle, "--json"], 0),
    "verify": (convert_cli.main, lambda bundle: ["verify", bundle], 0),
    "verify that says no": (convert_cli.main, lambda bundle: ["verify", bundle.parent / "bad", "--json"], 1),
    "not a bundle": (convert_cli.main, lambda bundle: ["inspect", bundle.parent], 2),
    "no such option": (convert_cli.main, lambda _: ["--no-such-option"], 2),
    "help": (convert_cli.main, lambda _: ["--help"], 0),
    "version": (convert_cli.main, lambda _: ["--version"], 0),
    "fit": (speak_cli.main, lambda bundle: ["--fit", "--model", bundle, "--gpu-layers", "0"], 0),
    "fit as JSON": (speak_cli.main, lambda bundle: ["--fit", "--model", bundle, "--gpu-layers", "0", "--json"], 0),
    "help of evaluation": (eval_cli.main, lambda _: ["run", "--help"], 0),
}


@pytest.fixture(scope="module")
def bad(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle, and beside it one that is not."""
    place = tmp_path_factory.mktemp("bundles")
    (place / "good").symlink_to(bundle)
    (place / "bad").mkdir()
    (place / "bad" / MANIFEST_NAME).write_text("{")
    return place / "good"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_seen_enough(command: str, bad: Path, run: Run) -> None:
    main, arguments, code = COMMANDS[command]
    with closed_pipe() as nobody:
        found, error = run(main, *arguments(bad), out=nobody)
    assert (found, bool(error)) == (code, code == 2)
    assert "pipe" not in error.lower()


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["inspect", "inspect as JSON", "help", "fit", "verify that says no"])
def test_a_full_disk(command: str, bad: Path, run: Run) -> None:
    main, arguments, _ = COMMANDS[command]
    with FULL.open("w") as full:
        code, error = run(main, *arguments(bad), out=full.fileno())
    assert code == 2
    assert re.fullmatch("miso.*: error: standard output cannot be written: No space left on device\n", error)


def test_nothing_is_said_at_the_end(bad: Path) -> None:
    with closed_pipe() as nobody:
        assert run_process("inspect", bad, "--json", out=nobody) == (0, "")
    if FULL.exists():
        with FULL.open("w") as full:
            code, error = run_process("inspect", bad, "--json", out=full.fileno())
        assert (code, str(error).count("\n")) == (2, 1)


def test_a_conversion_goes_on(tmp_path: Path) -> None:
    with closed_pipe() as nobody:
        assert run_process("tiny", "--quant", "q8_0", "--out", tmp_path, "--json", out=nobody, err=nobody)[0] == 0
    assert (tmp_path / MANIFEST_NAME).is_file()


@pytest.mark.parametrize("moment", range(2))
def test_a_conversion_that_is_asked_to_end_leaves_nothing(tmp_path: Path, moment: int) -> None:
    """By SIGTERM, again and again as impatient programs do, at a random moment after the first file is begun."""
    line = [*command(), "tiny", "--quant", "q4_k_m", "--quant", "fp16", "--out", "out", "--threads", "1"]
    with subprocess.Popen(line, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while process.poll() is None and not list(tmp_path.glob("out/*.miso-partial")):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3) * moment)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        code, errors = process.wait(60), process.stderr.read()
    assert (code, errors.split()) == (2, ["interrupted"])
    assert list((tmp_path / "out").iterdir()) == []


def test_words_of_strangers_are_shown_as_they_are() -> None:
    console = Console(width=60, file=StringIO())
    console.print(table("[red]a[/nothing]", ["[b]c"], [["[/]"], ["a\x1b[31m\nb"]]))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    for words in ("[red]a[/nothing]", "[b]c", "[/]", r"'a\x1b[31m\nb'"):
        assert words in shown
    assert "\x1b" not in shown


def test_what_is_opened_does_not_become_a_standard_stream(tmp_path: Path) -> None:
    """Standard error closed: without care, descriptor 2 would be a file of the bundle, and have llama.cpp's words."""
    first = (
        "import os; os.close(1); os.close(2)\n"
        "from miso_gguf.convert.sink import Sink\n"
        "original = Sink.__init__\n"
        "def noted(self, *args):\n"
        "    original(self, *args)\n"
        "    assert self._file.fileno() > 2\n"
        "Sink.__init__ = noted\n"
    )
    assert run_process("tiny", "--quant", "q8_0", "--out", tmp_path, first=first, out=subprocess.DEVNULL)[0] == 0
    assert (tmp_path / MANIFEST_NAME).is_file()


def test_a_note_is_no_warning_and_either_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> None:
        getLogger("a").warning("known %s", "x " * 80, extra=NOTE)
        getLogger("a").warning("wrong %s", "x " * 80)

    assert run_command(command, [], "command") == DONE
    noted, warned = capsys.readouterr().err.splitlines()
    assert (noted.split()[:2], warned.split()[:2]) == (["NOTE", "known"], ["WARNING", "wrong"])


@pytest.mark.parametrize("command", [convert_cli.convert, convert_cli.inspect, convert_cli.verify, speak_cli.speak])
def test_every_option_is_explained(command: click.Command) -> None:
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize(
    ("step_s", "patience_s", "said"), [(0.1, 2.0, ""), (1.5, 2.0, "reading ...\n"), (1.5, 0.0, "")]
)
def test_a_bar_that_waits(
    step_s: float, patience_s: float, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is quick is not worth a line; and two that follow each other are no error."""
    now = [100.0]
    monkeypatch.setattr("miso_gguf.console.time", SimpleNamespace(monotonic=lambda: now[0]))
    with counted_bar("reading", patience_s) as first, counted_bar("working") as second:
        for done in range(1, 6):
            first(done, 5)
            now[0] += step_s
        second(0, 3)
        second(3, 3)
    assert capfd.readouterr().err == said


def test_a_bar_is_told_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    @contextmanager
    def noted(label: str, total: int) -> Iterator[Callable[[int], None]]:
        told.append((label, total))
        yield told.append
        told.append("closed")

    monkeypatch.setattr("miso_gguf.console.progress_bar", noted)
    with counted_bar("working") as tell:
        for done in (0, 2, 2, 5):
            tell(done, 5)
        assert told == [("working", 5), 0, 2, 0, 3, "closed"]
