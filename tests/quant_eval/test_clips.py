"""The spread of clips against that of the reference, and which clips are the worst."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.quant_eval.clips import distributions, wasserstein, worst_clips
from miso_gguf.quant_eval.corpus import Prompt
from miso_gguf.quant_eval.metric import FREE
from miso_gguf.quant_eval.results import Clip, Distribution
from miso_gguf.quant_eval.run.record import Record

VALUES = st.lists(st.integers(-50, 50).map(lambda value: value / 8), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 2.0, 3.0], [3.0, 1.0, 2.0], 0),
        ([0.0], [3.5], 3.5),
        ([0.0, 1.0], [5.0, 6.0], 5),
        ([0.0, 1.0, 3.0], [5.0, 6.0, 8.0], 5),
        ([0.0, 1.0], [0.5], 0.5),
        ([0.0, 0.0, 0.0, 4.0], [0.0], 1),
        ([-1.0, 1.0], [-1.0, -1.0, 1.0, 1.0], 0),
        ([2.0, 2.0], [2.0], 0),
    ],
)
def test_how_far_values_are_moved(first: list[float], second: list[float], expected: float) -> None:
    assert wasserstein(first, second) == expected == wasserstein(second, first)


@given(VALUES, VALUES)
def test_it_is_the_cheapest_way_to_move_them(first: list[float], second: list[float]) -> None:
    """Both samples, repeated to one length, matched in every way there is: of sorted ones by their ranks."""
    size = np.lcm(len(first), len(second))
    one, other = (np.sort(np.repeat(values, size // len(values))) for values in (first, second))
    assert wasserstein(first, second) == pytest.approx(float(np.abs(one - other).mean()), abs=1e-12)
    if len(first) == len(second):
        costs = (sum(abs(a - b) for a, b in zip(first, order, strict=True)) for order in itertools.permutations(second))
        assert wasserstein(first, second) == pytest.approx(min(costs) / len(first), abs=1e-12)


def test_it_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for sizes in ((40, 120), (7, 5), (120, 120)):
        first, second = (rng.lognormal(0.3 * which, 0.5, size) for which, size in enumerate(sizes))
        assert wasserstein(list(first), list(second)) == pytest.approx(stats.wasserstein_distance(first, second))


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_what_is_no_distribution(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="leave out clips that have none"):
        wasserstein([1.0], bad)


def record(level: str, seed: int, duration_s: float, prompt: str = "a", new: float = 0.0, mcd: float = 1.0) -> Record:
    detail = {"scalars": {"duration_s": duration_s}, "failures": ["silent"] if new > 0 else [], "f0_hz": []}
    files = {"audio": f"{level}-{prompt}-{seed}.wav"}
    return Record(FREE, level, prompt, seed, {"new_failures": new, "mcd": mcd}, {}, detail, files)


def plan_of(*levels: str) -> Any:
    candidates = [SimpleNamespace(name=level) for level in levels]
    corpus = SimpleNamespace(prompts=[Prompt(name, "statement", "Hello.") for name in "abc"])
    return SimpleNamespace(reference=candidates[0], candidates=candidates, corpus=corpus)


def spread(*rows: tuple[str, int, float]) -> dict[str, Distribution]:
    levels = list(dict.fromkeys(level for level, _, _ in rows))
    by_level = {level: [record(*row) for row in rows if row[0] == level] for level in levels}
    return {each.level: each for each in distributions(plan_of(*levels), by_level)}


def test_a_level_is_held_against_the_reference_and_the_reference_against_itself() -> None:
    found = spread(
        *(("fp16", seed, 2.0 + seed) for seed in (0, 1, 3)), *(("q4_0", seed, 4.0 + seed) for seed in (0, 1))
    )
    assert found["fp16"].shift is None
    assert found["q4_0"].values == [4.0, 5.0]
    assert found["q4_0"].shift == wasserstein([4.0, 5.0], [2.0, 3.0, 5.0])
    assert found["fp16"].shift_floor == found["q4_0"].shift_floor == pytest.approx((1 + 3 + 2) / 3)


def test_one_seed_has_no_floor_and_no_reference_no_shift() -> None:
    found = spread(("fp16", 0, 2.0), ("q4_0", 0, 2.5))
    assert (found["q4_0"].shift, found["q4_0"].shift_floor) == (0.5, None)
    alone = distributions(plan_of("fp16", "q4_0"), {"fp16": [], "q4_0": [record("q4_0", 0, 1.0)]})
    assert [(each.level, each.shift, each.shift_floor) for each in alone] == [("q4_0", None, None)]


def worst(*records: Record) -> list[Clip]:
    plan = plan_of("fp16", "q4_0")
    base = [record("fp16", each.seed, 1.0, each.prompt) for each in records]
    return worst_clips(plan, plan.candidates[1], [*base, *records])


def test_a_clip_that_is_clean_where_the_reference_fails_is_not_said_to_fail() -> None:
    cured = record("q4_0", 0, 1.0, "a", new=-100.0, mcd=9.0)
    failed = record("q4_0", 0, 1.0, "b", new=100.0, mcd=1.0)
    plain = record("q4_0", 0, 1.0, "c", mcd=5.0)
    found = worst(cured, failed, plain)
    assert [clip.prompt for clip in found] == ["b", "a", "c"]
    assert found[0].why == "fails where the reference does not: silent"
    assert "fails" not in found[1].why
