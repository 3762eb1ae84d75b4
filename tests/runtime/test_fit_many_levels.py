"""The plan where a bundle has many levels: those with more bits are not always better, nor the smallest the best."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_of_sizes

from miso_gguf.models.levels import DEFAULT_LEVEL, LEVELS
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.tensors import PARTS
from miso_gguf.runtime.fit import MemoryPlan, Room, plan_memory

_WEIGHTS = {"backbone": 6.99e9, "decoder": 0.505e9, "embeddings": 0.8e9}


def manifest(*levels: str) -> Manifest:
    """Sizes by the levels' bits."""

    def size(level: str, part: str) -> int:
        bits = LEVELS[level].embeddings.bits if part == "embeddings" else LEVELS[level].bits
        return int(_WEIGHTS[part] * bits / 8)

    return manifest_of_sizes({level: [size(level, part) for part in PARTS] for level in levels}, 170_000_000)


def plan(levels: tuple[str, ...], gigabytes: float, *, is_gpu: bool) -> MemoryPlan:
    return plan_memory(manifest(*levels), Room("it", int(gigabytes * 1e9), int(64e9), is_gpu=is_gpu))


@pytest.mark.parametrize(
    ("levels", "gigabytes", "level"),
    [
        (tuple(LEVELS), 64, "f32"),
        (("bf16", "fp16"), 24, "fp16"),
        # More bits, and no better.
        (("q5_1", "q5_k_m"), 24, "q5_k_m"),
        (("q5_0", "q5_k_s"), 24, "q5_k_s"),
        (("q4_1", "q4_k_m"), 24, "q4_k_m"),
        # But better than a level that is two steps smaller.
        (("q5_1", "q4_k_m"), 24, "q5_1"),
        (("q4_1", "q3_k_l"), 24, "q4_1"),
        (("q3_k_s", "iq3_s"), 24, "iq3_s"),
        # What fits: 4 GB for a few of the smallest only.
        (tuple(LEVELS), 5.7, "q4_k_m"),
        (tuple(LEVELS), 4.0, "iq3_s"),
        (tuple(LEVELS), 3.5, "q2_k"),
    ],
)
def test_on_a_gpu_what_loses_least(levels: tuple[str, ...], gigabytes: float, level: str) -> None:
    found = plan(levels, gigabytes, is_gpu=True)
    assert found.pick.fits
    assert found.pick.level == level


@pytest.mark.parametrize(
    ("levels", "level"),
    [
        (tuple(LEVELS), DEFAULT_LEVEL.key),
        (tuple(key for key in LEVELS if key != DEFAULT_LEVEL.key), "iq4_xs"),
        # Nothing poor or slow because it is small.
        (("q8_0", "q2_k"), "q8_0"),
        (("q8_0", "iq3_xxs"), "q8_0"),
        (("q5_k_m", "q4_1"), "q5_k_m"),
        (("fp16", "q3_k_l"), "fp16"),
        (("q8_0", "q5_1"), "q5_1"),
        (("q5_1", "q5_k_m"), "q5_k_m"),
        (("bf16", "fp16"), "fp16"),
        # Of nothing but those the best.
        (("q2_k", "q3_k_m", "iq3_m"), "q3_k_m"),
        (("q4_0", "q2_k"), "q4_0"),
    ],
)
def test_on_a_cpu_the_smallest_that_is_good(levels: tuple[str, ...], level: str) -> None:
    assert plan(levels, 64, is_gpu=False).pick.level == level


def test_on_a_cpu_with_little_memory_the_best_that_fits() -> None:
    assert plan(("q8_0", "q4_0", "q2_k"), 6.5, is_gpu=False).pick.level == "q4_0"
    assert plan(("q8_0", "q4_0", "q2_k"), 5.0, is_gpu=False).pick.level == "q2_k"


@given(st.sets(st.sampled_from(list(LEVELS)), min_size=1), st.floats(3, 40), st.booleans())
def test_what_is_picked_fits_and_nothing_better_does(levels: set[str], gigabytes: float, is_gpu: bool) -> None:
    found = plan(tuple(levels), gigabytes, is_gpu=is_gpu)
    fitting = [need.level for need in found.needs if need.fits and need.context == found.context]
    assert found.pick.fits == bool(fitting)
    if not fitting:
        return
    assert found.pick.level in fitting
    if is_gpu:
        assert found.pick.level == min(fitting, key=list(LEVELS).index)
    else:
        good = [level for level in fitting if not LEVELS[level].is_last_resort]
        assert (found.pick.level in good) == bool(good)


def test_a_table_of_many_levels_has_a_row_each() -> None:
    few = plan(("fp16", "q8_0", "q4_k_m", "q4_0"), 8.6, is_gpu=True)
    assert few.shown == few.needs
    many = plan(tuple(LEVELS), 8.6, is_gpu=True)
    assert [need.level for need in many.shown] == list(LEVELS)
    assert {need.context for need in many.shown} == {2048}
    kinds = {need.level: (need.kv_type, need.fits) for need in many.shown}
    assert kinds["q8_0"] == ("q8_0", True), "what it would get here"
    assert kinds["fp16"] == ("f16", False)
    assert kinds["q4_k_m"] == ("f16", True)
    asked = plan_memory(manifest(*LEVELS), many.room, "q8_0")
    assert {need.kv_type for need in asked.shown} == {"q8_0"}
    assert len(asked.shown) == len(LEVELS)
