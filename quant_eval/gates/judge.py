"""The verdict of each gate on a level: PASS, FAIL, INCONCLUSIVE or MISSING.

It measures and reads nothing. The rules, which `RULES` says to people:

* PASS: the bound on the margin's side, one-sided at 95 %, lies inside the margin. A level ships only if all its gates
  pass, so a false PASS of one among many is not what ships it, and nothing is adjusted.
* FAIL: "within the margin" is rejected, one-sided at 5 % after Holm over the level's gates: it names one fault among
  many looks. Failures are apart: they have 5 % of their own.
* Failures are counted, new ones less cures, with exact bounds (`stats/counts.py`), so a PASS takes as many clips as the
  margin asks for: 299 without any for 1 %.
* INCONCLUSIVE: neither, or fewer than `FEWEST_PROMPTS` prompts. If the value itself is beyond the margin, the outcome
  is a failure all the same: undecided is not green.
* MISSING: the gate's metric has no value in any clip.
* A continuous metric that is ideal in every clip passes: as equal as can be seen. It says nothing of what is rare.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..metric import Metric
from ..metrics.table import METRICS
from ..results import Estimate, GateResult, Verdict
from ..stats.bootstrap import RESAMPLES, SEED, Bootstrap
from ..stats.counts import MOST_CLIPS, FailureCounts, count_failures
from ..stats.estimates import FEWEST_PROMPTS, SIGNIFICANCE, as_estimate, holm
from ..stats.observations import Observations
from .config import Gates, margin_for

RULES: tuple[str, ...] = (
    "PASS: the 95 % bound on the margin's side (one-sided) lies inside the margin. A level ships only if every gate "
    "passes, so nothing is adjusted for their number.",
    "FAIL: the other bound lies beyond the margin, at 5 % after Holm over the level's gates. Failures are not among "
    "these: they have 5 % of their own.",
    "Failures are counted, new ones less cures of the reference's own, with exact bounds: to show fewer than 1 % takes "
    "299 clips without one, 2 % takes 149, 5 % takes 59.",
    "INCONCLUSIVE: neither is shown. With the value beyond the margin it fails the run; inside it does not, and the "
    "report says how many prompts or clips would decide.",
    f"MISSING: asked for, and not measured. Fewer than {FEWEST_PROMPTS} prompts decide nothing.",
)
"""The rules of verdicts for people, a paragraph each: reports print them."""


def judge(
    level: str,
    measured: Mapping[str, Observations],
    gates: Gates,
    *,
    margins_of: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[GateResult]:
    """The verdict of every gate on one level, in the order of the gates; none if it has no margins.

    Args:
        level: A level, two of them ("q4_k_m+q8_0", backbone and decoder), or the name of a control.
        measured: By metric; what is missing gives MISSING.
        gates: See `load_gates`.
        margins_of: The level whose margins apply; None for `level` itself.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the level is unknown, or values of failures are not 100, 0 or -100.
    """
    margins = [(gate, margin_for(gate, margins_of or level)) for gate in gates.gates]
    judged = [(gate, margin) for gate, margin in margins if margin is not None]
    looks = sum(gate.kind != "failures" and gate.metric in measured for gate, _ in judged)
    tested = []
    for gate, margin in judged:
        blank = GateResult(
            level=level, metric=gate.metric, kind=gate.kind, margin=margin, estimate=None, p_value=None,
            verdict="MISSING", reason=f"{METRICS[gate.metric].label}: not measured",
        )  # fmt: skip
        seen = measured.get(gate.metric)
        if seen is None:
            tested.append(Tested(blank))
        elif gate.kind == "failures":
            tested.append(Tested(_counted(blank, seen)))
        else:
            tested.append(_tested(blank, seen, Bootstrap(seen, resamples=resamples, seed=seed), looks))
    return adjusted(tested)


@dataclass(frozen=True)
class Tested:
    """A gate before Holm: its result so far, and the p-values of both verdicts; None where not tested."""

    result: GateResult
    p_pass: float | None = None
    p_fail: float | None = None


def adjusted(tested: Sequence[Tested]) -> list[GateResult]:
    """The verdicts: a PASS by its own test alone, a FAIL after Holm over all that were tested for it."""
    results = []
    for test, p_fail in zip(tested, _holm(test.p_fail for test in tested), strict=True):
        result = test.result
        verdict, p_value = result.verdict, None
        if test.p_pass is not None and test.p_pass <= SIGNIFICANCE:
            verdict, p_value = "PASS", test.p_pass
        elif p_fail is not None and p_fail <= SIGNIFICANCE:
            verdict, p_value = "FAIL", p_fail
        elif verdict == "INCONCLUSIVE":
            p_value = p_fail if result.is_beyond else test.p_pass
        needed = result.needed if verdict == "INCONCLUSIVE" else None
        update = {"verdict": verdict, "p_value": p_value, "needed": needed}
        result = result.model_copy(update=update)
        results.append(result if result.reason else result.model_copy(update={"reason": _reason(result)}))
    return results


def worst(outcomes: Iterable[Verdict | None]) -> Verdict | None:
    """FAIL before MISSING before INCONCLUSIVE before PASS; None if there is nothing to judge."""
    order: tuple[Verdict, ...] = ("FAIL", "MISSING", "INCONCLUSIVE", "PASS")
    return min((outcome for outcome in outcomes if outcome is not None), key=order.index, default=None)


def _tested(blank: GateResult, seen: Observations, bootstrap: Bootstrap, looks: int) -> Tested:
    """A gate on a mean, one of `looks` of its level."""
    metric, kind, margin = METRICS[blank.metric], blank.kind, blank.margin
    is_beyond = not _is_met(kind, bootstrap.value, margin)
    result = blank.model_copy(
        update={
            "estimate": as_estimate(bootstrap, metric.range), "verdict": "INCONCLUSIVE", "reason": "",
            "is_beyond": is_beyond,
        }
    )  # fmt: skip
    ideal = metric.ideal
    if ideal is not None and (seen.values == ideal).all() and not is_beyond:
        reason = f"{metric.label}: {number(metric, ideal)} in every clip"
        return Tested(result.model_copy(update={"reason": reason, "verdict": "PASS"}), p_fail=1.0)
    if bootstrap.prompts < FEWEST_PROMPTS:
        return Tested(_too_few(result, f"{metric.label}: {number(metric, bootstrap.value)}"), p_fail=1.0)
    p_pass, p_fail = {
        "at_most": (bootstrap.p_below, bootstrap.p_above),
        "at_least": (bootstrap.p_above, bootstrap.p_below),
        "within": (bootstrap.p_within, bootstrap.p_outside),
    }[kind]
    shown = p_pass(margin)
    if shown > SIGNIFICANCE:
        result = result.model_copy(update={"needed": _prompts_needed(kind, margin, bootstrap, is_beyond, looks)})
    return Tested(result, shown, p_fail(margin) if shown > SIGNIFICANCE else 1.0)


def _prompts_needed(kind: str, margin: float, bootstrap: Bootstrap, is_beyond: bool, looks: int) -> int | None:
    """How many prompts would decide, if value and spread stay: bounds close in with the root of their number."""
    value = bootstrap.value
    if is_beyond:
        # A FAIL must be significant among all looks, and on either side where there are two: its bound is further out.
        low, high = bootstrap.interval(1 - SIGNIFICANCE / (looks * (2 if kind == "within" else 1)))
        is_above = kind == "at_most" or (kind == "within" and value > 0)
        ends = [(low if is_above else high, -margin if kind == "within" and value < 0 else margin)]
    else:
        low, high = bootstrap.interval()
        ends = {"at_most": [(high, margin)], "at_least": [(low, margin)], "within": [(high, margin), (low, -margin)]}[
            kind
        ]
    times = max(((bound - value) / (end - value)) ** 2 if end != value else math.inf for bound, end in ends)
    if times * bootstrap.prompts > MOST_CLIPS:
        return None
    return max(math.ceil(bootstrap.prompts * times), bootstrap.prompts + 1)


def _counted(blank: GateResult, seen: Observations) -> GateResult:
    """A gate on failures, decided by exact bounds."""
    metric, margin, counts = METRICS[blank.metric], blank.margin, count_failures(seen)
    found = counts.estimate()
    result = blank.model_copy(
        update={"estimate": found, "verdict": "INCONCLUSIVE", "is_beyond": found.value > margin, "reason": ""}
    )
    if counts.prompts < FEWEST_PROMPTS:
        return _too_few(result, f"{metric.label}: {_said(metric, counts)}")
    if found.high <= margin:
        return result.model_copy(update={"verdict": "PASS", "reason": _reason_counted(result, counts, "")})
    if found.low > margin:
        return result.model_copy(update={"verdict": "FAIL", "reason": _reason_counted(result, counts, "")})
    needed = counts.clips_to_decide(margin)
    if result.is_beyond:
        why = "; beyond the margin, but not surely, which counts as a failure"
    elif missing := counts.clips_to_pass(margin):
        why = f"; {missing - counts.clips} more clean clips are needed for {margin:g} %"
        if counts.new or counts.cured:
            why += f", or {needed} in all at this share" if needed else "; at this share no number of clips would tell"
    else:
        why = f"; no number of clips can show {margin:g} %"
    reason = _reason_counted(result, counts, why)
    return result.model_copy(update={"needed": needed, "reason": reason})


def _reason_counted(result: GateResult, counts: FailureCounts, why: str) -> str:
    metric = METRICS[result.metric]
    return f"{metric.label}: {_said(metric, counts)}{why or f'; wanted: at most {result.margin:g} %'}"


def _said(metric: Metric, counts: FailureCounts) -> str:
    found = counts.estimate()
    if not counts.new and not counts.cured:
        return f"0 of {counts.clips} clips: at most {number(metric, found.high)}"
    cured = f" new, {counts.cured} cured" if counts.cured else ""
    return f"{counts.new}{cured} of {counts.clips} clips: {span(metric, found)}"


def _too_few(result: GateResult, said: str) -> GateResult:
    found = result.estimate
    assert found is not None
    few = f"{said}; {found.prompts} prompts are too few to judge by, take {FEWEST_PROMPTS} or more"
    if result.is_beyond:
        few += ". The value is beyond the margin, which counts as a failure"
    return result.model_copy(update={"reason": few, "needed": FEWEST_PROMPTS if result.kind != "failures" else None})


def _is_met(kind: str, value: float, margin: float) -> bool:
    if kind == "at_least":
        return value >= margin
    return (abs(value) if kind == "within" else value) <= margin


def _holm(p_values: Iterable[float | None]) -> list[float | None]:
    given = list(p_values)
    made = iter(holm([p for p in given if p is not None]))
    return [None if p is None else next(made) for p in given]


def number(metric: Metric, value: float) -> str:
    """A value as people read it, with its unit."""
    return f"{value:.{metric.digits}f} {metric.unit}".rstrip()


def _reason(result: GateResult) -> str:
    metric, found = METRICS[result.metric], result.estimate
    assert found is not None
    margin = f"{result.margin:g} {metric.unit}".rstrip()
    wanted = {
        "at_most": f"at most {margin}",
        "at_least": f"at least {margin}",
        "within": f"within {margin} of zero",
    }[result.kind]
    said = f"{metric.label}: {span(metric, found)}; wanted: {wanted}"
    if result.verdict != "INCONCLUSIVE":
        return said
    prompts = f", {found.prompts} prompts cannot tell" + (f", {result.needed} would" if result.needed else "")
    if result.is_beyond:
        return f"{said}; beyond it, but not surely{prompts}: it counts as a failure"
    return f"{said}; inside it, but not surely{prompts}"


def span(metric: Metric, found: Estimate) -> str:
    """An estimate as people read it: value and bounds."""
    return f"{number(metric, found.value)} ({found.low:.{metric.digits}f} to {found.high:.{metric.digits}f})"
