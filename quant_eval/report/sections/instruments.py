"""What instruments say of each level's clips, by themselves and beside the reference's. Does not know the formats."""

from ...metrics.table import METRICS
from ...results import Extra, Results
from ..view import NOTHING, Cell, Section, Table
from ..words import BOUNDS, label_of, number, signed, spread
from .costs import NOT_RUN

_DIGITS = 3


def instruments(results: Results) -> Section:
    """Word error rate and the like."""
    section = Section(
        "extras",
        "Instruments",
        "Programs of others that judge each clip by itself. What is judged is the difference from the reference's "
        "rendition, clip by clip: it is among the gates.",
    )
    if not results.extras:
        return section.without("Not run: no instrument was asked for.")
    levels = [level.level for level in results.levels]
    head = (Cell("Instrument"), *(Cell(label_of(level)) for level in levels))
    scores = Table(
        f"Mean score by level, {BOUNDS}",
        head,
        tuple((_name(each, each.unit), *_scores(each, levels)) for each in results.extras),
        is_wide=True,
    )
    rows = tuple(
        (_name(each, _unit_of_difference(each)), *_differences(each, levels))
        for each in results.extras
        if each.differences
    )
    caption = f"Difference from {label_of(results.reference)}, clip by clip: mean, {BOUNDS}"
    changed = Table(caption, head, rows, is_wide=True)
    return section.of(scores, changed) if rows else section.of(scores)


def _name(extra: Extra, unit: str) -> Cell:
    return Cell(_label(extra), extra.why_not or unit, extra.by)


def _unit_of_difference(extra: Extra) -> str:
    return METRICS[extra.name].unit if extra.name in METRICS else extra.unit


def _label(extra: Extra) -> str:
    return METRICS[extra.name].label if extra.name in METRICS else extra.name


def _digits(extra: Extra) -> int:
    return METRICS[extra.name].digits if extra.name in METRICS else _DIGITS


def _scores(extra: Extra, levels: list[str]) -> list[Cell]:
    cells = []
    for level in levels:
        found, without = extra.values.get(level), extra.without.get(level, 0)
        if found is None:
            cells.append(NOT_RUN if extra.why_not else NOTHING)
            continue
        clips = f"{without} of {found.clips + without} clips have none" if without else ""
        cells.append(Cell(number(found.value, _digits(extra)), spread(found, _digits(extra)), clips))
    return cells


def _differences(extra: Extra, levels: list[str]) -> list[Cell]:
    found = (extra.differences.get(level) for level in levels)
    return [
        NOTHING if each is None else Cell(signed(each.value, _digits(extra)), spread(each, _digits(extra)))
        for each in found
    ]
