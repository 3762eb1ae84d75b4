"""How numbers, levels, margins and verdicts are worded, in every format. Knows no markup."""

from collections.abc import Iterable

from ...models.levels import LEVELS
from ..metric import DIFFERENCE, FREE, LOGITS, ONE_STEP, Metric
from ..metrics.table import METRICS
from ..results import Control, Estimate, GateResult, Results, Verdict

SIGNS: dict[Verdict, str] = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}
"""Beside the word, so that nobody has to tell colours apart."""

_NBSP = "\N{NO-BREAK SPACE}"
_IN_WORDS = {"ln": "(ln)"}
_DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "zero": "best at 0"}
_STAGE_NAMES: dict[str, str] = {LOGITS: "teacher-forced logits", ONE_STEP: "one-step decode", FREE: "free run"}


def label_of(level: str) -> str:
    """A level as tables call it; controls and names of other bundles stay as they are."""
    return LEVELS[level].label if level in LEVELS else level


def metric_of(key: str) -> Metric:
    """The declared metric, or a plain one for a key that this version does not know."""
    return METRICS.get(key) or Metric(key, FREE, "", "zero", key, "Not known to this version.", DIFFERENCE, digits=3)


def stage_name(stage: str) -> str:
    """A stage in words."""
    return _STAGE_NAMES.get(stage, stage)


def number(value: float, digits: int) -> str:
    """`value` with that many decimals. An exact zero is "0", and what would be rounded to it is "2.1e−7"."""
    if value == 0:
        return "0"
    text = f"{value:,.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(estimate: Estimate, digits: int) -> str:
    """The 95 % interval."""
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def with_unit(text: str, unit: str) -> str:
    """A number and its unit, on one line."""
    return f"{text}{_NBSP}{_IN_WORDS.get(unit, unit)}" if unit else text


def quantity(metric: Metric) -> str:
    """The unit of a metric and which values are good: "nats, lower is better"."""
    return ", ".join(filter(None, (metric.unit, _DIRECTIONS[metric.direction])))


def mebibytes(size_bytes: int) -> str:
    """Memory, in MiB as the tools of GPUs print it."""
    size = size_bytes / 2**20
    return with_unit(f"{size:,.0f}" if size >= 100 else f"{size:,.1f}", "MiB")


def margin(gate: GateResult) -> str:
    """What is tolerated: "≤ 0.06"."""
    metric = metric_of(gate.metric)
    signs = {"at_most": "≤ ", "at_least": "≥ ", "within": "±", "failures": "≤ "}
    by_direction = {"lower": "≤ ", "higher": "≥ ", "zero": "±"}
    sign = signs.get(gate.kind) or by_direction[metric.direction]
    # A margin is written by hand: as many digits as it has, not as many as are worth measuring.
    return f"{sign}{gate.margin:g}".replace("-", "\N{MINUS SIGN}")


def listed(items: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *front, last = list(items) or [""]
    return f"{', '.join(front)} and {last}" if front else last


def headline(results: Results) -> str:
    """The outcome in one sentence."""
    if astray := [control for control in results.controls if not control.behaved]:
        return f"This report proves nothing: {listed(map(_astray, astray))}."
    judged = {
        level.level: level.verdict for level in results.levels if level.verdict is not None and not level.is_control
    }
    not_judged = why_not_judged(results)
    if not judged:
        return f"Nothing was judged: {'; '.join(not_judged) or 'there are no gates for what was run'}."
    clauses = []
    passing = [label_of(level) for level, verdict in judged.items() if verdict == "PASS"]
    if passing:
        clauses.append(f"{listed(passing)} {'passes' if len(passing) == 1 else 'pass'} every gate")
    for verdict, verb in (("INCONCLUSIVE", "is undecided on"), ("FAIL", "fails")):
        for level in (level for level, found in judged.items() if found == verdict):
            gates = [gate for gate in results.gates if gate.level == level]
            against = [gate_name(gate) for gate in gates if gate.verdict == verdict]
            clauses.append(f"{label_of(level)} {verb} {len(against)} of {len(gates)} gates ({'; '.join(against)})")
    return "; ".join([*clauses, *not_judged]) + "."


def why_not_judged(results: Results) -> list[str]:
    """Of the levels that are measured only; once, if it is one level of two bundles."""
    return list(dict.fromkeys(level.why_not_judged for level in results.levels if level.why_not_judged is not None))


def gate_name(gate: GateResult) -> str:
    """The label of its metric; one against the last accepted results says so."""
    return metric_of(gate.metric).label + (" (history)" if gate.kind == "history" else "")


def _astray(control: Control) -> str:
    return f"the control “{control.name}” did not behave (expected {control.expected}, found {control.found})"
