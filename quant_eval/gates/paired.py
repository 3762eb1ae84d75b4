"""The verdict on a change: is a level worse than it was, over the same clips? It knows no files and no margins.

The clips are pairs (same prompt, seed and noise), so most of what differs between prompts cancels, and a change of 10 %
is seen long before the two intervals part. What is tolerated is the largest of

* `percent` of how far the value was from its ideal. Where that is never negative (a KLD, a share), the test is of
  "more than so many times as much", clip by clip: how much the clips differ from each other is then no matter.
* `least`, in the metric's unit.
* `noise`, which two machines made of one build.

PASS: "worse by that or more" is rejected; or every clip is as it was. FAIL: "worse by that at most" is rejected, after
Holm over the metrics of the level. Both one-sided at 5 %. Else INCONCLUSIVE. Of a metric that is good near zero, worse
is further away from it, on either side; unless the clips came nearer by as much, for large errors of either sign have a
small mean by chance. Failures are counted: clips that fail anew, less those that no longer do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..metric import Metric
from ..metrics.table import METRICS
from ..results import GateResult
from ..stats.bootstrap import CONFIDENCE, RESAMPLES, SEED, Bootstrap
from ..stats.counts import MOST_CLIPS, count_failures
from ..stats.estimates import FEWEST_PROMPTS, SIGNIFICANCE, as_estimate
from ..stats.observations import Observations, paired
from .config import Tolerance
from .judge import Tested, adjusted, number, span

Kind = Literal["history", "anchor", "paired"]


@dataclass(frozen=True)
class Change:
    """A metric of a level, before and now.

    Attributes:
        level: Judged.
        metric: That changed.
        new: What was found now; None if it was not measured.
        old: What was found before.
        tolerance: See above.
        noise: See above; in the metric's unit.
        before: Of the old value, for people: "in the accepted evaluation".
        why_not: Why there is no `new`.
    """

    level: str
    metric: Metric
    new: Observations | None
    old: Observations
    tolerance: Tolerance
    noise: float = 0.0
    before: str = "before"
    why_not: str = "was not measured"


@dataclass(frozen=True)
class _Side:
    """One way to get worse: the bootstrap's value, times `sign`, beyond `margin`."""

    bootstrap: Bootstrap
    sign: int
    margin: float

    @property
    def value(self) -> float:
        return self.sign * self.bootstrap.value

    def p_pass(self) -> float:
        rejected = self.bootstrap.p_below if self.sign > 0 else self.bootstrap.p_above
        return rejected(self.sign * self.margin)

    def p_fail(self) -> float:
        rejected = self.bootstrap.p_above if self.sign > 0 else self.bootstrap.p_below
        return rejected(self.sign * self.margin)

    def needed(self, looks: int) -> int | None:
        """How many prompts would decide it, if the value held: bounds come closer as the root of their number.

        Beyond the margin that takes significance among so many looks.
        """
        room = self.margin - self.value
        if not room:
            return None
        confidence = CONFIDENCE if room > 0 else 1 - SIGNIFICANCE / looks
        low, high = sorted(self.sign * bound for bound in self.bootstrap.interval(confidence))
        times = (((high if room > 0 else low) - self.value) / room) ** 2
        prompts = self.bootstrap.prompts
        return max(math.ceil(prompts * times), prompts + 1) if prompts * times < MOST_CLIPS else None


def judge_changes(
    changes: Sequence[Change], kind: Kind, *, resamples: int = RESAMPLES, seed: int = SEED
) -> list[GateResult]:
    """The verdict on each change of one level, in their order.

    Args:
        changes: All that are to be judged of the level: Holm is over these.
        kind: Of the gates.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If values of failures are other than -100, 0 or 100.
    """
    looks = sum(change.new is not None and not change.metric.counts_failures for change in changes)
    return adjusted([_test(change, kind, looks, resamples, seed) for change in changes])


def tolerated(change: Change) -> float:
    """What is tolerated of a change, in the metric's unit: the largest of the three."""
    return max(_percent(change), change.tolerance.least, change.noise)


def _percent(change: Change) -> float:
    return change.tolerance.percent / 100 * abs(_shortfall(change.metric, change.old).mean)


def _shortfall(metric: Metric, found: Observations) -> Observations:
    """How much each clip lacks: the more the worse, but of a metric that is good near zero."""
    if metric.direction != "higher":
        return found
    return replace(found, values=(metric.ideal or 0.0) - found.values)


