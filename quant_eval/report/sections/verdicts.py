"""What was judged: a matrix of verdicts, and what decides them. Does not know the formats."""

from collections.abc import Iterable, Sequence

from ...gates.judge import RULES
from ...results import GateResult, LevelResult, Results
from ..headline import why_not_judged
from ..view import NOTHING, Cell, Section, Table, heads
from ..words import (
    BOUNDS,
    MARK_WORDS,
    SIGNS,
    gate_name,
    judges_change,
    label_of,
    limit,
    mark_of,
    measured,
    metric_of,
    needed,
    quantity,
)

_GROUPS = ("", "history", "anchor", "paired")
_CAPTIONS = {
    "": f"Value, {BOUNDS}, margin, verdict",
    "history": f"Change since the last accepted evaluation, {BOUNDS}, what is tolerated, verdict",
    "anchor": f"Change since the anchor, the first accepted evaluation, {BOUNDS}, what is tolerated, verdict",
    "paired": f"NEW's distance less OLD's, {BOUNDS}, what is tolerated, verdict",
}


def verdicts(results: Results) -> Section:
    """Level x gate: value, bounds, margin, verdict."""
    reference = label_of(results.reference)
    whose = (
        f"NEW against OLD, clip by clip: by how much is NEW further from {reference} than OLD is?"
        if results.kind == "compare"
        else f"Each level against {reference}."
    )
    section = Section(
        "verdicts",
        "Verdicts",
        f"{whose} The true value lies above the lower and below the upper of the {BOUNDS}; PASS is the bound on the "
        "margin's side inside the margin. A level is as good as its worst gate, the run as its worst level.",
    )
    columns = [level for level in results.levels if _is_shown(results, level)]
    if not any(_gates_of(results, level.level) for level in columns):
        why = "; ".join([*results.missing, *why_not_judged(results)]) or "there are no gates for what was run"
        return section.without(f"Nothing was judged: {why}.")
    return section.of(*_matrices(results, columns), *_not_judged(results), _reasons(results, columns), _rules())


def _matrices(results: Results, columns: Sequence[LevelResult]) -> list[Table]:
    """Gates as rows and levels as columns, in the order of the results: one of what is, others of what changed.

    Those of changes are folded if all pass.
    """
    tables: list[Table] = []
    for group in _GROUPS:
        gates = [gate for level in columns for gate in _gates_of(results, level.level) if _group(gate) == group]
        if gates:
            tables.append(_matrix(results, group, gates, columns, is_first=not tables))
    return tables


def _matrix(
    results: Results, group: str, gates: list[GateResult], columns: Sequence[LevelResult], *, is_first: bool
) -> Table:
    by_place = {(gate.level, gate.metric): gate for gate in gates}
    levels = [level for level in columns if is_first or any(gate.level == level.level for gate in gates)]
    rows = []
    for key in dict.fromkeys(gate.metric for gate in gates):
        row = [by_place.get((level.level, key)) for level in levels]
        name = next(gate_name(gate) for gate in row if gate is not None)
        cells = (_judged(gate, level) for gate, level in zip(row, levels, strict=True))
        rows.append((Cell(name, quantity(metric_of(key))), *cells))
    head = (
        Cell("Gate"),
        *(_level_head(results, level) if is_first else Cell(label_of(level.level)) for level in levels),
    )
    all_pass = all(gate.verdict == "PASS" for gate in gates)
    caption = _CAPTIONS[group]
    if all_pass and not is_first:
        caption = f"{caption.split(',')[0]}: all {len(gates)} pass"
    return Table(caption, head, tuple(rows), is_matrix=True, is_wide=True, is_folded=all_pass and not is_first)


def _level_head(results: Results, level: LevelResult) -> Cell:
    """Its name and verdict; the reference is there because another, finer one was its judge."""
    if level.verdict is None:
        return Cell(label_of(level.level), mark="NOT_RUN")
    is_judge_of_all = level.level == results.reference
    return Cell(label_of(level.level), "against F32" if is_judge_of_all else "", mark=level.verdict)


def _judged(gate: GateResult | None, level: LevelResult) -> Cell:
    if gate is None:
        return NOTHING if level.verdict is not None else Cell(MARK_WORDS["NOT_RUN"], mark="NOT_RUN", is_plain=True)
    value, sure = measured(gate)
    word = "tolerated" if judges_change(gate) else "margin"
    wanted = "; ".join(filter(None, (f"{word} {limit(gate)}", needed(gate))))
    return Cell(value, sure, wanted, mark_of(gate))


def _not_judged(results: Results) -> list[Table]:
    shown_only = [level for level in results.levels if level.why_not_judged is not None]
    if not shown_only:
        return []
    rows = tuple((Cell(label_of(level.level)), Cell(_why(results, level))) for level in shown_only)
    return [Table("Not judged", heads("Level", "Why"), rows, words=frozenset({0, 1}))]


def _why(results: Results, level: LevelResult) -> str:
    """The reason; of the reference also that its equality with itself is no verdict but a control."""
    is_control = level.level == results.reference and any(not control.metric for control in results.controls)
    more = "; that it says the same every time is one of the controls" if is_control else ""
    return f"{level.why_not_judged}{more}"


def _reasons(results: Results, columns: Iterable[LevelResult]) -> Table:
    return Table(
        "The reasons in words",
        heads("Level", "Gate", "Reason"),
        tuple(
            (
                Cell(label_of(gate.level)),
                Cell(gate_name(gate), _p_value(gate), mark=mark_of(gate)),
                Cell(gate.reason, needed(gate)),
            )
            for level in columns
            for gate in _gates_of(results, level.level)
        ),
        words=frozenset({0, 1, 2}),
        is_folded=True,
        is_wide=True,
    )


def _rules() -> Table:
    return Table(
        "What decides",
        heads("Verdict", "Rule"),
        tuple(map(_rule, RULES)),
        words=frozenset({0, 1}),
        is_folded=True,
        is_wide=True,
    )


def _rule(text: str) -> tuple[Cell, Cell]:
    """A paragraph, and the verdict that it begins with, if it does."""
    word, _, rest = text.partition(": ")
    for mark in SIGNS:
        if word == mark:
            return Cell(f"{SIGNS[mark]} {word}", mark=mark, is_plain=True), Cell(rest[0].upper() + rest[1:])
    return Cell(""), Cell(text)


def _p_value(gate: GateResult) -> str:
    if gate.p_value is None:
        return ""
    return "p < 0.001" if gate.p_value < 0.001 else f"p = {gate.p_value:.3f}"


def _group(gate: GateResult) -> str:
    return gate.kind if judges_change(gate) else ""


def _is_shown(results: Results, level: LevelResult) -> bool:
    """Levels with gates, and the reference of a run: that it is not judged must be seen."""
    is_reference = results.kind == "run" and level.level == results.reference
    return bool(_gates_of(results, level.level)) or (is_reference and level.why_not_judged is not None)


def _gates_of(results: Results, level: str) -> list[GateResult]:
    return [gate for gate in results.gates if gate.level == level]
