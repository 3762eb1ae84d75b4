"""What our commands share: errors as one line, exit codes, progress bars and tables. Imported by `cli.py` files only.

A command outlives who reads it: `| head -1` ends what is shown, not the work, and does not change the answer.

Exit codes: 0 done, 1 the answer is "no", 2 could not do it.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol, TextIO, TypeVar, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .core.errors import MisoError
from .core.interrupts import interruptible
from .core.note import is_note
from .core.printable import printable

DONE, NO, FAILED = 0, 1, 2

_PIPED_WIDTH = 120
"""Columns when the output is no terminal: a log, a file, a CI page."""


_Command = TypeVar("_Command", bound=Callable[..., Any])


def _width(stream: TextIO | None) -> int | None:
    """Columns, None for the terminal's own. A closed stream is None: `command >&-`."""
    return None if stream is not None and stream.isatty() else _PIPED_WIDTH


stderr = Console(stderr=True, width=_width(sys.stderr))
stdout = Console(width=_width(sys.stdout))


class _Stream:
    """Standard output or error, whose end does not end the command: what cannot be written any more goes nowhere.

    Bytes written to its `buffer` are as they were: whoever makes sound for a player wants to know that it was closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        """Why it could not be written. That nobody reads a pipe any more is none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        abandon(self._stream)
        if not isinstance(error, BrokenPipeError):
            self.failure = error


def abandon(stream: TextIO) -> None:
    """Let what is left in a stream's buffer, and all that comes, go nowhere, without a complaint at exit."""
    with suppress(OSError):  # what is no file has no end either
        descriptor, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _open_closed() -> None:
    """Take the place of standard streams that are closed, or the next file would have it, and get what is printed."""
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)


def run(command: click.Command, arguments: Sequence[str], name: str) -> int:
    """Run a click command and return its exit code; a traceback is shown only with `--debug`.

    Whatever asks it to end, SIGTERM too, is Ctrl-C: see `interruptible`.
    """
    _open_closed()
    kept = sys.stdout, sys.stderr
    # Python has None for one that is closed: `command >&-`.
    out, err = (_Stream(stream) if stream is not None else None for stream in kept)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        with interruptible():
            return _outcome(command, arguments, name, out, err)
    finally:
        sys.stdout, sys.stderr = kept


def _outcome(
    command: click.Command, arguments: Sequence[str], name: str, out: _Stream | None, err: _Stream | None
) -> int:
    try:
        code = _run(command, arguments, name)
    except KeyboardInterrupt:
        stderr.print("interrupted", style="yellow")
        code = FAILED
    for stream in filter(None, (out, err)):
        stream.flush()
    if out is not None and (failure := out.failure):
        _say_error(name, f"error: standard output cannot be written: {failure.strerror}")
        return FAILED
    return code


def _say_error(name: str, message: str) -> None:
    line = f"{name.split(maxsplit=1)[0]}: {message}"
    stderr.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def _run(command: click.Command, arguments: Sequence[str], name: str) -> int:
    debug = "--debug" in arguments
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        handlers=[_Lines()],
        force=True,
    )
    for library, level in (
        ("filelock", logging.WARNING),
        ("gguf", logging.WARNING),
        ("huggingface_hub", logging.ERROR),
    ):
        logging.getLogger(library).setLevel(level)
    try:
        result = command.main(args=list(arguments), prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return FAILED
    except click.Abort as abort:  # what click makes of an interrupt
        raise KeyboardInterrupt from abort
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, MisoError | ValueError | OSError | MemoryError)
        kind = "error" if expected else f"internal error ({type(error).__name__}), --debug shows where"
        # Notes as of `add_note`, which Python 3.10 lacks.
        _say_error(name, "; ".join([f"{kind}: {str(error) or type(error).__name__}", *getattr(error, "__notes__", ())]))
        return FAILED
    except SystemExit as stopped:  # click's answer to a broken pipe, which is none of the standard streams here
        _say_error(name, f"error: {stopped.__context__ or 'stopped'}")
        return FAILED
    return result if isinstance(result, int) else DONE


