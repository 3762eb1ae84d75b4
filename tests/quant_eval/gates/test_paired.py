"""The verdict on a change over the same clips: what is found, what is tolerated, and how often it is wrong."""

from typing import Any

import numpy as np
import pytest

from miso_gguf.quant_eval.gates.config import Tolerance, load_gates
from miso_gguf.quant_eval.gates.paired import Change, judge_changes
from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.results import GateResult
from miso_gguf.quant_eval.stats.bootstrap import Bootstrap
from miso_gguf.quant_eval.stats.observations import Observations

GATES = load_gates()
RNG = np.random.default_rng(0)
SKEWED = 2e-4 * np.exp(RNG.normal(0, 0.8, (20, 1)) + RNG.normal(0, 0.4, (20, 2)))
"""KLDs of the tiny model's Q4_0, about: some prompts have ten times as much as others."""


def observed(values: Any, weights: Any = 60.0) -> Observations:
    """From values `[prompts, seeds]`."""
    array = np.asarray(values, np.float64)
    prompts, seeds = np.indices(array.shape)
    names = np.char.add("list-", prompts.ravel().astype(str))
    return Observations(names, seeds.ravel(), array.ravel(), np.broadcast_to(weights, array.shape).ravel())


def changed(
    metric: str, before: Any, now: Any, tolerance: Tolerance | None = None, resamples: int = 1999, **more: Any
) -> GateResult:
    """The verdict on one metric; by default with what `gates.toml` tolerates of one step."""
    step = tolerance or GATES.history[metric]
    change = Change("q4_0", METRICS[metric], observed(now), observed(before), step, **more)
    (result,) = judge_changes([change], "history", resamples=resamples)
    return result


@pytest.mark.parametrize("metric", GATES.history)
def test_every_clip_as_it_was_passes(metric: str) -> None:
    for before in (np.zeros((20, 2)), np.full((2, 1), 100.0)):
        result = changed(metric, before, before)
        assert (result.verdict, result.outcome, result.is_beyond, result.needed) == ("PASS", "PASS", False, None)
        assert result.estimate is not None
        assert (result.estimate.low, result.estimate.value, result.estimate.high) == (0, 0, 0)
        assert result.reason.endswith("every clip is as it was")


@pytest.mark.parametrize("factor", [1.21, 1.62, 2.0])
@pytest.mark.parametrize("metric", ["kld_cb0", "kld_rest"])
def test_more_kld_is_seen_however_much_clips_differ(metric: str, factor: float) -> None:
    """The interval between prompts is +-40 %: with that as margin, none of these failed."""
    noise = np.exp(RNG.normal(0, 0.05, SKEWED.shape))
    result = changed(metric, SKEWED, factor * SKEWED * noise)
    assert (result.verdict, result.is_beyond) == ("FAIL", True)
    assert result.p_value is not None
    assert result.p_value <= 0.05
    assert result.margin == pytest.approx(0.1 * SKEWED.mean())


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.05])
def test_no_more_kld_passes(factor: float) -> None:
    result = changed("kld_cb0", SKEWED, factor * SKEWED * np.exp(RNG.normal(0, 0.02, SKEWED.shape)))
    assert result.verdict == "PASS"


@pytest.mark.parametrize(("factor", "verdict"), [(1.05, "PASS"), (1.2, "FAIL")])
def test_so_many_percent_more_in_every_clip_is_seen_though_one_prompt_has_half_of_it_all(
    factor: float, verdict: str
) -> None:
    before = np.full((20, 1), 1e-4)
    before[0] = 2e-3
    assert changed("kld_cb0", before, factor * before).verdict == verdict
    assert changed("kld_cb0", before, factor * before, Tolerance(0, 0.1 * before.mean())).verdict == "INCONCLUSIVE"


def test_what_is_good_when_high_is_judged_by_what_it_lacks() -> None:
    """10 % of 99.8 % would be the whole quality; of what is lacking, 0.2 %, it is 0.02 %."""
    lacking = 1e3 * SKEWED
    step = Tolerance(percent=10, least=0.0)
    assert changed("top1", 100 - lacking, 100 - 1.3 * lacking, step).verdict == "FAIL"
    result = changed("top1", 100 - lacking, 100 - 1.05 * lacking, step)
    assert result.verdict == "PASS"
    assert result.margin == pytest.approx(0.1 * lacking.mean())
    assert changed("top1", 100 - lacking, 100 - 1.3 * lacking, Tolerance(percent=10, least=1.0)).verdict == "PASS"


