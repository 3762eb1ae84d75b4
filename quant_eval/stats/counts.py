"""How sure a count of rare failures is: exact bounds of a share, and of the net share of new failures over cures.

It knows nothing of gates, and no bootstrap: of events that were not seen once there is nothing to draw.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..results import Estimate
from .bootstrap import CONFIDENCE
from .observations import Observations

MOST_CLIPS = 1_000_000
"""Beyond this many clips nothing is called decidable."""
_STEPS = 100
"""Of a search for a quantile, which takes some eight."""
_FRACTIONS = 10_000
"""Terms of a continued fraction that converges in some ten."""


def lowest_share(hits: float, trials: float, confidence: float = CONFIDENCE) -> float:
    """The true share lies above this, with so much confidence, if `hits` of `trials` were seen: 0 for none.

    Neither need be whole. Raises `ValueError` for counts that cannot be.
    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial"
    (1934); as quantiles of a beta distribution, which takes any number: Brown, Cai and DasGupta (2001).
    """
    _check(hits, trials)
    return 0.0 if hits == 0 else _beta_quantile(1 - confidence, hits, trials - hits + 1)


def highest_share(hits: float, trials: float, confidence: float = CONFIDENCE) -> float:
    """The true share lies below this: see `lowest_share`. 0 of n: 1 - 5 %^(1/n), about 3/n."""
    _check(hits, trials)
    if hits == 0:
        return -math.expm1(math.log(1 - confidence) / trials)
    return 1.0 if hits >= trials else _beta_quantile(confidence, hits + 1, trials - hits)


@dataclass(frozen=True)
class FailureCounts:
    """Clips of a level beside the reference's of the same prompt and seed: which of the two fails alone.

    Attributes:
        clips: All.
        prompts: That they are of.
        new: Clips of which only the level's fails.
        new_prompts: That those are of.
        cured: Clips of which only the reference's fails.
        cured_prompts: That those are of.
    """

    clips: int
    prompts: int
    new: int
    new_prompts: int
    cured: int
    cured_prompts: int

    @property
    def value(self) -> float:
        """Net, in percent of the clips."""
        return 100 * (self.new - self.cured) / self.clips

    def bounds(self) -> tuple[float, float]:
        """The net share in percent lies above the one, and below the other, with 95 % each.

        Each of the two counts has its exact bounds, and these are combined by MOVER. Without a cure the upper one is
        that of the new failures alone; the lower one still allows for cures that were not seen.
        Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008).
        """
        return self._bounds(1.0, 1.0)

    def estimate(self) -> Estimate:
        """The net share in percent with its bounds."""
        low, high = self.bounds()
        return Estimate(value=self.value, low=low, high=high, prompts=self.prompts, clips=self.clips)

    def clips_to_decide(self, margin: float) -> int | None:
        """The least number of clips at which a bound clears `margin` %, if all shares stay what they are."""
        if self.value < margin:
            return self._least_clips(lambda more: self._bounds(more, more)[1] <= margin)
        return self._least_clips(lambda more: self._bounds(more, more)[0] > margin) if self.value > margin else None

    def clips_to_pass(self, margin: float) -> int | None:
        """The least number of clips at which the upper bound is within `margin` %, if no further one fails."""
        return self._least_clips(lambda more: self._bounds(1.0, more)[1] <= margin) if margin > 0 else None

    @property
    def together(self) -> float:
        """How many clips of a prompt fail, or are cured, when one does: 1 if none was seen to."""
        prompts = self.new_prompts + self.cured_prompts
        return (self.new + self.cured) / prompts if prompts else 1.0

    def _bounds(self, more_hits: float, more_clips: float) -> tuple[float, float]:
        """With so many times the failures, and so many times the clips."""
        # Seeds of one prompt tend to fail together, and a prompt that fails three times is not evidence three times
        # over: both counts are of as many independent clips as that leaves. Shares stay what they are.
        trials = self.clips * more_clips / self.together
        shares, lows, highs = [], [], []
        for failed in (self.new, self.cured):
            hits = failed * more_hits / self.together
            shares.append(hits / trials)
            lows.append(lowest_share(hits, trials))
            highs.append(highest_share(hits, trials))
        net = shares[0] - shares[1]
        low = net - math.hypot(shares[0] - lows[0], highs[1] - shares[1])
        high = net + math.hypot(highs[0] - shares[0], shares[1] - lows[1])
        return 100 * max(low, -1.0), 100 * min(high, 1.0)

    def _least_clips(self, is_decided: Callable[[float], bool]) -> int | None:
        few, many = self.clips, self.clips
        while not is_decided(many / self.clips):
            few, many = many, 2 * many
            if many > MOST_CLIPS:
                return None
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if is_decided(middle / self.clips) else (middle, many)
        return many


def count_failures(observations: Observations) -> FailureCounts:
    """The counts of clips that are 100 (fails anew), -100 (is cured) or 0; weights are ignored.

    Raises `ValueError` for other values.
    """
    _check_failures(observations)
    new, cured = observations.values == 100.0, observations.values == -100.0
    prompts = observations.prompts
    return FailureCounts(
        clips=len(prompts),
        prompts=len(np.unique(prompts)),
        new=int(new.sum()),
        new_prompts=len(np.unique(prompts[new])),
        cured=int(cured.sum()),
        cured_prompts=len(np.unique(prompts[cured])),
    )


def _check_failures(observations: Observations) -> None:
    """Raise `ValueError` unless each clip is 100, 0 or -100."""
    odd = observations.values[~np.isin(observations.values, (-100.0, 0.0, 100.0))]
    if odd.size:
        raise ValueError(f"a new failure counts as 100, a cure as -100, all else as 0; not as {odd[0]}")


def share_below(share: float, a: float, b: float) -> float:
    """The chance that a beta distribution with parameters `a` and `b` (above 0) is `share` (0 to 1) or less.

    That is the regularised incomplete beta function, by Lentz's continued fraction.
    Source: DLMF 8.17.22; Press et al., "Numerical Recipes" (3rd edition), 6.4.
    """
    if share <= 0 or share >= 1:
        return float(share >= 1)
    if share > (a + 1) / (a + b + 2):
        return 1.0 - share_below(1 - share, b, a)
    front = math.exp(_log_density(share, a, b)) * share * (1 - share)
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1 - (a + b) * share / (a + 1) or tiny)
    fraction = d
    for m in range(1, _FRACTIONS):
        even = m * (b - m) * share / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * share / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            fraction *= c * d
        if abs(fraction - before) <= 1e-15 * abs(fraction):
            break
    return front * fraction / a


@lru_cache(maxsize=4096)
def _beta_quantile(chance: float, a: float, b: float) -> float:
    """Where `share_below` is `chance`: Newton's method, kept between bounds by bisection."""
    low, high = 0.0, 1.0
    share = a / (a + b)
    for _ in range(_STEPS):
        off = share_below(share, a, b) - chance
        low, high = (share, high) if off < 0 else (low, share)
        step = off / (math.exp(_log_density(share, a, b)) or math.inf)
        following = share - step if low < share - step < high else (low + high) / 2
        if abs(following - share) <= 1e-14 * share:
            break
        share = following
    return share


def _log_density(share: float, a: float, b: float) -> float:
    norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return norm + (a - 1) * math.log(share) + (b - 1) * math.log1p(-share)


def _check(hits: float, trials: float) -> None:
    if not 0 <= hits <= trials or trials <= 0:
        raise ValueError(f"hits must be 0 to trials, and trials above 0; not {hits} and {trials}")