class _Lines(logging.Handler):
    """The log, each record a line that only the terminal breaks."""

    def emit(self, record: logging.LogRecord) -> None:
        label = "NOTE" if is_note(record) else record.levelname
        style = f"logging.level.{'info' if label == 'NOTE' else label.lower()}"
        stderr.print(Text.assemble((f"{label:8} ", style), self.format(record)), soft_wrap=True)


class Bar(Protocol):
    """Advances a progress bar."""

    def __call__(self, amount: int) -> None: ...  # noqa: D102


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Bar]:
    """A bar on stderr; nothing at all when that is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=max(total, 1))
        yield lambda amount: progress.advance(task, amount)


@contextmanager
def counted_bar(label: str, patience_s: float = 0.0) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told what is done, and of how much. It appears with the first call after `patience_s`.

    Where there is no terminal, what takes longer than that is one line.
    """
    begin: float | None = None
    advance: Bar | None = None
    seen = 0
    with ExitStack() as stack:

        def tell(done: int, total: int) -> None:
            nonlocal begin, advance, seen
            begin = time.monotonic() if begin is None else begin
            if advance is None and time.monotonic() - begin >= patience_s:
                if patience_s and not stderr.is_terminal:
                    stderr.print(f"{label} ...", highlight=False)
                advance = stack.enter_context(progress_bar(label, total))
            if advance is not None:
                advance(done - seen)
                seen = done
                if done >= total:
                    stack.close()  # two bars at a time are an error

        yield tell


@contextmanager
def status(message: str, *, is_shown: bool = True) -> Iterator[Callable[[str], None]]:
    """A line on stderr that changes with what is yielded; nothing where that is no terminal."""
    if not (is_shown and stderr.is_terminal):
        yield lambda _: None
        return
    with stderr.status(message) as shown:
        yield shown.update


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> Table:
    """A table; `numeric` columns are right-aligned. What is in it may be from strangers, and is shown as it is."""
    result = Table(title=_plain(title, "table.title"), title_justify="left")
    for index, column in enumerate(columns):
        result.add_column(_plain(column), justify="right" if index in numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*map(_plain, row))
    return result


def _plain(text: str, style: str = "") -> Text:
    """No markup, and nothing that a terminal obeys."""
    return Text(printable(text), style)


def computing_options(codec_providers: Sequence[str], auto: str) -> Callable[[_Command], _Command]:
    """The options of a command that loads a model: where it computes. `auto` is what follows from memory."""
    options = (
        click.option(
            "--threads", type=click.IntRange(1), metavar="N", help="CPU threads [default: see docs/runtime.md]."
        ),
        click.option(
            "--gpu-layers", type=click.IntRange(-1), metavar="N", help="Layers on the GPU, 0 for none [default: all]."
        ),
        click.option("--main-gpu", type=click.IntRange(0), default=0, metavar="N", help="Which GPU."),
        click.option(
            "--kv-type",
            type=click.Choice([auto, "f16", "q8_0"]),
            default=auto,
            show_default=True,
            help="KV cache; q8_0 takes half. auto is f16, or on a GPU q8_0 where the level fits only so.",
        ),
        click.option(
            "--context", type=click.IntRange(1), metavar="N", help="Positions [default: the model's own, 2048]."
        ),
        click.option("--require-gpu", is_flag=True, help="Fail without a GPU, instead of going on with the CPU."),
        click.option(
            "--codec-provider",
            type=click.Choice(codec_providers),
            default=codec_providers[0],
            help="Where the codec runs.",
        ),
    )

    def added(command: _Command) -> _Command:
        for option in reversed(options):  # as decorators are: the last one stands nearest to the command
            command = option(command)
        return command

    return added
