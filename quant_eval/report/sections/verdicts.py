"""What was judged: the verdict matrix and the controls. Does not know the formats."""

from ...results import Control, GateResult, LevelResult, Results
from ..view import NOTHING, Cell, Section, Table, heads
from ..words import SIGNS, gate_name, interval, label_of, margin, metric_of, number, quantity, why_not_judged


def verdicts(results: Results) -> Section:
    """Level x gate: value, interval, margin, verdict."""
    section = Section(
        "verdicts",
        "Verdicts",
        f"Each level against {label_of(results.reference)}. A gate passes or fails only when the whole 95 % interval "
        "is on one side of the margin; where it straddles it, the answer is INCONCLUSIVE and more prompts are needed.",
    )
    columns = [level for level in results.levels if not level.is_control and _gates_of(results, level.level)]
    if not columns:
        why = "; ".join(why_not_judged(results)) or "there are no gates for what was run"
        return section.without(f"Nothing was judged: {why}.")
    names = [level.level for level in columns]
    matrix = _matrix(results, columns)
    reasons = Table(
        "The reasons in words",
        heads("Level", "Gate", "Reason"),
        tuple(
            (Cell(label_of(gate.level)), Cell(gate_name(gate), _p_value(gate), verdict=gate.verdict), Cell(gate.reason))
            for name in names
            for gate in _gates_of(results, name)
        ),
        words=frozenset({0, 1, 2}),
        is_folded=True,
        is_wide=True,
    )
    shown_only = [level for level in results.levels if level.why_not_judged is not None]
    if not shown_only:
        return section.of(matrix, reasons)
    rows = tuple((Cell(label_of(level.level)), Cell(level.why_not_judged or "")) for level in shown_only)
    return section.of(matrix, Table("Not judged", heads("Level", "Why"), rows, words=frozenset({0, 1})), reasons)


def controls(results: Results) -> Section:
    """Comparisons whose outcome is known beforehand, and the gates of those that have any."""
    section = Section(
        "controls",
        "Controls",
        "Comparisons whose outcome is known beforehand. If one does not behave, nothing else in this report counts.",
    )
    if not results.controls:
        return section.without("No controls were run: nothing shows that this evaluation can tell good from bad.")
    table = Table(
        "What was expected, and what was found",
        heads("Control", "Expected", "Found", "Behaved"),
        tuple(_control_row(control) for control in results.controls),
        words=frozenset({0, 1, 2, 3}),
        is_wide=True,
    )
    columns = [level for level in results.levels if level.is_control and _gates_of(results, level.level)]
    return section.of(table, _matrix(results, columns)) if columns else section.of(table)


def _matrix(results: Results, columns: list[LevelResult]) -> Table:
    """Gates as rows and levels as columns, in the order of the results."""
    gates = [gate for level in columns for gate in _gates_of(results, level.level)]
    kinds = list(dict.fromkeys((gate.metric, gate.kind == "history") for gate in gates))
    found = {(gate.level, gate.metric, gate.kind == "history"): gate for gate in gates}
    rows = []
    for metric, is_history in kinds:
        row = [found.get((level.level, metric, is_history)) for level in columns]
        name = next(gate_name(gate) for gate in row if gate is not None)
        rows.append((Cell(name, quantity(metric_of(metric))), *map(_judged, row)))
    head = (Cell("Gate"), *(Cell(label_of(level.level), verdict=level.verdict) for level in columns))
    return Table("Value, 95 % interval, margin, verdict", head, tuple(rows), is_matrix=True, is_wide=True)


def _judged(gate: GateResult | None) -> Cell:
    if gate is None:
        return NOTHING
    digits = metric_of(gate.metric).digits
    if gate.estimate is None:
        return Cell("not measured", aside=f"margin {margin(gate)}", verdict=gate.verdict)
    value, bounds = number(gate.estimate.value, digits), interval(gate.estimate, digits)
    return Cell(value, bounds, f"margin {margin(gate)}", gate.verdict)


def _control_row(control: Control) -> tuple[Cell, ...]:
    sign, word = (SIGNS["PASS"], "yes") if control.behaved else (SIGNS["FAIL"], "no")
    return Cell(control.name), Cell(control.expected), Cell(control.found), Cell(f"{sign} {word}")


def _p_value(gate: GateResult) -> str:
    if gate.p_value is None:
        return ""
    return "p < 0.001" if gate.p_value < 0.001 else f"p = {gate.p_value:.3f}"


def _gates_of(results: Results, level: str) -> list[GateResult]:
    return [gate for gate in results.gates if gate.level == level]
