"""Every construction of known truth: the metrics say it, and those that mean nothing there are absent."""

import pytest
from constructed_truth import TRUTHS, Truth, measured


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.name)
def test_metrics_say_what_was_made(truth: Truth) -> None:
    found = measured(truth)
    assert found.keys().isdisjoint(truth.absent)
    assert {name: found[name] for name in truth.known} == {
        name: pytest.approx(value, abs=tolerance) for name, (value, tolerance) in truth.known.items()
    }
