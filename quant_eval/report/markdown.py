"""The report as GitHub-flavoured Markdown: in full for a CI step summary, and short for a comment on a pull request.

No images and no links: what it says is in tables. All text from outside is escaped.
"""

import re
from collections.abc import Iterable, Iterator

from ..results import Results
from .headline import alerts, headline
from .outline import basis, sections, title
from .view import Alert, Cell, Mark, Section, Table
from .words import MARK_WORDS

REPORT_BYTES = 1_000_000
"""Below the 1 MiB of a step summary. Source: GitHub Docs, "Workflow commands", step isolation and limits."""
COMMENT_BYTES = 64_000
"""Below the 65 536 characters of a comment."""
MARKS: dict[Mark, str] = {
    "PASS": "✅",
    "FAIL": "❌",
    "BEYOND": "🔴",
    "INCONCLUSIVE": "🟡",
    "MISSING": "🟣",
    "NOT_RUN": "⚪",
}

_IN_A_COMMENT = ("verdicts", "costs", "attribution", "controls")
_LONGEST_QUOTE = 300
_SPECIAL = re.compile(r"([\\`*\[|~$]|(?<![^\W_])_|_(?![^\W_]))")
_LINE_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[#+\-=]))")


def report(results: Results) -> str:
    """The whole report. Sections that would not fit into `REPORT_BYTES` are left out, and that is said."""
    parts = [*_opening(results), *_notes(results), *map(_section, sections(results))]
    return fitted(parts, REPORT_BYTES)


def comment(results: Results) -> str:
    """Verdicts, costs, which half does the damage, controls and notes; at most `COMMENT_BYTES`."""
    chosen = [section for section in sections(results) if section.key in _IN_A_COMMENT and not section.missing]
    parts = [*_opening(results), *(_section(section, is_short=True) for section in chosen), *_notes(results)]
    return fitted(parts, COMMENT_BYTES)


def escaped(text: str) -> str:
    """Text that means itself: on one line, no markup, no HTML, nobody mentioned."""
    text = " ".join(_printable(text).split())
    text = _SPECIAL.sub(r"\\\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"@(?=\w)", "@\N{ZERO WIDTH SPACE}", text)
    return _LINE_START.sub(r"\1\\", text)


def quoted(text: str) -> str:
    """Somebody's words as a code span, in which nothing means anything; for a table, so bars are escaped."""
    text = " ".join(_printable(text).split())
    if len(text) > _LONGEST_QUOTE:
        text = text[: _LONGEST_QUOTE - 1] + "…"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}".replace("|", r"\|") if text else ""


def fitted(parts: list[str], limit_bytes: int) -> str:
    """The parts that fit, in order, with a line at the end if those are not all."""
    cut = "_Some of it did not fit here: see the HTML report._"
    room = limit_bytes - len(cut.encode()) - 1
    kept: list[str] = []
    for part in parts:
        size = len(part.encode()) + 2
        if size <= room:
            room -= size
            kept.append(part)
    return "\n\n".join(kept if len(kept) == len(parts) else [*kept, cut]) + "\n"


def _opening(results: Results) -> list[str]:
    mark = f"{MARKS[results.verdict]} " if results.verdict else ""
    told = [f"# {escaped(title(results))}", f"{mark}**{escaped(headline(results))}**", escaped(basis(results))]
    return [*told, *map(_alert, alerts(results))]


def _alert(alert: Alert) -> str:
    lines = "\n".join(f"- {escaped(line)}" for line in alert.lines)
    return f"{MARKS[alert.mark]} **{escaped(alert.title)}**\n\n{lines}"


def _notes(results: Results) -> list[str]:
    if not results.notes:
        return []
    return ["## Notes\n\n" + "\n".join(f"- {escaped(note)}" for note in results.notes)]


def _section(section: Section, is_short: bool = False) -> str:
    parts = [f"## {section.title}"]
    if section.missing:
        parts.append(f"_{escaped(section.missing)}_")
    else:
        parts += [] if is_short else [escaped(section.intro)]
        parts += [_table(table) for table in section.tables if table.is_matrix or not (is_short and table.is_folded)]
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    aligns = ("---" if index in table.words else "---:" for index in range(len(table.head)))
    written = _judged if table.is_matrix else _cell
    rows = (_row(map(written, row)) for row in table.rows)
    lines = [_row(map(_cell, table.head)), f"| {' | '.join(aligns)} |", *rows]
    body = "\n".join(lines)
    if table.is_folded:
        return f"<details><summary>{escaped(table.caption)}</summary>\n\n{body}\n\n</details>"
    return f"**{escaped(table.caption)}**\n\n{body}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = quoted(cell.text) if cell.is_quote else escaped(cell.text)
    mark = (f"{MARKS[cell.mark]} {MARK_WORDS[cell.mark]}",) if cell.mark and not cell.is_plain else ()
    return "<br>".join(filter(None, (text, *_small(cell), *mark)))


def _judged(cell: Cell) -> str:
    """A cell of a matrix: its mark first, and a word only where it is no plain PASS."""
    if cell.mark is None or cell.is_plain:
        return _cell(cell)
    word = "" if cell.mark == "PASS" else f"{MARK_WORDS[cell.mark]}<br>"
    return f"{MARKS[cell.mark]} {word}{'<br>'.join((escaped(cell.text), *_small(cell)))}"


def _small(cell: Cell) -> Iterator[str]:
    return (f"<sub>{escaped(line)}</sub>" for line in (cell.detail, cell.aside) if line)


def _printable(text: str) -> str:
    """Without control characters, and with whatever separates lines as a space."""
    return "".join(character if character.isprintable() else " " for character in text)