def _test(change: Change, kind: Kind, looks: int, resamples: int, seed: int) -> Tested:
    metric = change.metric
    blank = GateResult(
        level=change.level,
        metric=metric.key,
        kind=kind,
        margin=tolerated(change),
        estimate=None,
        p_value=None,
        verdict="MISSING",
        reason=f"{metric.label}: {number(metric, change.old.mean)} {change.before}, but {change.why_not} now",
    )
    if change.new is None:
        return Tested(blank)
    pair = paired(change.new, change.old)
    if pair is None:
        return Tested(_with(blank, reason=f"{metric.label}: no clip is one of those {change.before}"))
    now, was = pair
    pairs = replace(change, new=now, old=was)
    difference = Bootstrap(now, was, resamples=resamples, seed=seed)
    found = as_estimate(difference)
    result = _with(blank, estimate=found, margin=tolerated(pairs), verdict="INCONCLUSIVE")
    said = f"{metric.label}: {number(metric, now.mean)}, {number(metric, was.mean)} {change.before}"
    if len(now.values) < len(change.old.values):
        said += f" (of its {len(change.old.values)} clips {len(now.values)} were run)"
    if np.array_equal(now.values, was.values) and np.array_equal(now.weights, was.weights):
        return Tested(_with(result, verdict="PASS", reason=f"{said}: every clip is as it was"))
    if metric.counts_failures:
        return Tested(_counted(result, now, was, said))
    result = _with(result, reason=f"{said}; changed by {span(metric, found)}, {_limit(metric, result.margin)}")
    sides = _sides(pairs, difference, resamples, seed)
    beyond = [] if _is_nearer(pairs) else [side for side in sides if side.value > side.margin]
    if difference.prompts < FEWEST_PROMPTS:
        few = f"{result.reason}; {difference.prompts} prompts are too few to judge by"
        return Tested(_with(result, reason=few, is_beyond=bool(beyond), needed=FEWEST_PROMPTS))
    p_fail = min([1.0, *(len(sides) * side.p_fail() for side in beyond)])
    counts = [side.needed(looks * len(sides)) for side in beyond or sides]
    needed = max((count for count in counts if count is not None), default=None)
    p_pass = max(side.p_pass() for side in sides)
    return Tested(_with(result, is_beyond=bool(beyond), needed=needed), p_pass, p_fail)


def _is_nearer(pair: Change) -> bool:
    """Whether clips are nearer to zero than they were, by more than what is tolerated, where that is good."""
    assert pair.new is not None
    now, was = (replace(each, values=np.abs(each.values)).mean for each in (pair.new, pair.old))
    return pair.metric.direction == "zero" and now < was - tolerated(pair)


def _sides(pair: Change, difference: Bootstrap, resamples: int, seed: int) -> list[_Side]:
    """To which sides the change is one for the worse."""
    assert pair.new is not None
    metric, margin = pair.metric, tolerated(pair)
    if metric.direction == "zero":
        was = pair.old.mean
        away = 1 if was >= 0 else -1
        return [_Side(difference, away, margin), _Side(difference, -away, margin + 2 * abs(was))]
    new, old = _shortfall(metric, pair.new), _shortfall(metric, pair.old)
    if _percent(pair) < margin or (old.values < 0).any():
        return [_Side(difference, 1 if metric.direction == "lower" else -1, margin)]
    most = replace(old, values=(1 + pair.tolerance.percent / 100) * old.values)
    return [_Side(Bootstrap(new, most, resamples=resamples, seed=seed), 1, 0.0)]


def _counted(result: GateResult, now: Observations, was: Observations, said: str) -> GateResult:
    """Failures: clips that fail and did not before, less those of which the opposite is true, with exact bounds."""
    counts = count_failures(replace(now, values=100 * np.sign(now.values - was.values)))
    found, metric = counts.estimate(), METRICS[result.metric]
    clips = f"{counts.new} of {counts.clips} clips fail that did not, {counts.cured} no longer do"
    reason = f"{said}; {clips}, {_limit(metric, result.margin)}"
    result = _with(result, estimate=found, is_beyond=found.value > result.margin, reason=reason)
    if counts.prompts >= FEWEST_PROMPTS and found.high <= result.margin:
        return _with(result, verdict="PASS")
    if counts.prompts >= FEWEST_PROMPTS and found.low > result.margin:
        return _with(result, verdict="FAIL")
    return _with(result, needed=counts.clips_to_decide(result.margin))


def _limit(metric: Metric, margin: float) -> str:
    shown = number(metric, margin) if margin >= 0.5 * 10.0**-metric.digits else f"{margin:.1g} {metric.unit}".rstrip()
    return f"tolerated for the worse: {shown}"


def _with(result: GateResult, **values: object) -> GateResult:
    return result.model_copy(update=values)