@pytest.mark.parametrize("metric", ["dur_ratio", "f0_range", "eos_shift"])
def test_what_is_good_near_zero_gets_worse_on_either_side(metric: str) -> None:
    step = Tolerance(percent=0, least=0.02)
    noise = RNG.normal(0, 0.01, (20, 2))
    noise -= noise.mean()
    for side in (1, -1):
        before = side * 0.05 + RNG.normal(0, 0.05, (20, 2))
        before += side * 0.05 - before.mean()
        for away, verdict in ((0.1, "FAIL"), (0.06, "PASS"), (0.0, "PASS"), (-0.04, "PASS"), (-0.1, "FAIL")):
            result = changed(metric, before, before + side * (away - 0.05) + noise, step)
            assert (result.verdict, result.is_beyond) == (verdict, verdict == "FAIL"), (side, away, result.reason)


@pytest.mark.parametrize("side", [1, -1])
def test_a_fail_on_either_side_of_zero_counts_both(side: int) -> None:
    step = Tolerance(percent=0, least=0.02)
    noise = RNG.normal(0, 0.04, (40, 1))
    before, now = np.zeros((40, 1)), side * (0.05 + noise - noise.mean())
    result = changed("dur_ratio", before, now, step)
    one_side = Bootstrap(observed(side * now), observed(before), resamples=1999).p_above(0.02)
    assert (result.verdict, result.p_value) == ("FAIL", 2 * one_side)


def test_large_errors_of_either_sign_are_not_better_for_their_small_mean() -> None:
    """A damaged level speaks too fast as often as too slowly; the sound one is 2 % off in every clip."""
    damaged = np.where(np.arange(20) % 2, 0.5, -0.5)[:, None] + 0.001 * RNG.normal(size=(20, 1))
    sound = np.full((20, 1), 0.02)
    assert abs(damaged.mean()) < 0.001
    assert changed("dur_ratio", damaged, sound).outcome == "INCONCLUSIVE"
    assert changed("dur_ratio", sound, sound + 0.02).outcome == "FAIL"
    assert changed("eos_shift", sound, damaged).verdict != "FAIL"


