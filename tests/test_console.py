"""Commands whose output nobody reads, or nobody can write: the work is done and the answer stays."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from builders import MICRO, Built
from miso_gguf.console import table
from miso_gguf.models.levels import Q8_0
from miso_gguf.models.manifest import MANIFEST_NAME

CONVERT, SPEAK, EVAL = "convert", "runtime", "quant_eval"
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


def run(room: str, *arguments: object, out: int, err: int = subprocess.PIPE) -> tuple[int, str | None]:
    program = f"from miso_gguf.{room}.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=out,
        stderr=err,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.returncode, done.stderr


COMMANDS: dict[str, tuple[str, Callable[[Path], list[object]], int]] = {
    "inspect": (CONVERT, lambda bundle: ["inspect", bundle], 0),
    "verify that says no": (CONVERT, lambda bundle: ["verify", bundle.parent / "bad", "--json"], 1),
    "help": (CONVERT, lambda _: ["--help"], 0),
    "fit": (SPEAK, lambda bundle: ["--fit", "--model", bundle, "--gpu-layers", "0"], 0),
    "help of evaluation": (EVAL, lambda _: ["run", "--help"], 0),
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
def test_a_reader_that_has_seen_enough(command: str, bad: Path) -> None:
    room, arguments, code = COMMANDS[command]
    with closed_pipe() as nobody:
        assert run(room, *arguments(bad), out=nobody) == (code, "")


def test_a_conversion_goes_on(tmp_path: Path) -> None:
    with closed_pipe() as nobody:
        assert run(CONVERT, "tiny", "--quant", "q8_0", "--out", tmp_path, "--json", out=nobody, err=nobody)[0] == 0
    assert (tmp_path / MANIFEST_NAME).is_file()


def test_errors_stay_errors() -> None:
    with closed_pipe() as nobody:
        assert run(CONVERT, "--no-such-option", out=nobody, err=nobody)[0] == 2


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["inspect", "help"])
def test_a_full_disk(command: str, bad: Path) -> None:
    room, arguments, _ = COMMANDS[command]
    with FULL.open("w") as full:
        code, error = run(room, *arguments(bad), out=full.fileno())
    assert (code, error) == (
        2,
        "miso-convert: error: standard output cannot be written: No space left on device\n",
    )


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
    program = (
        "import os, sys; os.close(1); os.close(2)\n"
        "from miso_gguf.convert import bundle\n"
        "original = bundle.Sink.__init__\n"
        "def noted(self, *args):\n"
        "    original(self, *args)\n"
        "    assert self._file.fileno() > 2\n"
        "bundle.Sink.__init__ = noted\n"
        "from miso_gguf.convert.cli import main; main()"
    )
    arguments = ["tiny", "--quant", "q8_0", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0
    assert (tmp_path / MANIFEST_NAME).is_file()
