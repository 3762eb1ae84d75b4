"""Estimates, bounds and tests: against slow computations of the same, and against a simulated truth."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.stats.bootstrap import Bootstrap, _draws
from miso_gguf.quant_eval.stats.estimates import (
    SIGNIFICANCE,
    effect_ratio,
    estimate,
    holm,
)
from miso_gguf.quant_eval.stats.observations import Observations, paired


def observed(values: Any, weights: Any = 1.0) -> Observations:
    """From values `[prompts, seeds]`."""
    array = np.asarray(values, np.float64)
    prompts, seeds = np.indices(array.shape)
    return Observations(prompts.ravel(), seeds.ravel(), array.ravel(), np.broadcast_to(weights, array.shape).ravel())


def some(prompts: int = 12, seed: int = 0) -> Observations:
    rng = np.random.default_rng(seed)
    return observed(rng.lognormal(0, 0.5, (prompts, 3)), rng.integers(20, 120, (prompts, 3)))


def slow_tail(clusters: list[tuple[float, float]], sign: int, resamples: int) -> tuple[float, float, list[float]]:
    """Value, error and studentised resamples, one resample after the other, clusters (sum, weight) written out."""

    def mean_and_error(drawn: list[tuple[float, float]]) -> tuple[float, float]:
        total = sum(weight for _, weight in drawn)
        mean = sum(value for value, _ in drawn) / total
        squares = sum((value - mean * weight) ** 2 for value, weight in drawn)
        return mean, (len(drawn) / (len(drawn) - 1) * squares) ** 0.5 / total

    mean, _ = mean_and_error(clusters)
    furthest = max(clusters, key=lambda cluster: sign * (cluster[0] - mean * cluster[1]))
    away = (1 + 5 / len(clusters)) * (furthest[0] - mean * furthest[1])
    extended = [*clusters, (mean * furthest[1] + away, furthest[1])]
    value, error = mean_and_error(extended)
    studentised = []
    for counts in _draws(len(extended), resamples, 0):
        drawn = [cluster for cluster, count in zip(extended, counts, strict=True) for _ in range(int(count))]
        other, its_error = mean_and_error(drawn)
        studentised.append(sign * (other - value) / max(its_error, 0.1 * error))
    return sign * value, error, sorted(studentised)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_bootstrap_is_what_a_loop_over_resamples_gives(sign: int) -> None:
    found, resamples = some(7), 199
    weights = found.weights.reshape(7, 3).sum(1)
    sums = (found.weights * found.values).reshape(7, 3).sum(1)
    value, error, studentised = slow_tail(list(zip(sums, weights, strict=True)), sign, resamples)
    bootstrap = Bootstrap(found, resamples=resamples)
    for margin in (0.7, 1.0, 1.2, 2.0):
        smaller = sum(t <= (value - sign * margin) / error for t in studentised)
        p_value = bootstrap.p_below(margin) if sign > 0 else bootstrap.p_above(margin)
        assert p_value == (1 + smaller) / 200
    # 5 % of 200 are ten: the tenth smallest.
    bound = sign * (value - studentised[9] * error)
    assert bootstrap.interval()[(sign + 1) // 2] == pytest.approx(bound, rel=1e-12)


def test_a_difference_is_the_bootstrap_of_both_means_at_once() -> None:
    """Where both have the same weights it is that of the differences; else means move together, as they are drawn."""
    old = some(9)
    rng = np.random.default_rng(3)
    new = Observations(old.prompts, old.seeds, old.values + rng.normal(0.1, 0.2, 27), old.weights)
    both = Bootstrap(new, old, resamples=500)
    alone = Bootstrap(Observations(old.prompts, old.seeds, new.values - old.values, old.weights), resamples=500)
    assert both.value == pytest.approx(alone.value)
    assert both.interval() == pytest.approx(alone.interval())
    assert both.p_below(0.2) == alone.p_below(0.2)

    longer = Observations(old.prompts, old.seeds, old.values, old.weights * rng.uniform(0.5, 2, 27))
    assert Bootstrap(longer, old, resamples=500).value == pytest.approx(longer.mean - old.mean)
    assert Bootstrap(longer, old, resamples=500).interval() != pytest.approx((0, 0))


def test_resamples_are_the_same_everywhere() -> None:
    draws = _draws(5, 100, 0)
    assert draws.shape == (100, 5)
    assert (draws.sum(axis=1) == 5).all()
    assert draws[:3].tolist() == [[2, 2, 0, 0, 1], [0, 0, 2, 2, 1], [1, 0, 2, 2, 0]]
    assert not np.array_equal(draws, _draws(5, 100, 1))


def test_equal_input_gives_equal_estimates_whatever_the_order_of_clips() -> None:
    found = some()
    order = np.random.default_rng(1).permutation(36)
    shuffled = Observations(found.prompts[order], found.seeds[order], found.values[order], found.weights[order])
    assert estimate(found) == estimate(found)
    one, other = estimate(found), estimate(shuffled)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), rel=1e-9)
    assert (one.prompts, one.clips) == (12, 36)


@settings(max_examples=examples(20), deadline=None)
@given(st.floats(-100, 100), st.floats(0.001, 1000), st.floats(0.01, 100))
def test_intervals_move_and_stretch_with_the_values(shift: float, factor: float, weight: float) -> None:
    found = some()
    other = Observations(found.prompts, found.seeds, found.values * factor + shift, found.weights * weight)
    one, moved = Bootstrap(found, resamples=200), Bootstrap(other, resamples=200)
    expected = [factor * end + shift for end in (one.value, *one.interval())]
    assert [moved.value, *moved.interval()] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_weights_are_frames_and_prompts_without_any_do_not_count() -> None:
    found = observed([[1, 3], [5, 7]], [[1, 3], [0, 0]])
    assert found.mean == 2.5
    assert found.prompt_count == 1
    assert estimate(found).prompts == 1
    assert estimate(observed([[1, 3], [5, 7]])).value == 4


def test_seeds_of_a_prompt_do_not_count_as_further_evidence() -> None:
    rng = np.random.default_rng(0)
    once = rng.normal(1, 0.3, (20, 1))
    one, thrice = estimate(observed(once)), estimate(observed(np.repeat(once, 3, axis=1)))
    assert (one.low, one.high) == pytest.approx((thrice.low, thrice.high))


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e-9, 1e9])
def test_values_that_all_agree_have_a_degenerate_interval(value: float) -> None:
    rng = np.random.default_rng(0)
    found = observed(np.full((12, 3), value), rng.uniform(1, 100, (12, 3)))
    bootstrap = Bootstrap(found)
    assert bootstrap.is_constant
    assert bootstrap.interval() == pytest.approx((value, value), rel=1e-12)
    assert bootstrap.p_below(value) == bootstrap.p_above(value) == bootstrap.p_within(abs(value)) == 0
    apart = max(abs(value), 1e-9) * 1e-6
    assert (bootstrap.p_below(value - apart), bootstrap.p_above(value + apart)) == (1, 1)


def test_one_prompt_proves_nothing() -> None:
    bootstrap = Bootstrap(observed([[1.0, 2.0, 3.0]]))
    assert bootstrap.interval() == (2, 2)
    assert bootstrap.p_below(1e9) == bootstrap.p_above(-1e9) == bootstrap.p_within(1e9) == 1


@pytest.mark.parametrize("prompts", [2, 3, 40])
def test_one_clip_off_zero_leaves_the_interval_finite(prompts: int) -> None:
    values = np.zeros((prompts, 3))
    values[1, 1] = 0.1
    low, high = Bootstrap(observed(values)).interval()
    assert -inf < low <= values.mean() < high < 40 * values.mean()


def test_intervals_end_where_the_metric_does() -> None:
    found = observed(100 - np.eye(12)[:, :1])
    assert estimate(found).high > 100
    assert estimate(found, limits=METRICS["top1"].range).high == 100
    keys = ("kld_cb0", "pause_floor", "jitter", "dur_ratio", "new_failures", "lf0_corr")
    no_end, net = (-inf, inf), (-100, 100)
    assert [METRICS[key].range for key in keys] == [(0, inf), no_end, no_end, no_end, net, (-1, 1)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": [1, nan]}, "value nan of prompt b, seed 2 is not finite"),
        ({"values": [inf, 1]}, "value inf of prompt a, seed 1 is not finite"),
        ({"weights": [1, nan]}, "weight nan of prompt b"),
        ({"weights": [0, 0]}, "all zero"),
        ({"weights": [2, -1]}, "must not be negative"),
        ({"values": [1]}, r"must all be \[n\]"),
        ({"values": [[1, 2]]}, r"must all be \[n\]"),
        ({"seeds": [1.5, 2]}, "seeds must be integers"),
        ({"seeds": [1, 2**70]}, "seeds must be integers"),
        ({"seeds": [-1, 2**63]}, "seeds must be integers"),
        ({"prompts": ["a", "a"], "seeds": [2, 2]}, "prompt a, seed 2 is there twice"),
        ({"prompts": [], "seeds": [], "values": [], "weights": []}, "not a single clip"),
    ],
)
def test_observations_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"prompts": ["a", "b"], "seeds": [1, 2], "values": [1, 2], "weights": [1, 1]}
    Observations(**good)
    with pytest.raises(ValueError, match=message):
        Observations(**{**good, **fields})


def test_pairs_are_the_clips_that_both_have() -> None:
    one = Observations(*map(np.array, (["b", "a", "a", "c"], [1, 1, 2, 1], [1.0, 2, 3, 4], [1.0, 1, 1, 0])))
    other = Observations(*map(np.array, (["a", "c", "b", "d"], [1, 1, 1, 1], [5.0, 6, 7, 8], [1.0, 1, 1, 1])))
    pair = paired(one, other)
    assert pair is not None
    assert pair[0].clips == pair[1].clips == [("a", 1), ("b", 1)]
    assert (pair[0].values.tolist(), pair[1].values.tolist()) == ([2, 1], [5, 7])
    assert paired(one.take([("a", 2)]), other) is None
    with pytest.raises(ValueError, match="same clips"):
        Bootstrap(one, other)
    with pytest.raises(ValueError, match="100 at least, not 10"):
        Bootstrap(one, resamples=10)


def test_holm_by_hand() -> None:
    # Holm's own procedure on these: .01 * 4; .02 * 3; then .03 * 2 and .04 * 1, which may not fall below their elders.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.0, 0.05]) == [0, 0.05]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values: list[float]) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - step) * p_values[index] > SIGNIFICANCE:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p <= SIGNIFICANCE} == rejected


@settings(max_examples=examples(30), deadline=None)
@given(st.floats(0.5, 2.0), st.booleans())
def test_the_bound_that_is_printed_is_the_one_that_decides(margin: float, is_above: bool) -> None:
    found = some()
    bootstrap, printed = Bootstrap(found, resamples=499), estimate(found, resamples=499)
    if is_above:
        assert (bootstrap.p_above(margin) <= SIGNIFICANCE) == (printed.low > margin)
    else:
        assert (bootstrap.p_below(margin) <= SIGNIFICANCE) == (printed.high < margin)


def test_the_ratio_to_the_noise_floor_is_of_mean_sizes_over_the_prompts_of_both() -> None:
    rng = np.random.default_rng(0)
    level, floor = observed(rng.normal(0, 2, (20, 3))), observed(rng.normal(0, 1, (20, 2)))
    ratio = effect_ratio(level, floor, resamples=999)
    assert ratio is not None
    assert ratio.value == pytest.approx(np.abs(level.values).mean() / np.abs(floor.values).mean())
    assert 0 < ratio.low < ratio.value < ratio.high
    assert (ratio.prompts, ratio.clips) == (20, 60)
    twice = Observations(floor.prompts, floor.seeds, 2 * floor.values, 7 * floor.weights)
    half = effect_ratio(level, twice, resamples=999)
    assert half is not None
    assert (half.value, half.low, half.high) == pytest.approx([x / 2 for x in (ratio.value, ratio.low, ratio.high)])
    fewer = effect_ratio(level, observed(floor.values.reshape(20, 2)[:10]), resamples=999)
    assert fewer is not None
    assert fewer.value == pytest.approx(np.abs(level.values[:30]).mean() / np.abs(floor.values[:20]).mean())
    assert (fewer.prompts, fewer.clips) == (10, 30)


def test_a_ratio_needs_a_floor() -> None:
    level, zeros = observed(np.ones((6, 2))), observed(np.zeros((6, 2)))
    assert effect_ratio(level, zeros) is None
    others = Observations(np.array(["x", "y"]), np.array([0, 0]), np.ones(2), np.ones(2))
    assert effect_ratio(level, others) is None
    exact = effect_ratio(zeros, level)
    assert exact is not None
    assert (exact.low, exact.value, exact.high) == (0, 0, 0)
    partly = np.zeros((6, 2))
    partly[1:] = 2
    some_zero = effect_ratio(level, observed(partly), resamples=999)
    assert some_zero is not None
    assert some_zero.value == pytest.approx(0.6), "the prompt whose floor is zero counts as well"
    assert some_zero.high > some_zero.value


def test_simulated_ratios_lie_within_their_bounds() -> None:
    """One-sided 95 % each: of 200, a true 5 % exceeds 18 once in a hundred such tests."""
    rng = np.random.default_rng(0)
    below = above = 0
    for _ in range(200):
        size = rng.lognormal(0, 0.4, (30, 1))
        level, floor = (observed(size * rng.lognormal(0, 0.4, (30, n))) for n in (3, 2))
        ratio = effect_ratio(level, floor, resamples=399)
        assert ratio is not None
        below += ratio.high < 1
        above += ratio.low > 1
    assert max(below, above) <= 18
    assert min(below, above) > 0


Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray[Any, np.dtype[np.float64]]]


def log_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    spread = 0.4 * rng.normal(size=(shape[0], 1)) + 0.3 * rng.normal(size=shape)
    return np.exp(spread - (0.4**2 + 0.3**2) / 2)


def half_zeros(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    share = rng.beta(1.5, 1.5, size=(shape[0], 1))
    return 2 * (rng.random(shape) < share) * log_normal(rng, shape)


@pytest.mark.parametrize("prompts", [12, 40])
@pytest.mark.parametrize("draw", [log_normal, half_zeros])
def test_simulated_verdicts_on_the_margin_are_wrong_in_5_percent_at_most(draw: Draw, prompts: int) -> None:
    """The full simulation is `benchmarks/verdicts.py`. A true 5 % exceeds 31 of 400 once in a hundred such tests."""
    rng = np.random.default_rng(0)
    passes = fails = below = above = 0
    shown = 0
    for _ in range(400):
        frames = rng.integers(20, 120, (prompts, 1)) * rng.uniform(0.8, 1.2, (prompts, 3))
        bootstrap = Bootstrap(observed(draw(rng, (prompts, 3)), frames), resamples=399)
        passes += bootstrap.p_below(1) <= SIGNIFICANCE
        fails += bootstrap.p_above(1) <= SIGNIFICANCE
        low, high = bootstrap.interval()
        below += high < 1
        above += low > 1
        shown += bootstrap.p_below(2) <= SIGNIFICANCE
    assert max(passes, fails) <= 31
    assert (below, above) == (passes, fails), "the printed bounds are what decides"
    assert shown > (360 if prompts == 40 else 180)
