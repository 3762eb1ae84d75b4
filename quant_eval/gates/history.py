"""The history gate: is a level worse than in the last accepted evaluation?

It knows no margins other than that one's own intervals.

Worse than the accepted evaluation beyond its interval is a regression, even inside the absolute gates. The test
is of the *change* since then, over the clips (prompt and seed) that both have: most of what differs between prompts
cancels.

* The margin is how far the accepted interval reaches to the worse side of its value, plus `slack`.
* FAIL: the change is larger than the margin, and "no worse than before, up to `slack`" is rejected.
* PASS: "worse by the margin or more" is rejected; or every clip is as it was.
* INCONCLUSIVE: neither, or nothing to compare.

Both tests are one-sided at 5 % after Holm over the metrics of a level. Of a metric that is good near zero, worse is
further away from it, on either side; one that was surely off zero may first come back to it.
Failures: PASS if there are no more than before; FAIL by a sign test over the prompts that differ.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from ..metric import Metric
from ..metrics.table import METRICS
from ..old_names import OLD_OBSERVATIONS_NAMES
from ..results import Estimate, GateResult, Verdict
from ..stats.bootstrap import RESAMPLES, SEED, Bootstrap
from ..stats.estimates import FEWEST_PROMPTS, as_estimate, p_fails_more_often
from ..stats.observations import Observations, paired
from .accepted import Accepted, Measured, StoredMetric, Subject, check_comparable, load_accepted, write_accepted
from .config import load_gates
from .judge import Tested, adjusted, number, span, worst

OBSERVATIONS_NAME = "observations.json"
"""In the directory of every evaluation: all that a later one can be held against."""


def compare_to_accepted(
    subject: Subject,
    observations: Measured,
    accepted: Accepted,
    metrics: Iterable[str],
    *,
    skip: Collection[str] = (),
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[GateResult]:
    """The verdict on every level and metric that the accepted evaluation has; levels that are new have no history.

    Args:
        subject: What was evaluated now: see `subject_of`.
        observations: What was found now.
        accepted: The last accepted evaluation.
        metrics: That are to be judged: `Gates.history`.
        skip: Levels that are not judged, because they have no margins.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        AcceptedError: If the two are not comparable.
    """
    check_comparable(subject, accepted)
    judged = list(metrics)
    results = []
    for level, stored in accepted.levels.items():
        if level in skip:
            continue
        now = observations.get(level)
        tested = []
        for metric in judged:
            if metric in stored:
                new = now.get(metric) if now is not None else None
                why = "not measured" if now is not None else f"level {level} was not run"
                tested.append(_test(level, METRICS[metric], new, stored[metric], why, resamples, seed))
        results += adjusted(tested)
    return results


def slack(metric: Metric) -> float:
    """What another machine's rounding may make of a value: half of the last digit that a report shows."""
    return 0.5 * 10.0**-metric.digits


def _test(
    level: str, metric: Metric, new: Observations | None, stored: StoredMetric, why: str, resamples: int, seed: int
) -> Tested:
    """One metric of one level, before Holm; `why` there is no `new`."""
    sides = _sides(metric, stored.estimate)
    blank = GateResult(
        level=level,
        metric=metric.key,
        kind="history",
        margin=max(reach for _, reach, _ in sides) + slack(metric),
        estimate=None,
        p_value=None,
        verdict="INCONCLUSIVE",
        reason=f"{metric.label}: in the accepted evaluation, but {why}",
    )
    if new is None:
        return Tested(blank)
    pair = paired(new, stored.observations())
    if pair is None:
        return Tested(_with(blank, reason=f"{metric.label}: the accepted evaluation has other prompts and seeds"))
    now, before = pair
    bootstrap = Bootstrap(now, before, resamples=resamples, seed=seed)
    said = f"{metric.label}: {number(metric, now.mean)}, {number(metric, before.mean)} in the accepted evaluation"
    if len(now.values) < len(stored.values):
        said += f" (of its {len(stored.values)} clips {len(now.values)} were run)"
    result = _with(blank, estimate=as_estimate(bootstrap))
    if np.array_equal(now.values, before.values) and np.array_equal(now.weights, before.weights):
        return Tested(_with(result, verdict="PASS", reason=f"{said}: every clip is as it was"), p_pass=0.0)
    if bootstrap.prompts < FEWEST_PROMPTS:
        return Tested(_with(result, reason=f"{said}; {bootstrap.prompts} prompts are too few to judge by"))
    change = f"changed by {span(metric, as_estimate(bootstrap))}, tolerated {result.margin:.{metric.digits}f}"
    result = _with(result, reason=f"{said}; {change}")
    if metric.counts_failures:
        is_more = bootstrap.value > slack(metric)
        p_fail = p_fails_more_often(now, before) if bootstrap.value > result.margin else 1.0
        return Tested(_with(result, verdict="INCONCLUSIVE" if is_more else "PASS"), p_fail=p_fail)
    return Tested(result, *_p_values(bootstrap, sides, slack(metric)))