def test_undecided_says_on_which_side_it_is_and_how_many_prompts_would_decide() -> None:
    step = Tolerance(percent=0, least=1.0)
    wide = RNG.normal(0, 5, (40, 1))
    wide -= wide.mean()
    for mean, is_beyond in ((0.5, False), (1.5, True)):
        result = changed("lf0_rmse", np.full((40, 1), 50.0), 50 + mean + wide, step)
        assert (result.verdict, result.is_beyond) == ("INCONCLUSIVE", is_beyond)
        assert result.outcome == ("FAIL" if is_beyond else "INCONCLUSIVE")
        assert result.needed is not None
        assert 100 < result.needed < 1000
        more = np.tile(wide, (result.needed // 40 + 2, 1))
        decided = changed("lf0_rmse", np.full(more.shape, 50.0), 50 + mean + more, step)
        assert (decided.verdict, decided.needed) == ("FAIL" if is_beyond else "PASS", None)


def test_few_prompts_decide_nothing_but_do_not_hide_it() -> None:
    result = changed("kld_cb0", SKEWED[:4], 3 * SKEWED[:4])
    assert (result.verdict, result.outcome, result.needed) == ("INCONCLUSIVE", "FAIL", 5)
    assert "4 prompts are too few" in result.reason
    assert changed("kld_cb0", SKEWED[:4], 0.5 * SKEWED[:4]).outcome == "INCONCLUSIVE"


def test_many_seeds_of_few_prompts_decide_no_failures() -> None:
    whole, one, most = np.zeros((4, 100)), np.zeros((4, 100)), np.full((4, 100), 100.0)
    one[0, 0] = 100
    for before, now, outcome in ((one, whole, "INCONCLUSIVE"), (whole, most, "FAIL")):
        result = changed("new_failures", before, now)
        assert (result.verdict, result.outcome) == ("INCONCLUSIVE", outcome)


def test_noise_between_machines_is_tolerated() -> None:
    more = 1.3 * SKEWED
    assert changed("kld_cb0", SKEWED, more).verdict == "FAIL"
    result = changed("kld_cb0", SKEWED, more, noise=SKEWED.mean())
    assert (result.verdict, result.margin) == ("PASS", SKEWED.mean())


def failing(*prompts: int, kind: float = 100.0, count: int = 60) -> Any:
    fails = np.zeros((count, 2))
    fails[list(prompts), 0] = kind
    return fails


def test_failures_are_counted_less_cures() -> None:
    assert changed("new_failures", failing(), failing(1)).outcome == "INCONCLUSIVE"
    lost = changed("new_failures", failing(), failing(*range(12)))
    assert (lost.verdict, lost.is_beyond) == ("FAIL", True)
    assert "12 of 120 clips fail that did not, 0 no longer do" in lost.reason
    won = changed("new_failures", failing(*range(12)), failing())
    assert won.verdict == "PASS"
    # As many cured as failed: a free run that decoheres is another draw.
    drawn = changed("new_failures", failing(*range(12)), failing(*range(12, 24)))
    assert (drawn.verdict, drawn.outcome, drawn.is_beyond) == ("INCONCLUSIVE", "INCONCLUSIVE", False)
    # Four more of 120 are 3.3 %: beyond 2.5 %, and not shown to be.
    few = changed("new_failures", failing(), failing(1, 2, 3, 4))
    assert (few.verdict, few.outcome) == ("INCONCLUSIVE", "FAIL")
    assert few.needed is not None
    # A clip of which the reference failed before, and the level does now: two steps, one clip.
    assert "1 of 120 clips fail" in changed("new_failures", failing(1, kind=-100), failing(1)).reason


def test_what_was_measured_before_and_is_not_now_is_missing() -> None:
    change = Change(
        "q8_0",
        METRICS["kld_cb0"],
        None,
        observed(SKEWED),
        GATES.history["kld_cb0"],
        before="then",
        why_not="it is gone",
    )
    (result,) = judge_changes([change], "anchor")
    assert (result.verdict, result.kind, result.estimate) == ("MISSING", "anchor", None)
    assert result.reason == f"KLD, semantic: {SKEWED.mean():.5f} nats then, but it is gone now"


def test_holm_is_over_the_metrics_of_the_level() -> None:
    """A change that one test would call sure is not sure among twenty; each PASS stands for itself."""
    before = np.full((20, 1), 50.0)
    wobble = RNG.normal(0, 1, (20, 1))
    wobble = (wobble - wobble.mean()) / wobble.std()
    step = Tolerance(percent=0, least=1.0)

    def change(mean: float) -> Change:
        return Change("q4_0", METRICS["lf0_rmse"], observed(before + mean + wobble), observed(before), step)

    (alone,) = judge_changes([change(1.6)], "history", resamples=1999)
    among = judge_changes([change(1.6), *[change(0.0)] * 19], "history", resamples=1999)
    assert alone.verdict == "FAIL"
    assert (among[0].verdict, among[0].outcome) == ("INCONCLUSIVE", "FAIL")
    assert {result.verdict for result in among[1:]} == {"PASS"}
    low, _ = Bootstrap(observed(before + 1.6 + wobble), observed(before), resamples=1999).interval(1 - 0.05 / 20)
    assert among[0].needed == int(np.ceil(20 * ((low - 1.6) / 0.6) ** 2)), "of prompts, among as many looks"


@pytest.mark.parametrize("metric", ["kld_cb0", "dur_ratio"])
def test_simulated_changes_are_judged_wrongly_in_5_percent_at_most(metric: str) -> None:
    """With the truth on the margin: false PASS and false FAIL."""
    rng = np.random.default_rng(0)
    fails = passes = 0
    step = GATES.history[metric]
    for _ in range(60):
        if metric == "kld_cb0":
            before = np.exp(rng.normal(0, 0.6, (20, 1)) + rng.normal(0, 0.3, (20, 2)))
            now = 1.1 * before * np.exp(rng.normal(0, 0.2, before.shape) - 0.02)
        else:
            before = rng.normal(0, 0.05, (20, 2))
            now = before + np.copysign(step.least, before.mean()) + rng.normal(0, 0.02, before.shape)
        result = changed(metric, before, now, step, resamples=499)
        fails += result.verdict == "FAIL"
        passes += result.verdict == "PASS"
    # A true 5 % exceeds 8 of 60 four times in a thousand such tests.
    assert max(fails, passes) <= 8, (fails, passes)
