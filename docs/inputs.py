"""Writes docs/inputs.md from the tests' cases of what people bring, with the words that really come out: `make docs`.

It runs every case. `tests/convert/checkpoint/test_inputs.py` does too, and finds a row that is no longer right.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from input_cases import SECTIONS, Case, Kit, base_inputs, outcome

DOCUMENT = Path(__file__).with_name("inputs.md")
_HEAD = """# What is accepted, and what is said of the rest

What people pass to `miso-convert`, and what it answers; how it finds the weights is in [convert.md](convert.md). Every
row is a test, and its words are those that come out (`make docs` writes them). Files and folders have the names that
the tests gave them, `FOLDER` and `x` among them; `converted` is where nothing is said. What opens and fits is never
refused for its name, its suffix, or what lies beside it.
"""
_LINES = 3


def row(case: Case, accepted: bool, said: str) -> str:
    """One line of a table."""
    lines = said.splitlines()
    shown = "<br>".join(f"`{line.strip()}`" for line in lines[:_LINES]) + ("<br>..." if len(lines) > _LINES else "")
    cells = (case.have, "yes" if accepted else "no", shown or "converted")
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def table(title: str, rows: list[str]) -> str:
    """A section of the document."""
    return "\n".join([f"\n## {title}\n", "| what you have | accepted | what is said |", "|---|---|---|", *rows, ""])


def _sections() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        base = base_inputs(Path(directory, "base"))
        for title, cases in SECTIONS.items():
            rows: list[str] = []
            for case in cases:
                place = Path(directory, f"{title}-{len(rows)}")
                place.mkdir()
                rows.append(row(case, *outcome(case, Kit(place, base))))
            yield table(title, rows)


if __name__ == "__main__":
    DOCUMENT.write_text(_HEAD + "".join(_sections()), "utf-8")
