"""What our commands share: errors as one line, exit codes, progress bars and tables. Imported by `cli.py` files only.

Exit codes: 0 done, 1 the answer is "no", 2 could not do it.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .core.errors import MisoError

DONE, NO, FAILED = 0, 1, 2

_PIPED_WIDTH = 120
"""Columns when the output is no terminal: a log, a file, a CI page."""


def _width(stream: TextIO | None) -> int | None:
    """Columns, None for the terminal's own. A closed stream is None: `command >&-`."""
    return None if stream is not None and stream.isatty() else _PIPED_WIDTH


stderr = Console(stderr=True, width=_width(sys.stderr))
stdout = Console(width=_width(sys.stdout))


def run(command: click.Command, arguments: Sequence[str], name: str) -> int:
    """Run a click command and return its exit code; a traceback is shown only with `--debug`."""
    debug = "--debug" in arguments
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=stderr, show_time=False, show_path=False)],
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
    except (KeyboardInterrupt, click.Abort):
        stderr.print("interrupted", style="yellow")
        return FAILED
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, MisoError | ValueError | OSError | MemoryError)
        kind = "error" if expected else f"internal error ({type(error).__name__}), --debug shows where"
        message = f"{name.split(maxsplit=1)[0]}: {kind}: {str(error) or type(error).__name__}"
        stderr.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    return result if isinstance(result, int) else DONE


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


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> Table:
    """A table; `numeric` columns are right-aligned."""
    result = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        result.add_column(column, justify="right" if index in numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result
