"""Exact bounds of rare failures: against closed forms, scipy, exact sums, and a simulated truth."""

from fractions import Fraction
from itertools import product
from math import comb, hypot
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.quant_eval.stats.counts import (
    FailureCounts,
    count_failures,
    highest_share,
    lowest_share,
    share_below,
)
from miso_gguf.quant_eval.stats.observations import Observations


def counts(new: int, cured: int = 0, clips: int = 120) -> FailureCounts:
    """Each in a prompt of its own."""
    return FailureCounts(clips, clips // 3, new, new, cured, cured)


def observed(values: Any) -> Observations:
    """From values `[prompts, seeds]`."""
    array = np.asarray(values, np.float64)
    prompts, seeds = np.indices(array.shape)
    return Observations(prompts.ravel(), seeds.ravel(), array.ravel(), np.ones(array.size))


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Closed forms, in percent: none of n, 1 - .05^(1/n); all of them, .05^(1/n); the lower of one, 1 - .95^(1/n).
        (0, 120, 0, 2.466),
        (0, 299, 0, 0.997),
        (0, 59, 0, 4.951),
        (10, 10, 74.113, 100),
        (1, 1, 5, 100),
        (1, 10, 0.512, None),
    ],
)
def test_bounds_that_have_a_closed_form(hits: int, trials: int, low: float, high: float | None) -> None:
    assert 100 * lowest_share(hits, trials) == pytest.approx(low, abs=6e-4)
    if high is not None:
        assert 100 * highest_share(hits, trials) == pytest.approx(high, abs=6e-4)


@pytest.mark.parametrize(("hits", "trials"), [(1, 10), (3, 10), (9, 120), (12, 120), (40, 450)])
def test_at_its_bound_a_share_gives_such_a_count_in_5_percent(hits: int, trials: int) -> None:
    """What Clopper and Pearson define them by, as sums of binomial terms."""

    def chance(counted: range, share: float) -> float:
        return sum(comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in counted)

    assert chance(range(hits, trials + 1), lowest_share(hits, trials)) == pytest.approx(0.05)
    assert chance(range(hits + 1), highest_share(hits, trials)) == pytest.approx(0.05)


def test_bounds_are_those_of_scipy_for_whole_counts_and_others() -> None:
    stats = pytest.importorskip("scipy.stats")
    for hits, trials in ((1, 1), (9, 120), (2.5, 33.3), (400, 450), (7, 100_000), (0.3, 5)):
        for confidence in (0.9, 0.95, 0.995):
            expected = stats.beta.ppf(1 - confidence, hits, trials - hits + 1)
            assert lowest_share(hits, trials, confidence) == pytest.approx(expected, rel=1e-9)
            expected = stats.beta.ppf(confidence, hits + 1, trials - hits) if hits < trials else 1
            assert highest_share(hits, trials, confidence) == pytest.approx(expected, rel=1e-9)


def test_the_beta_distribution_in_exact_fractions() -> None:
    """For whole parameters it is a binomial tail."""
    for hits, trials, share in ((1, 1, 0.5), (4, 120, 0.01), (9, 9, 0.9), (7, 300, 0.002), (200, 300, 0.7)):
        p = Fraction(share)
        exact = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits, trials + 1))
        assert share_below(share, hits, trials - hits + 1) == pytest.approx(float(exact), rel=1e-10)
    assert (share_below(0, 2, 3), share_below(1, 2, 3)) == (0, 1)
    assert share_below(0.5, 7, 7) == pytest.approx(0.5)


@pytest.mark.parametrize(("hits", "trials"), [(3, 2), (-1, 2), (0, 0), (float("nan"), 3)])
def test_counts_that_cannot_be(hits: float, trials: float) -> None:
    for bound in (lowest_share, highest_share):
        with pytest.raises(ValueError, match="hits must be 0 to trials"):
            bound(hits, trials)


def test_a_margin_carries_the_clips_that_it_needs() -> None:
    needed = {margin: counts(0, clips=1).clips_to_pass(margin) for margin in (1, 2, 5, 50, 100)}
    assert needed == {1: 299, 2: 149, 5: 59, 50: 5, 100: 1}
    for margin, clips in ((1, 299), (2, 149), (5, 59)):
        assert counts(0, clips=clips).bounds()[1] <= margin
        assert counts(0, clips=clips - 1).bounds()[1] > margin
    assert counts(0, clips=1).clips_to_pass(0) is None, "no number of clips shows that"


