"""What the verdicts are to be trusted by: damage that has to be found, and the ladder. Does not know the formats."""

import itertools
from collections.abc import Sequence

from ...metrics.table import METRICS
from ...results import Control, Results, Rung
from ..view import NOTHING, Cell, Section, Table, heads
from ..words import SIGNS, label_of, metric_of, number, spread

HALVES = {"backbone": "backbone", "decoder": "depth decoder", "both": "both"}
"""What `Rung.half` says, for people."""


def controls(results: Results) -> Section:
    """Comparisons whose outcome is known beforehand."""
    section = Section(
        "controls",
        "Controls",
        "Comparisons whose outcome is known beforehand: the reference equals itself, and a damage of about twice a "
        "level's margin fails that very gate. If one does not behave, nothing else in this report counts.",
    )
    if not results.controls:
        return section.without("No controls were run: nothing shows that this evaluation can tell good from bad.")
    of_gates = [control for control in results.controls if control.metric]
    others = [control for control in results.controls if not control.metric]
    tables = [_details("What was expected, and what was found", others)] if others else []
    if of_gates:
        tables.append(_matrix(of_gates))
        tables.append(_details("What was damaged for each gate, and what was found", of_gates, is_folded=True))
    return section.of(*tables)


def ladder(results: Results) -> Section:
    """Damages of growing strength, along which every metric must get worse."""
    section = Section(
        "ladder",
        "The ladder of damages",
        "The scales of one half of the model, or of both, are off by more and more. A metric that does not get worse "
        "along the ladder does not see that damage; where a line crosses a level's margin is what the margin allows.",
    )
    if not results.ladder:
        return section.without("Not run: the ladder was not asked for.")
    halves = [half for half in HALVES if any(rung.half == half for rung in results.ladder)]
    rows = tuple(
        (
            Cell(metric_of(key).label, metric_of(key).unit),
            *(_climb(key, rungs_of(results, half)) for half in halves),
        )
        for key in ladder_metrics(results)
    )
    first = Table(
        "From the weakest to the strongest damage",
        (Cell("Metric"), *(Cell(HALVES[half]) for half in halves)),
        rows,
        is_folded=True,
    )
    return section.of(first, *(_rungs_table(results, half) for half in halves))


def rungs_of(results: Results, half: str) -> list[Rung]:
    """Those of one half, the weakest first."""
    return sorted((rung for rung in results.ladder if rung.half == half), key=lambda rung: rung.strength)


def ladder_metrics(results: Results) -> list[str]:
    """Keys of the metrics on the ladder, in the order of the table of metrics."""
    keys = dict.fromkeys(key for rung in results.ladder for key in rung.values)
    return [*(key for key in METRICS if key in keys), *(key for key in keys if key not in METRICS)]


def climb(key: str, values: Sequence[float]) -> str:
    """What a metric does along the ladder, in words. Whether it does enough is for a control to say."""
    direction = metric_of(key).direction
    badness = [-value if direction == "higher" else abs(value) if direction == "zero" else value for value in values]
    steps = [later - earlier for earlier, later in itertools.pairwise(badness)]
    if not any(steps):
        return "the same at every step"
    if badness[-1] <= badness[0]:
        return "not worse at the end"
    return "worse at every step" if min(steps) > 0 else "worse, but not at every step"


def _climb(key: str, rungs: Sequence[Rung]) -> Cell:
    values = [rung.values[key].value for rung in rungs if key in rung.values]
    if len(values) < 2:
        return NOTHING
    digits = metric_of(key).digits
    return Cell(f"{number(values[0], digits)} … {number(values[-1], digits)}", climb(key, values))


def _rungs_table(results: Results, half: str) -> Table:
    rungs, keys = rungs_of(results, half), ladder_metrics(results)
    rows = tuple((Cell(f"{100 * rung.strength:g} %"), *(_value(key, rung) for key in keys)) for rung in rungs)
    head = (Cell("Scales off by"), *(Cell(metric_of(key).label, metric_of(key).unit) for key in keys))
    return Table(f"Damaged: {HALVES[half]}", head, rows, is_folded=True)


def _value(key: str, rung: Rung) -> Cell:
    if key not in rung.values:
        return NOTHING
    digits = metric_of(key).digits
    return Cell(number(rung.values[key].value, digits), spread(rung.values[key], digits))


def _matrix(controls: Sequence[Control]) -> Table:
    """A sign for each gate and level."""
    levels = list(dict.fromkeys(control.level for control in controls))
    keys = dict.fromkeys(control.metric for control in controls)
    ordered = [*(key for key in METRICS if key in keys), *(key for key in keys if key not in METRICS)]
    rows = []
    for key in ordered:
        cells = []
        for level in levels:
            those = [control for control in controls if (control.metric, control.level) == (key, level)]
            cells.append(_sign(those))
        rows.append((Cell(metric_of(key).label), *cells))
    behaved = sum(control.behaved for control in controls)
    caption = f"Does the damage fail its gate at the level's own margin? {behaved} of {len(controls)} do"
    return Table(
        caption, (Cell("Gate"), *(Cell(label_of(level)) for level in levels)), tuple(rows), is_signs=True, is_wide=True
    )


def _sign(controls: Sequence[Control]) -> Cell:
    if not controls:
        return NOTHING
    astray = [control for control in controls if not control.behaved]
    if not astray:
        return Cell(SIGNS["PASS"], mark="PASS", is_plain=True)
    # What came out is a verdict and its figures; these are in the details.
    return Cell(SIGNS["FAIL"], astray[0].found.split(":")[0], mark="FAIL", is_plain=True)


def _details(caption: str, controls: Sequence[Control], is_folded: bool = False) -> Table:
    return Table(
        caption,
        heads("Control", "Expected", "Found", "Behaved"),
        tuple(_row(control) for control in controls),
        words=frozenset({0, 1, 2, 3}),
        is_folded=is_folded,
        is_wide=True,
    )


def _row(control: Control) -> tuple[Cell, ...]:
    gate = ", ".join(
        filter(None, (control.level and label_of(control.level), control.metric and metric_of(control.metric).label))
    )
    mark = ("PASS", "yes") if control.behaved else ("FAIL", "no")
    return (
        Cell(control.name, gate),
        Cell(control.expected),
        Cell(control.found),
        Cell(f"{SIGNS[mark[0]]} {mark[1]}"),  # type: ignore[index]
    )
