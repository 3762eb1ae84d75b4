"""The exact binomial test, held against scipy."""

import pytest

from miso_gguf.quant_eval.listening.chance import found_share, needed_right, p_value, power, trials_to_find

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("trials", [1, 5, 23, 62, 200])
def test_p_values_are_the_exact_binomial_tests(trials: int) -> None:
    for right in range(trials + 1):
        oracle = stats.binomtest(right, trials, 0.5, alternative="greater").pvalue
        assert p_value(right, trials) == pytest.approx(oracle, rel=1e-9)


def test_known_values() -> None:
    assert p_value(16, 23) == pytest.approx(0.0465698, abs=1e-7)
    assert p_value(0, 0) == 1.0
    assert needed_right(23) == 16
    assert needed_right(4) is None
    assert trials_to_find() == 23
    assert trials_to_find(level=0.05 / 3) == 31


@pytest.mark.parametrize("trials", [5, 16, 23, 31, 100])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_needed_number_is_the_least(trials: int, level: float) -> None:
    needed = needed_right(trials, level)
    if needed is None:
        assert p_value(trials, trials) > level
        assert power(0.99, trials, level) == 0.0
        assert found_share(trials, level) is None
    else:
        assert p_value(needed, trials) <= level < p_value(needed - 1, trials)


@pytest.mark.parametrize("trials", [16, 23, 62])
@pytest.mark.parametrize("share", [0.5, 0.65, 0.8, 0.95])
def test_power_is_the_binomial_tail(trials: int, share: float) -> None:
    needed = needed_right(trials)
    assert needed is not None
    assert power(share, trials) == pytest.approx(stats.binom.sf(needed - 1, trials, share), rel=1e-9)


def test_the_number_of_trials_is_the_least_with_that_power() -> None:
    for share in (0.7, 0.8, 0.9):
        trials = trials_to_find(share)
        assert power(share, trials) >= 0.9
        assert all(power(share, fewer) < 0.9 for fewer in range(1, trials))


def test_the_share_that_is_found_is_found_in_four_of_five_studies() -> None:
    for trials in (10, 23, 62):
        share = found_share(trials)
        assert share is not None
        assert power(share, trials) == pytest.approx(0.8, rel=1e-9)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="right answers must be 0 to 3, not 4"):
        p_value(4, 3)
    with pytest.raises(ValueError, match=r"50\.1% is not found"):
        trials_to_find(0.501)  # that would take millions