def test_new_failures_and_cures_are_combined_as_zou_and_donner_say() -> None:
    new, cured = 5 / 120, 2 / 120
    low, high = counts(5, 2).bounds()
    assert high == pytest.approx(100 * (new - cured + hypot(highest_share(5, 120) - new, cured - lowest_share(2, 120))))
    assert low == pytest.approx(100 * (new - cured - hypot(new - lowest_share(5, 120), highest_share(2, 120) - cured)))
    assert counts(9).bounds()[1] == pytest.approx(100 * highest_share(9, 120))
    assert counts(0).bounds() == pytest.approx((-2.466, 2.466), abs=1e-3)
    assert FailureCounts(3, 1, 3, 1, 0, 0).bounds()[1] == 100


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 80))
def test_bounds_rise_with_new_failures_and_fall_with_cures(new: int, cured: int, more: int) -> None:
    clips = 60 + more
    low, high = counts(new, cured, clips).bounds()
    assert low <= counts(new, cured, clips).value <= high
    above, below = counts(new + 1, cured, clips).bounds(), counts(new, cured + 1, clips).bounds()
    assert (above[0] > low, above[1] > high) == (True, True)
    assert (below[0] < low, below[1] < high) == (True, True)
    mirrored = counts(cured, new, clips).bounds()
    assert mirrored == pytest.approx((-high, -low))
    longer = counts(2 * new, 2 * cured, 2 * clips).bounds()
    assert longer[1] - longer[0] < high - low


def test_failures_that_come_together_count_once() -> None:
    apart, together = np.zeros((40, 3)), np.zeros((40, 3))
    apart[:6, 0] = together[:2] = 100
    one, other = count_failures(observed(apart)), count_failures(observed(together))
    assert one == FailureCounts(120, 40, 6, 6, 0, 0)
    assert other == FailureCounts(120, 40, 6, 2, 0, 0)
    assert one.value == other.value == 5
    assert one.bounds()[1] == pytest.approx(100 * highest_share(6, 120))
    assert other.bounds()[1] == pytest.approx(100 * highest_share(2, 40))
    assert other.bounds()[0] < one.bounds()[0] < one.bounds()[1] < other.bounds()[1]
    assert (one.together, other.together) == (1, 3)
    both = together.copy()
    both[9, 0] = -100
    mixed = count_failures(observed(both))
    assert mixed.together == pytest.approx(7 / 3), "a cure as well tells how seeds go together"
    assert FailureCounts(120, 40, 3, 1, 0, 0).bounds()[0] == pytest.approx(
        100 * (1 / 40 - hypot(1 / 40 - lowest_share(1, 40), highest_share(0, 40)))
    ), "and where there are none of the one, it is taken from the other"
    cures = count_failures(observed(-together))
    assert (cures.new, cures.cured, cures.cured_prompts) == (0, 6, 2)
    assert cures.bounds() == pytest.approx((-other.bounds()[1], -other.bounds()[0]))
    with pytest.raises(ValueError, match="not as 50"):
        count_failures(observed(apart / 2))


def test_an_estimate_is_the_net_share_with_its_bounds() -> None:
    found = counts(5, 2).estimate()
    assert (found.value, found.prompts, found.clips) == (2.5, 40, 120)
    assert (found.low, found.high) == counts(5, 2).bounds()


def test_how_many_clips_would_decide() -> None:
    assert counts(0).clips_to_decide(1) == counts(0).clips_to_pass(1) == 299
    # The same single failure: 1 of 473 has 1 % as its bound, 1 of 472 has more.
    assert counts(1).clips_to_pass(1) == 473
    assert 100 * highest_share(1, 473) <= 1 < 100 * highest_share(1, 472)
    # The same share: all counts grow.
    needed = counts(2).clips_to_decide(1)
    assert needed is not None
    factor = needed / 120
    assert FailureCounts(needed, 9, 0, 0, 0, 0).clips_to_decide(1) == needed
    low = 2 / 120 - hypot(2 / 120 - lowest_share(2 * factor, needed), highest_share(0, needed))
    assert 100 * low > 1
    assert counts(0).clips_to_pass(0) is None, "zero cannot be shown"
    assert counts(6).clips_to_decide(5) is None, "on the margin no number of clips tells"
    assert counts(12, 2).clips_to_decide(1) == 120, "decided already"


@pytest.mark.parametrize(("share", "margin", "size"), [(0.01, 1.0, 150), (0.05, 5.0, 40), (0.02, 2.0, 150)])
def test_on_the_margin_a_pass_or_fail_is_wrong_in_5_percent_at_most(share: float, margin: float, size: int) -> None:
    """Exactly, for independent clips without cures: the sum over all counts that pass, and that fail."""
    clips = 3 * size
    chances = [comb(clips, k) * share**k * (1 - share) ** (clips - k) for k in range(61)]
    bounds = [counts(k, 0, clips).bounds() for k in range(61)]
    assert sum(chance for chance, (_, high) in zip(chances, bounds, strict=True) if high <= margin) <= 0.05
    assert sum(chance for chance, (low, _) in zip(chances, bounds, strict=True) if low > margin) <= 0.05


def test_a_level_that_is_as_good_does_not_fail_more_often_than_1_in_20() -> None:
    """It fails anew as often as it cures: 4 % of clips each, exactly summed at 120 clips and a margin of 1 %."""
    chances = [comb(120, k) * 0.04**k * 0.96 ** (120 - k) for k in range(21)]
    wrong = sum(
        chances[new] * chances[cured]
        for new, cured in product(range(0, 21), range(0, 21))
        if counts(new, cured).bounds()[0] > 1
    )
    assert wrong <= 0.05