def _p_values(bootstrap: Bootstrap, sides: list[tuple[int, float, float]], rounding: float) -> tuple[float, float]:
    """For PASS and for FAIL: over the sides, the largest of the one, and the smallest of the other by Bonferroni."""
    p_pass, p_fail = 0.0, 1.0
    for sign, reach, credit in sides:
        free = rounding + credit
        beyond, below = (bootstrap.p_above, bootstrap.p_below) if sign > 0 else (bootstrap.p_below, bootstrap.p_above)
        p_pass = max(p_pass, below(sign * (free + reach)))
        if sign * bootstrap.value > free + reach:
            p_fail = min(p_fail, len(sides) * beyond(sign * free))
    return p_pass, p_fail


def _with(result: GateResult, **values: object) -> GateResult:
    return result.model_copy(update=values)


def _sides(metric: Metric, was: Estimate) -> list[tuple[int, float, float]]:
    """To which sides a change makes it worse: sign, how far the interval reaches to there, and what is free before."""
    up, down = was.high - was.value, was.value - was.low
    if metric.direction != "zero":
        return [(1, up, 0.0)] if metric.direction == "lower" else [(-1, down, 0.0)]
    reach = max(up, down)
    return [(1, reach, 2 * max(0.0, -was.high)), (-1, reach, 2 * max(0.0, was.low))]


def accept(report: Path, file: Path) -> None:
    """Make the evaluation in `report` the accepted one: write it to `file`.

    Errors as `load_accepted` and `write_accepted`.
    """
    write_accepted(_of(report), file)


def gate_against(
    report: Path, file: Path, gates: Path | None = None
) -> tuple[list[GateResult], Verdict | None, list[str]]:
    """The history gates of the evaluation in `report` against the accepted one in `file`.

    Also the worst verdict, and for each level that is not judged why. Of a comparison of bundles ("B"), the files do
    not say which level it was: it is judged.

    Raises `AcceptedError` if they are not of one model, corpus and settings.
    """
    mine, accepted = _of(report), load_accepted(file)
    measured = {
        level: {metric: stored.observations() for metric, stored in metrics.items()}
        for level, metrics in mine.levels.items()
    }
    wanted = load_gates(gates)
    if not wanted.history:
        raise ValueError(f"{gates} holds no metric against an accepted evaluation: name some under [history]")
    not_judged = {level: why for level in accepted.levels if (why := wanted.why_not_judged(level)) is not None}
    verdicts = compare_to_accepted(mine.subject, measured, accepted, wanted.history, skip=not_judged)
    return verdicts, worst(verdict.verdict for verdict in verdicts), list(not_judged.values())


def _of(report: Path) -> Accepted:
    path, *old = (report / name for name in (OBSERVATIONS_NAME, *OLD_OBSERVATIONS_NAMES))
    for found in (path, *old):
        if found.is_file():
            return load_accepted(found)
    raise FileNotFoundError(f"{path} is not there: run `miso-eval run … --out {report}` to the end first")
