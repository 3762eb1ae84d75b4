"""The outcome in one sentence, and what must be seen before anything else. Knows no markup."""

from collections import Counter
from collections.abc import Sequence

from ..metric import STAGES
from ..results import Control, GateResult, LevelResult, Results
from .view import Alert, Mark
from .words import gate_name, label_of, limit, listed, mark_of, measured, metric_of, needed, stage_name, with_unit

_MOST_NAMED = 3
"""Of anything in one sentence."""
_MOST_LINES = 12
"""Of one alert."""
_WHICH = "\0"
"""Stands for a level in a text that is said of several."""


def headline(results: Results) -> str:
    """The outcome in one sentence, the worst first."""
    if astray := [control for control in results.controls if not control.behaved]:
        more = f", nor did {len(astray) - 1} more" if len(astray) > 1 else ""
        return f"This report proves nothing: {_astray(astray[0])}{more}."
    judged = [level for level in results.levels if level.verdict is not None]
    if not judged:
        missing = [f"not measured: {_some(results.missing)}"] if results.missing else []
        reasons = missing or why_not_judged(results) or ["there are no gates for what was run"]
        return f"Nothing was judged: {'; '.join(reasons)}."
    passing = [level for level in judged if level.verdict == "PASS"]
    not_passing = sum(gate.verdict != "PASS" for gate in results.gates)
    are_few = not_passing + len(_missing_elsewhere(results)) <= _MOST_NAMED
    alike: dict[str, list[str]] = {}
    for level in _by_outcome(judged):
        if level.verdict != "PASS":
            alike.setdefault(_short_of(results, level, are_few), []).append(label_of(level.level))
    clauses = [f"{listed(labels)}: {what}" for what, labels in alike.items()]
    if elsewhere := _missing_elsewhere(results):
        number = len(elsewhere)
        things = f"{number} thing{'s' if number > 1 else ''} that {'were' if number > 1 else 'was'} asked for"
        clauses.append(f"not measured: {_some(elsewhere) if are_few else things}")
    if passing:
        who = listed(label_of(level.level) for level in passing)
        if len(passing) > _MOST_NAMED:
            who = f"{len(passing)} levels"
        of = (
            ""
            if set(STAGES) <= set(results.stages)
            else f" of {listed(map(stage_name, results.stages))}, all that was run"
        )
        clauses.append(f"{who} {'passes' if len(passing) == 1 else 'pass'} every gate{of}")
    # That the reference, and OLD of a comparison, are not judged is how it has to be.
    others = [level for level in results.levels if results.kind == "run" and level.level != results.reference]
    return "; ".join([*clauses, *_reasons(others)]) + "."


def why_not_judged(results: Results) -> list[str]:
    """Of the levels that are measured only; once, if it is one level of two bundles."""
    return _reasons(results.levels)


def alerts(results: Results) -> list[Alert]:
    """What spoils the report, what is lacking, and what is undecided."""
    astray = [control for control in results.controls if not control.behaved]
    possible = [
        Alert("FAIL", "Controls did not behave: nothing else in this report counts", tuple(map(_said, astray))),
        Alert("MISSING", "Not measured, though it was asked for", tuple(results.missing)),
        _undecided("BEYOND", "Undecided, beyond the margin: the run fails", results.gates),
        _undecided("INCONCLUSIVE", "Undecided, inside the margin", results.gates),
    ]
    return [_cut(alert) for alert in possible if alert.lines]


def _undecided(mark: Mark, title: str, gates: Sequence[GateResult]) -> Alert:
    return Alert(mark, title, tuple(_in_words(gate) for gate in gates if mark_of(gate) == mark))


def _in_words(gate: GateResult) -> str:
    value, sure = measured(gate)
    sure = sure.replace(", ", ",\N{NO-BREAK SPACE}") if sure.startswith("[") else sure
    unit = "" if gate.kind == "failures" else metric_of(gate.metric).unit
    said = with_unit(f"{value} {sure}", unit) if sure.startswith("[") else ", ".join(filter(None, (value, sure)))
    parts = (f"{label_of(gate.level)}, {gate_name(gate)}: {said}", f"margin {limit(gate)}", needed(gate))
    return "; ".join(filter(None, parts))


def _cut(alert: Alert) -> Alert:
    more = len(alert.lines) - _MOST_LINES
    if more <= 0:
        return alert
    return Alert(alert.mark, alert.title, (*alert.lines[:_MOST_LINES], f"… and {more} more"))


def _short_of(results: Results, level: LevelResult, are_few: bool) -> str:
    """ "2 of 8 gates fail (KLD, semantic; F0 error), 1 undecided"; if there are few, all are named."""
    gates = [gate for gate in results.gates if gate.level == level.level]
    names: dict[Mark, list[str]] = {"FAIL": [], "BEYOND": [], "MISSING": [], "INCONCLUSIVE": []}
    for gate in gates:
        names.get(mark_of(gate), []).append(gate_name(gate))
    words = {"BEYOND": "undecided beyond the margin", "MISSING": "not measured", "INCONCLUSIVE": "undecided"}
    parts: list[str] = []
    for mark, those in names.items():
        if those:
            gate_s = f" of {len(gates)} gates" if not parts else ""
            word = words.get(mark) or ("fails" if len(those) == 1 else "fail")
            which = f" ({_some(those)})" if are_few or mark == "FAIL" else ""
            parts.append(f"{len(those)}{gate_s} {word}{which}")
    return ", ".join(parts) or str(level.verdict)


def _missing_elsewhere(results: Results) -> list[str]:
    """What is missing beside gates, which are counted with their level."""
    gates = {f"{gate.level}: {gate.reason}" for gate in results.gates if gate.verdict == "MISSING"}
    return [what for what in results.missing if what not in gates]


def _by_outcome(levels: Sequence[LevelResult]) -> list[LevelResult]:
    order = ("FAIL", "MISSING", "INCONCLUSIVE", "PASS")
    return sorted(levels, key=lambda level: order.index(level.verdict or "PASS"))


def _reasons(levels: Sequence[LevelResult]) -> list[str]:
    """Those of several levels that are the same but for the level's name as one."""
    alike: dict[str, list[str]] = {}
    for level in levels:
        if level.why_not_judged is not None:
            alike.setdefault(_reason(level).replace(level.level, _WHICH), []).append(level.level)
    return [reason.replace(_WHICH, _first(keys)) for reason, keys in alike.items()]


def _first(names: Sequence[str]) -> str:
    """ "a, b, c and 17 more"."""
    more = len(names) - _MOST_NAMED
    return listed(names if more <= 1 else [*names[:_MOST_NAMED], f"{more} more"])


def _reason(level: LevelResult) -> str:
    why = level.why_not_judged or ""
    return f"{label_of(level.level)} {why}" if why.startswith("not run") else why


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    repeated = Counter(names)
    shown = list(repeated)[:_MOST_NAMED]
    more = len(repeated) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _astray(control: Control) -> str:
    return f"the control {_named(control)} did not behave (expected {control.expected}, found {control.found})"


def _said(control: Control) -> str:
    return f"{_named(control)}: expected {control.expected}, found {control.found}"


def _named(control: Control) -> str:
    judged = [label_of(control.level)] * bool(control.level) + [metric_of(control.metric).label] * bool(control.metric)
    where = f" ({', '.join(judged)})" if judged else ""
    return f"“{control.name}”{where}"
