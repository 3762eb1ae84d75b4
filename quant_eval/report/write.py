"""All reports of one evaluation, written to a folder. Knows what they are called, and nothing of what is in them."""

from collections.abc import Callable
from pathlib import Path

from ...core.errors import MisoError
from ...core.files import write_whole
from ..results import Results
from . import html, junit, markdown

JSON_NAME = "results.json"
"""The source of all the others."""


def write_reports(results: Results, audio_dir: Path, out_dir: Path, *, strict: bool = False) -> list[Path]:
    """Write results.json, report.md, comment.md, junit.xml and report.html, each whole or not at all.

    Args:
        results: The source of all of them.
        audio_dir: Where the clips' audio is.
        out_dir: Made if need be; files of these names are replaced.
        strict: INCONCLUSIVE counts as a failure in JUnit.

    Returns:
        What was written, in that order.

    Raises:
        MisoError: A file cannot be written, or the extra `eval` is missing; what needs no extra is written before.
    """
    texts: dict[str, Callable[[], str]] = {
        JSON_NAME: lambda: results.model_dump_json(indent=2) + "\n",
        "report.md": lambda: markdown.report(results),
        "comment.md": lambda: markdown.comment(results),
        "junit.xml": lambda: junit.junit_xml(results, strict=strict),
        "report.html": lambda: html.page(results, audio_dir),
    }
    return [_write(out_dir / name, text()) for name, text in texts.items()]


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Surrogates, which no encoding has, can come from file names.
        write_whole(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise MisoError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error
    return path
