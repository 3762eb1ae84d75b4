"""Two bundles at one level, "old" and "new", both measured against one reference: has the new one got worse?

What is judged is the difference between their distances from the reference, clip by clip (`paired.py`), by what a step
of the history may cost. How far both are away is not: that is asked of a level, not of a change. It reads no files.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..metrics.table import METRICS
from ..results import Control, GateResult
from ..stats.bootstrap import RESAMPLES
from ..stats.estimates import FEWEST_PROMPTS
from ..stats.observations import Observations
from .config import Gates
from .paired import Change, judge_changes, tolerated

OLD, NEW = "old", "new"
"""What the two are called."""
_BEFORE = f"for {OLD}"
_TIMES = 2.0
"""So many times what is tolerated, and the gate must fail."""


def why_not_compared(name: str) -> str | None:
    """Why a candidate of a comparison has no verdict; None for the one that has."""
    if name == NEW:
        return None
    return f"{name} is what {NEW} is held against" if name == OLD else f"{name} is what {OLD} and {NEW} are measured by"


def judge_comparison(
    measured: Mapping[str, Mapping[str, Observations]], gates: Gates, *, resamples: int = RESAMPLES
) -> list[GateResult]:
    """The verdict on every metric that "old" has, of those that the history knows.

    Args:
        measured: By level, then by metric.
        gates: Which metrics, and what is tolerated.
        resamples: Of the bootstrap.
    """
    old, new = measured.get(OLD, {}), measured.get(NEW, {})
    changes = [
        Change(NEW, METRICS[metric], new.get(metric), old[metric], step, before=_BEFORE, why_not="it was not measured")
        for metric, step in gates.history.items()
        if metric in old
    ]
    return judge_changes(changes, "paired", resamples=resamples)


def comparison_controls(
    measured: Mapping[str, Mapping[str, Observations]], gates: Gates, *, resamples: int = RESAMPLES
) -> list[Control]:
    """One for each gate: what "new" has, made worse by arithmetic, is held against itself, and must fail."""
    new = measured.get(NEW, {})
    controls = []
    for key, step in gates.history.items():
        found = new.get(key)
        if found is None or key not in measured.get(OLD, {}) or found.prompt_count < FEWEST_PROMPTS:
            continue
        change = Change(NEW, METRICS[key], found, found, step, before=_BEFORE)
        (gate,) = judge_changes([replace(change, new=_worse(change))], "paired", resamples=resamples)
        controls.append(
            Control(
                name=f"{NEW}, worse by {_TIMES:g} times what is tolerated",
                level=NEW,
                metric=key,
                expected=f"FAIL of {METRICS[key].label}",
                found=gate.outcome,
                behaved=gate.outcome == "FAIL",
            )
        )
    return controls


def _worse(change: Change) -> Observations:
    """The old observations, worse in the mean by so many times what is tolerated."""
    metric, old, by = change.metric, change.old, _TIMES * tolerated(change)
    if metric.counts_failures:
        values = old.values.copy()
        values[np.flatnonzero(values < 100)[: math.ceil(len(values) * by / 100)]] = 100.0
        return replace(old, values=values)
    is_down = metric.direction == "higher" or (metric.direction == "zero" and old.mean < 0)
    return replace(old, values=old.values + (-by if is_down else by))
