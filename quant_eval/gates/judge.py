"""The verdict of each gate on a level: PASS, FAIL or INCONCLUSIVE. It measures and reads nothing.

PASS: "worse than the margin" is rejected. FAIL: "within the margin" is rejected. Both one-sided at 5 %, each after Holm
over the gates of the level; INCONCLUSIVE is what neither test can decide. So a PASS is shown, not assumed: it is wrong
in 5 % of the cases at most in which the true value lies on the margin.

Failures are rare, and a few hundred clips cannot show that a share is below 1 %: there PASS only means that the
observed share is not above the margin. That is the one verdict here that is not a proof.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..metric import GateKind, Metric
from ..metrics.table import METRICS
from ..results import Estimate, GateResult, Verdict
from ..stats.bootstrap import RESAMPLES, SEED, Bootstrap
from ..stats.estimates import FEWEST_PROMPTS, SIGNIFICANCE, as_estimate, holm, p_more_failures
from ..stats.observations import Observations
from .config import Gate, Gates, margin_for


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
        measured: By metric; what is missing gives INCONCLUSIVE.
        gates: See `load_gates`.
        margins_of: The level whose margins apply; None for `level` itself.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the level is unknown, or values of failures are neither 0 nor 100.
    """
    tested = []
    for gate in gates.gates:
        margin = margin_for(gate, margins_of or level)
        if margin is not None:
            tested.append(_test(level, gate, margin, measured.get(gate.metric), resamples, seed))
    return adjusted(tested)


@dataclass(frozen=True)
class Tested:
    """A gate before Holm: its result, INCONCLUSIVE so far, and the p-values of both verdicts; None where not tested."""

    result: GateResult
    p_pass: float | None = None
    p_fail: float | None = None


def adjusted(tested: Sequence[Tested]) -> list[GateResult]:
    """The verdicts after Holm over these gates: once for all tests for PASS, once for all those for FAIL."""
    passes, fails = _holm(test.p_pass for test in tested), _holm(test.p_fail for test in tested)
    results = []
    for test, p_pass, p_fail in zip(tested, passes, fails, strict=True):
        verdict: Verdict = test.result.verdict
        p_value = p_pass if p_pass is not None else p_fail
        if p_pass is not None and p_pass <= SIGNIFICANCE:
            verdict = "PASS"
        elif p_fail is not None and p_fail <= SIGNIFICANCE:
            verdict, p_value = "FAIL", p_fail
        elif verdict == "PASS":
            p_value = None
        reason = test.result.reason or _reason(test.result, verdict)
        results.append(test.result.model_copy(update={"verdict": verdict, "p_value": p_value, "reason": reason}))
    return results


def worst(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """FAIL before INCONCLUSIVE before PASS; None if there is nothing to judge."""
    order: tuple[Verdict, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
    return min((verdict for verdict in verdicts if verdict is not None), key=order.index, default=None)


def _test(level: str, gate: Gate, margin: float, seen: Observations | None, resamples: int, seed: int) -> Tested:
    metric = METRICS[gate.metric]
    blank = GateResult(
        level=level, metric=gate.metric, kind=gate.kind, margin=margin, estimate=None, p_value=None,
        verdict="INCONCLUSIVE", reason="",
    )  # fmt: skip
    if seen is None:
        return Tested(blank.model_copy(update={"reason": f"{metric.label}: not measured"}))
    bootstrap = Bootstrap(seen, resamples=resamples, seed=seed)
    result = blank.model_copy(update={"estimate": as_estimate(bootstrap, metric.range)})
    ideal = metric.ideal
    if ideal is not None and (seen.values == ideal).all() and _is_met(gate.kind, ideal, margin):
        reason = f"{metric.label}: {number(metric, ideal)} in every clip"
        return Tested(result.model_copy(update={"reason": reason, "verdict": "PASS"}), p_pass=0.0)
    if bootstrap.prompts < FEWEST_PROMPTS:
        few = f"{metric.label}: {bootstrap.prompts} prompts are too few to judge by; take {FEWEST_PROMPTS} or more"
        return Tested(result.model_copy(update={"reason": few}))
    if gate.kind == "failures":
        if _is_met("at_most", bootstrap.value, margin):
            return Tested(result.model_copy(update={"verdict": "PASS"}), p_fail=1.0)
        return Tested(result, p_fail=p_more_failures(seen, margin / 100))
    p_pass, p_fail = {
        "at_most": (bootstrap.p_below, bootstrap.p_above),
        "at_least": (bootstrap.p_above, bootstrap.p_below),
        "within": (bootstrap.p_within, bootstrap.p_outside),
    }[gate.kind]
    shown = p_pass(margin)
    return Tested(result, shown, p_fail(margin) if shown else 1.0)


def _is_met(kind: GateKind, value: float, margin: float) -> bool:
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


def _reason(result: GateResult, verdict: Verdict) -> str:
    metric, found = METRICS[result.metric], result.estimate
    assert found is not None
    margin = f"{result.margin:g} {metric.unit}".rstrip()
    wanted = {
        "at_most": f"at most {margin}",
        "at_least": f"at least {margin}",
        "within": f"within {margin} of zero",
        "failures": f"at most {margin} of clips",
    }[result.kind]
    said = f"{metric.label}: {span(metric, found)}"
    if verdict == "INCONCLUSIVE":
        return f"{said}; too close to the margin to tell with {found.prompts} prompts (wanted: {wanted})"
    return f"{said}; wanted: {wanted}"


def span(metric: Metric, found: Estimate) -> str:
    """An estimate as people read it: value and interval."""
    return f"{number(metric, found.value)} ({found.low:.{metric.digits}f} to {found.high:.{metric.digits}f})"
