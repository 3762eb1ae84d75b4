"""The exact binomial test of a listener who may be guessing: of two answers one is right. It knows no study."""

import math
from functools import lru_cache

from ..stats.counts import lowest_share, share_below

LEVEL = 0.05
"""Of the one-sided test, over all levels of a study together."""
GOOD_SHARE, WANTED_POWER = 0.8, 0.9
"""By default a listener who is right in 80 % of the trials is found in 90 % of the studies."""
SHOWN_POWER = 0.8
"""Of the share that a number of trials could have found."""
_MOST_TRIALS = 1000


@lru_cache(maxsize=4096)
def p_value(right: int, trials: int) -> float:
    """The chance that one who guesses is right in so many trials or more. 1 without trials."""
    if not 0 <= right <= trials:
        raise ValueError(f"right answers must be 0 to {trials}, not {right}")
    ways: int = sum(math.comb(trials, count) for count in range(right, trials + 1))
    return ways / (1 << trials)


@lru_cache(maxsize=4096)
def needed_right(trials: int, level: float = LEVEL) -> int | None:
    """The least number of right answers that shows more than luck; None if not even all would."""
    ways, tail, all_ways = 1, 0, 1 << trials
    for right in range(trials, -1, -1):
        tail += ways
        if tail / all_ways > level:
            return right + 1 if right < trials else None
        ways = ways * right // (trials - right + 1)
    return 0


def power(share: float, trials: int, level: float = LEVEL) -> float:
    """The chance that one who is right in `share` of the trials is found."""
    needed = needed_right(trials, level)
    return 0.0 if needed is None else share_below(share, needed, trials - needed + 1)


def trials_to_find(share: float = GOOD_SHARE, wanted: float = WANTED_POWER, level: float = LEVEL) -> int:
    """The least number of trials with which one who is right in `share` is found so often.

    Raises `ValueError` if that takes more than `_MOST_TRIALS`.
    """
    for trials in range(1, _MOST_TRIALS + 1):
        if power(share, trials, level) >= wanted:
            return trials
    raise ValueError(f"one who is right in {share:.1%} is not found with {_MOST_TRIALS} trials")


def found_share(trials: int, level: float = LEVEL) -> float | None:
    """The share of right answers that so many trials find with 80 % power; None if no share can be found.

    The chance of `needed` right answers or more is a beta distribution's at the share, so that this is its quantile.
    """
    needed = needed_right(trials, level)
    return None if needed is None else lowest_share(needed, trials, 1 - SHOWN_POWER)
