"""The statistics of verdicts: estimates with intervals, exact tests of counts, and Holm's correction.

The bootstrap itself is in `bootstrap.py`. It knows numbers and where they come from, but neither gates nor verdicts.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..results import Estimate
from .bootstrap import RESAMPLES, SEED, Bootstrap
from .observations import Observations, by_prompt

SIGNIFICANCE = 0.05
"""Of the tests: one-sided."""
FEWEST_PROMPTS = 5
"""Below this no test is made. From here on the error rates were held in simulation: see `benchmarks/verdicts.py`."""


def estimate(
    observations: Observations,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean with its two-sided 95 % interval, which ends at `limits`.

    A single prompt has no interval: low and high are the value, and `prompts` says 1.
    """
    return as_estimate(Bootstrap(observations, resamples=resamples, seed=seed), limits)


def as_estimate(bootstrap: Bootstrap, limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The value of a bootstrap with its interval, which ends at `limits`."""
    low, high = bootstrap.interval()
    value = bootstrap.value
    return Estimate(
        value=value,
        low=min(max(low, limits[0]), value),
        high=max(min(high, limits[1]), value),
        prompts=bootstrap.prompts,
        clips=bootstrap.clips,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: if one is 5 % or less, that is still true of the chance that any such finding is wrong.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def binomial_tail(hits: int, trials: int, share: float) -> float:
    """The chance of so many hits or more: one-sided exact test of "the true share is `share` or less".

    It is 5 % or less just where the lower end of the exact one-sided 95 % interval exceeds `share`.
    Source: Clopper and Pearson (1934).
    """
    if not 0 <= hits <= trials or not 0 <= share <= 1:
        raise ValueError(f"hits must be 0 to trials, share 0 to 1; not {hits}, {trials}, {share}")
    if hits == 0 or share == 1:
        return 1.0
    if share == 0:
        return 0.0
    terms = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(share)
        + (trials - k) * math.log1p(-share)
        for k in range(hits, trials + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def p_more_failures(observations: Observations, share: float) -> float:
    """p-value of "the true share of failures is `share` (0 to 1) or less", by the exact binomial test.

    Seeds of one prompt tend to fail together, and a prompt that fails three times is not evidence three times over. So
    the number of prompts that fail is tested, in as many trials as make the observed share the same: that is all clips
    where no prompt fails twice. Values are 100 for a clip that fails and 0 for one that does not; weights are ignored.
    """
    failed = _failed(observations)
    hits = int(failed.sum())
    prompts = len(set(observations.prompts[failed].tolist()))
    trials = math.ceil(prompts * len(failed) / hits) if hits else len(failed)
    return binomial_tail(prompts, trials, share)


def p_fails_more_often(new: Observations, old: Observations) -> float:
    """p-value of "`new` fails no more often than `old`" for paired clips: a sign test over the prompts that differ."""
    change = by_prompt(new, _failed(new).astype(np.float64) - _failed(old))
    worse, better = int((change > 0).sum()), int((change < 0).sum())
    return binomial_tail(worse, worse + better, 0.5)


def _failed(observations: Observations) -> NDArray[np.bool_]:
    if not (np.isin(observations.values, (0.0, 100.0))).all():
        odd = observations.values[~np.isin(observations.values, (0.0, 100.0))][0]
        raise ValueError(f"a failure counts as 100 and its absence as 0, not as {odd}")
    failed: NDArray[np.bool_] = observations.values == 100.0
    return failed
