"""The statistics of verdicts: estimates with their bounds, the ratio to the noise floor, tests, Holm's correction.

The bootstrap itself is in `bootstrap.py`, counts of failures are in `counts.py`. It knows numbers and where they come
from, but neither gates nor verdicts.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..results import Estimate
from .bootstrap import RESAMPLES, SEED, Bootstrap
from .observations import F64Array, Observations

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
    """The mean with its bounds, each of 95 % and one-sided, which end at `limits`.

    A single prompt has none: low and high are the value, and `prompts` says 1.
    """
    return as_estimate(Bootstrap(observations, resamples=resamples, seed=seed), limits)


def as_estimate(bootstrap: Bootstrap, limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The value of a bootstrap with its bounds, which end at `limits`."""
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


def effect_ratio(
    level: Observations, floor: Observations, resamples: int = RESAMPLES, seed: int = SEED
) -> Estimate | None:
    """R with its bounds: the mean size of a difference at a level, over that between two seeds of the reference.

    Over the prompts that both have; every clip counts alike. None if they have none in common, or no floor there.
    """
    prompts = np.intersect1d(level.prompts, floor.prompts)
    if not len(prompts):
        return None
    clips = int(np.isin(level.prompts, prompts).sum())
    sizes, floors = (_mean_sizes(each, prompts) for each in (level, floor))
    if not floors.any():
        return None
    # A ratio of means is a mean of ratios that is weighted by the floors. None may be zero, for its prompt counts too.
    weights = np.maximum(floors, _LEAST_FLOOR * floors.mean())
    ratios = Observations(prompts, np.zeros(len(prompts), np.int64), sizes / weights, weights)
    return estimate(ratios, resamples, seed, limits=(0.0, math.inf)).model_copy(update={"clips": clips})


_LEAST_FLOOR = 1e-6
"""Of the mean: less than any report shows, and far above rounding."""


def _mean_sizes(observations: Observations, prompts: NDArray[np.str_]) -> F64Array:
    """The sum of sizes of each of these prompts, over the number of all clips of theirs."""
    where = np.isin(observations.prompts, prompts)
    sums = np.bincount(np.searchsorted(prompts, observations.prompts[where]), np.abs(observations.values[where]))
    mean_sizes: F64Array = sums / where.sum()
    return mean_sizes
