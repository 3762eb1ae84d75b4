"""How numbers, levels, margins and gates are worded, in every format. Knows no markup and no whole report."""

import re
from collections.abc import Iterable

from ...models.levels import LEVELS
from ..metric import DIFFERENCE, FREE, LOGITS, ONE_STEP, RECORDINGS, Metric
from ..metrics.table import METRICS
from ..results import Estimate, GateResult
from .view import Mark

SIGNS: dict[Mark, str] = {
    "PASS": "✓",
    "FAIL": "✗",
    "BEYOND": "✗?",
    "INCONCLUSIVE": "?",
    "MISSING": "∅",
    "NOT_RUN": "·",
}
"""Beside the word, so that nobody has to tell colours apart."""
MARK_WORDS: dict[Mark, str] = {
    "PASS": "PASS",
    "FAIL": "FAIL",
    "BEYOND": "undecided, beyond the margin",
    "INCONCLUSIVE": "INCONCLUSIVE",
    "MISSING": "MISSING",
    "NOT_RUN": "not run",
}
BOUNDS = "bounds of 95 % each"
"""What two numbers in brackets are, wherever they stand: see `Estimate`."""

_CHANGES = {
    "history": "change since the last accepted",
    "anchor": "change since the anchor",
    "paired": "NEW against OLD",
}
"""Kinds of gates that judge a change, and what it is a change from."""
_SIDES = {"old": "OLD", "new": "NEW"}
_COUNTED = re.compile(r"(?P<new>\d+)(?: new, (?P<cured>\d+) cured)? of (?P<clips>\d+) clips")
"""How `gates/judge.py` gives its reasons for counts."""
_NBSP = "\N{NO-BREAK SPACE}"
_IN_WORDS = {"ln": "(ln)"}
_DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "zero": "best at 0"}
_STAGE_NAMES: dict[str, str] = {LOGITS: "teacher-forced logits", ONE_STEP: "one-step decode", FREE: "free run"}


def label_of(level: str) -> str:
    """A level as tables call it, OLD and NEW of a comparison; controls stay as they are."""
    return LEVELS[level].label if level in LEVELS else _SIDES.get(level, level)


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


def signed(value: float, digits: int) -> str:
    """A change: "+0.031"."""
    return f"{'+' if value > 0 else ''}{number(value, digits)}"


def interval(estimate: Estimate, digits: int) -> str:
    """Its bounds."""
    return f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def spread(estimate: Estimate, digits: int) -> str:
    """Its bounds, or that there is nothing between them: every clip has the same value."""
    return interval(estimate, digits) if estimate.low != estimate.high else "in every clip"


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
    """What is tolerated: "≤ 0.06". Of a change, how much for the worse: "≥ −0.5"."""
    direction = metric_of(gate.metric).direction
    size, sign = gate.margin, {"at_most": "≤ ", "at_least": "≥ ", "within": "±", "failures": "≤ "}.get(gate.kind)
    if sign is None:
        sign = {"lower": "≤ +", "higher": "≥ ", "zero": "±"}[direction]
        size = -abs(size) if direction == "higher" else abs(size)
    # A margin is written by hand: as many digits as it has, not as many as are worth measuring.
    return f"{sign}{size:.4g}".replace("-", "\N{MINUS SIGN}")


def limit(gate: GateResult) -> str:
    """What is tolerated, with its unit where the value beside it has another: counts."""
    return with_unit(margin(gate), metric_of(gate.metric).unit) if gate.kind == "failures" else margin(gate)


def gate_name(gate: GateResult) -> str:
    """The label of its metric; one that judges a change says since when."""
    return ", ".join(filter(None, (metric_of(gate.metric).label, _CHANGES.get(gate.kind))))


def judges_change(gate: GateResult) -> bool:
    """Whether it judges how much something changed, not how much it is."""
    return gate.kind in _CHANGES


def mark_of(gate: GateResult) -> Mark:
    """Its verdict, or that it is undecided with the value beyond the margin."""
    return "BEYOND" if gate.verdict == "INCONCLUSIVE" and gate.is_beyond else gate.verdict


def measured(gate: GateResult) -> tuple[str, str]:
    """What was measured and how sure that is: ("0.0310", "[0.0280, 0.0340]"), ("9 of 120 clips", "at most 12.6 %")."""
    metric, estimate = metric_of(gate.metric), gate.estimate
    if estimate is None:
        return "not measured", ""
    if gate.kind == "failures":
        return _failures(gate, estimate)
    written = signed if judges_change(gate) else number
    return written(estimate.value, metric.digits), spread(estimate, metric.digits)


def _failures(gate: GateResult, estimate: Estimate) -> tuple[str, str]:
    """Counts as counts. Their bounds come from the clips, so that nothing of 120 is "at most 2.5 %"."""
    counted = _COUNTED.search(gate.reason)
    value = f"{number(estimate.value, 1)} % of {estimate.clips} clips"
    cured = None
    if counted is not None:
        value, cured = f"{counted['new']} of {counted['clips']} clips", counted["cured"]
    bound = f"at most {with_unit(number(estimate.high, 1), '%')}" if estimate.high > estimate.value else ""
    return value, ", ".join(filter(None, (f"{cured} cured" if cured and cured != "0" else "", bound)))


def units_to_decide(gate: GateResult) -> str:
    """What `GateResult.needed` is a number of: failures are counted over clips, whatever they are held against."""
    metric = metric_of(gate.metric)
    if metric.counts_failures:
        return "clips"
    return "recordings" if metric.needs == RECORDINGS else "prompts"


def needed(gate: GateResult) -> str:
    """How much more would decide it, if that can be said: "about 310 prompts would decide it"."""
    if gate.verdict != "INCONCLUSIVE" or gate.needed is None:
        return ""
    if gate.is_beyond or not metric_of(gate.metric).counts_failures:
        return f"about {gate.needed:,} {units_to_decide(gate)} would decide it"
    lacking = gate.needed - gate.estimate.clips if gate.estimate is not None else 0
    return f"needs {gate.needed:,} clips" + (f", {lacking:,} more" if lacking > 0 else "")


def listed(items: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *front, last = list(items) or [""]
    return f"{', '.join(front)} and {last}" if front else last
