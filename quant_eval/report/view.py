"""What a report consists of before it has a format: sections, tables, cells. Knows no results and no markup."""

from dataclasses import dataclass, replace
from typing import Literal

Mark = Literal["PASS", "FAIL", "BEYOND", "INCONCLUSIVE", "MISSING", "NOT_RUN"]
"""A verdict; BEYOND is an INCONCLUSIVE one that fails the run, NOT_RUN what nobody asked for."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table, as plain text: whoever renders it escapes it.

    Attributes:
        text: What is read first.
        detail: A second line, smaller.
        aside: A third line, smaller.
        mark: Colours the cell and adds its sign and word.
        is_plain: Whether its mark only colours it, because the text says it already.
        is_quote: Somebody's words, shown as such.
    """

    text: str
    detail: str = ""
    aside: str = ""
    mark: Mark | None = None
    is_plain: bool = False
    is_quote: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: What it holds.
        head: One cell a column.
        rows: As long as the head, each.
        words: Indices of columns that hold words, not numbers.
        is_folded: True for details that few readers want.
        is_matrix: True where the cells are judged: one that stays readable on a phone, a line a cell.
        is_signs: True where all cells but the first are signs.
        is_wide: True for one that needs the width of a page; others may stand beside a plot.
    """

    caption: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: frozenset[int] = frozenset({0})
    is_folded: bool = False
    is_matrix: bool = False
    is_signs: bool = False
    is_wide: bool = False

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows)


@dataclass(frozen=True)
class Section:
    """A part of a report. `missing` says why there is nothing to show, and then there are no tables."""

    key: str
    title: str
    intro: str
    tables: tuple[Table, ...] = ()
    missing: str = ""

    def of(self, *tables: Table) -> "Section":
        """The same with these tables."""
        return replace(self, tables=tables)

    def without(self, why: str) -> "Section":
        """The same with nothing to show."""
        return replace(self, missing=why)


@dataclass(frozen=True)
class Alert:
    """What is to be seen before all sections: a mark, what it is about, and a sentence for each case."""

    mark: Mark
    title: str
    lines: tuple[str, ...]


NOTHING = Cell("—")


def heads(*texts: str) -> tuple[Cell, ...]:
    """Cells of plain text."""
    return tuple(Cell(text) for text in texts)
