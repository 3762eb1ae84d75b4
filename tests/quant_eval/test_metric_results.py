"""What a report says of one metric: bounds of counts are exact, and the ratio to the noise floor has its own."""

import numpy as np
import pytest

from miso_gguf.quant_eval.corpus import Corpus, Prompt
from miso_gguf.quant_eval.stats.observations import Observations
from miso_gguf.quant_eval.summary import _metrics

CORPUS = Corpus("some", tuple(Prompt(str(index), "list", "one, two") for index in range(40)), "")


def observed(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Observations:
    prompts, seeds = np.indices(values.shape)
    return Observations(prompts.ravel(), seeds.ravel(), values.ravel(), np.ones(values.size))


def test_no_failure_of_120_clips_is_not_surely_none() -> None:
    (result,) = _metrics("q8_0", {"q8_0": {"new_failures": observed(np.zeros((40, 3)))}}, CORPUS, {})
    assert result.estimate.value == 0
    assert (result.estimate.low, result.estimate.high) == pytest.approx((-2.466, 2.466), abs=1e-3)


def test_the_ratio_to_the_noise_floor_has_bounds_and_fits_differences_only() -> None:
    rng = np.random.default_rng(0)
    found = {"mcd": rng.uniform(1, 2, (40, 3)), "lf0_corr": rng.uniform(0, 1, (40, 3))}
    floor = {key: observed(rng.uniform(1, 2, (40, 3))) for key in found}
    results = _metrics("q8_0", {"q8_0": {key: observed(values) for key, values in found.items()}}, CORPUS, floor)
    ratios = {result.metric: result.effect_ratio for result in results}
    assert ratios["lf0_corr"] is None, "more is better: nothing to be times of"
    assert ratios["mcd"] is not None
    assert ratios["mcd"].low < ratios["mcd"].value < ratios["mcd"].high
    assert ratios["mcd"].value == pytest.approx(found["mcd"].mean() / floor["mcd"].values.mean())
