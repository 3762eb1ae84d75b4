"""Controls: each gate is shown a damage of its own size, and a gate that does not see it does not get away with it."""

from typing import Any

import numpy as np
import pytest

from miso_gguf.quant_eval.gates.config import Gate, Gates, load_gates
from miso_gguf.quant_eval.gates.controls import (
    DamagedClips,
    Hurt,
    gate_controls,
    ladder_controls,
    rungs_of,
    self_control,
    times_margin,
)
from miso_gguf.quant_eval.stats.observations import Observations


def observed(values: Any) -> Observations:
    """From values `[prompts, seeds]`."""
    array = np.asarray(values, np.float64)
    prompts, seeds = np.indices(array.shape)
    return Observations(prompts.ravel(), seeds.ravel(), array.ravel(), np.ones(array.size))


def about(mean: float, prompts: int = 12) -> Observations:
    """A tenth of the mean apart."""
    noise = np.random.default_rng(0).normal(0, 0.1, (prompts, 1))
    return observed(mean * (1 + noise - noise.mean()))


def gates(margin: float, metric: str = "kld_cb0", kind: Any = "at_most") -> Gates:
    return Gates((Gate(metric, kind, {"q4_0": margin}),), {})


def models(*values: float, metric: str = "kld_cb0", half: str = "both") -> list[Hurt]:
    return [Hurt(half, 0.1 * (index + 1), {metric: about(value)}) for index, value in enumerate(values)]


def test_a_gate_is_shown_the_weakest_damage_that_is_twice_beyond_its_margin() -> None:
    (control,) = gate_controls(["q4_0"], gates(0.15), models(0.1, 0.29, 0.31, 9.0), [])
    assert control.name == "all scales off by 30 %"
    assert (control.level, control.metric, control.behaved) == ("q4_0", "kld_cb0", True)
    assert control.expected == "FAIL of KLD, semantic at Q4_0"
    assert control.found.startswith("FAIL: 0.31000 nats (")
    assert control.found.endswith("), 2.1 times what is tolerated")


def test_twice_beyond_it_by_one_wild_prompt_is_not_enough() -> None:
    wild = Hurt("both", 0.1, {"kld_cb0": observed([[0.01]] * 11 + [[5.0]])})
    (control,) = gate_controls(
        ["q4_0"], gates(0.15), [wild, *models(0.4)[:0], Hurt("both", 0.2, models(0.4)[0].measured)], []
    )
    assert (control.name, control.behaved) == ("all scales off by 20 %", True)


def test_the_ladder_of_one_half_is_no_control_of_a_gate() -> None:
    made = [*models(0.4, half="backbone"), *models(0.1, 0.5)]
    (control,) = gate_controls(["q4_0"], gates(0.15), made, [])
    assert control.name == "all scales off by 20 %"
    assert gate_controls(["q4_0"], gates(0.15), models(0.4, half="decoder"), []) == []


def test_a_damage_that_leaves_too_little_to_judge_by_is_none() -> None:
    few = Hurt("both", 0.2, {"kld_cb0": about(9.0, prompts=4)})
    (control,) = gate_controls(["q4_0"], gates(0.15), [*models(0.25), few], [])
    assert (control.name, control.behaved) == ("all scales off by 10 %", True)
    assert gate_controls(["q4_0"], gates(0.15), [few], []) == []


def test_where_no_damage_is_large_enough_the_largest_is_shown_and_does_not_behave() -> None:
    (control,) = gate_controls(["q4_0"], gates(0.15), models(0.01, 0.14, 0.1), [])
    assert (control.name, control.behaved) == ("all scales off by 20 %", False)
    assert "0.9 times what is tolerated" in control.found


def test_beyond_the_margin_but_undecided_does_not_behave() -> None:
    """It fails a run; of a gate it shows nothing."""
    wide = Hurt("both", 0.1, {"kld_cb0": observed([[0.0]] * 10 + [[2.0], [3.0]])})
    (control,) = gate_controls(["q4_0"], gates(0.15), [wide], [])
    assert control.found.startswith("INCONCLUSIVE: 0.41667 nats")
    assert not control.behaved


@pytest.mark.parametrize(
    ("metric", "kind", "margin", "value"),
    [("kld_cb0", "at_most", 0.15, 0.3), ("top1", "at_least", 82.0, 64.0), ("vuv_error", "at_most", 8.0, 16.0)],
)
def test_a_gate_that_is_ten_times_too_wide_is_found_out(
    metric: str, kind: Any, margin: float, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge goes by another margin than the gate has."""
    made = [Hurt("both", 0.5, {metric: observed(np.full((12, 1), value))})]
    one = gates(margin, metric, kind)
    (control,) = gate_controls(["q4_0"], one, made, [])
    assert control.behaved
    ideal = 100.0 if metric == "top1" else 0.0
    monkeypatch.setattr(
        "miso_gguf.quant_eval.gates.judge.margin_for", lambda gate, _: ideal + 10 * (gate.margins["q4_0"] - ideal)
    )
    (control,) = gate_controls(["q4_0"], one, made, [])
    assert not control.behaved
    assert control.found.startswith("PASS")


def test_every_gate_of_every_level_has_one_of_its_own() -> None:
    default = load_gates()
    worst = {"kld_cb0": 5.0, "top1": 20.0, "lf0_rmse": 90.0, "gross_pitch_error": 50.0, "vuv_error": 50.0}
    model = Hurt("both", 1.2, {metric: about(value) for metric, value in worst.items()})
    clips = [
        DamagedClips("clips cut off", level, "new_failures", {"new_failures": observed(np.full((12, 1), 100.0))})
        for level in ("q8_0", "q4_0")
    ]
    controls = gate_controls(["q8_0", "q4_0"], default, [model], clips)
    logits = {(level, metric) for level in ("q8_0", "q4_0") for metric in worst}
    assert {(each.level, each.metric) for each in controls} == logits | {
        (level, "new_failures") for level in ("q8_0", "q4_0")
    }
    assert all(control.behaved for control in controls)
    assert gate_controls(["q8_0"], default, [], []) == []


def test_clips_are_for_their_own_gate_and_level() -> None:
    one = gates(0.12, "dur_ratio", "within")
    seen = {"dur_ratio": about(0.24)}
    clips = [
        DamagedClips("longer", "q4_0", "dur_ratio", seen),
        DamagedClips("of another level", "q8_0", "dur_ratio", seen),
        DamagedClips("for another gate", "q4_0", "f0_range", seen),
    ]
    (control,) = gate_controls(["q4_0"], one, [], clips)
    assert (control.name, control.behaved) == ("longer", True)
    nothing = [DamagedClips("longer", "q4_0", "dur_ratio", {})]
    (control,) = gate_controls(["q4_0"], one, [], nothing)
    assert (control.found, control.behaved) == ("not measured", False)


def test_a_failure_that_is_taken_for_another_does_not_behave() -> None:
    clips = [
        DamagedClips(
            "cut", "q4_0", "new_failures", {"new_failures": observed(np.full((12, 1), 100.0))}, "1 not seen as silent"
        )
    ]
    (control,) = gate_controls(["q4_0"], gates(5.0, "new_failures", "failures"), [], clips)
    assert not control.behaved
    assert control.found.startswith("FAIL: 100.0 %")
    assert control.found.endswith("; 1 not seen as silent")


@pytest.mark.parametrize(
    ("metric", "kind", "margin", "value", "times"),
    [
        ("kld_cb0", "at_most", 0.1, 0.2, 2.0),
        ("top1", "at_least", 90.0, 80.0, 2.0),
        ("top1", "at_least", 90.0, 100.0, 0.0),
        ("f0_range", "at_least", -0.1, -0.3, 3.0),
        ("f0_range", "at_least", -0.1, 0.3, -3.0),
        ("dur_ratio", "within", 0.1, -0.2, 2.0),
        ("kld_cb0", "at_most", 0.0, 1e-9, float("inf")),
        ("kld_cb0", "at_most", 0.0, 0.0, 0.0),
    ],
)
def test_how_many_times_what_is_tolerated(metric: str, kind: Any, margin: float, value: float, times: float) -> None:
    assert times_margin(Gate(metric, kind, {}), margin, value) == pytest.approx(times)


# The ladder


def ladder(*values: float, half: str = "backbone", metric: str = "kld_cb0") -> list[Hurt]:
    return models(*values, half=half, metric=metric)


def test_a_ladder_that_rises() -> None:
    (control,) = ladder_controls(ladder(0.0, 0.0, 0.1, 0.2, 0.2, 0.5), gates(0.15))
    assert control.behaved
    assert control.name == "scales of the backbone off by 10 to 60 %, in 6 steps"
    assert (control.level, control.metric) == ("", "")


def test_one_for_each_half_and_none_for_both() -> None:
    made = [*models(1.0, 0.5), *ladder(0.1, 0.2, half="decoder"), *ladder(0.1, 0.2)]
    names = [control.name for control in ladder_controls(made, gates(0.15))]
    assert names == [
        "scales of the depth decoder off by 10 to 20 %, in 2 steps",
        "scales of the backbone off by 10 to 20 %, in 2 steps",
    ]


def test_a_rung_that_falls_is_named() -> None:
    (control,) = ladder_controls(ladder(0.0, 0.1, 0.3, 0.2, 0.5), gates(0.15))
    assert (control.behaved, control.found) == (False, "KLD, semantic falls at 40 %")


def test_agreement_must_fall() -> None:
    one = gates(82.0, "top1", "at_least")
    assert ladder_controls(ladder(99.0, 90.0, 50.0, metric="top1"), one)[0].behaved
    (control,) = ladder_controls(ladder(50.0, 90.0, metric="top1"), one)
    assert control.found == "Top-1 agreement does not rise; Top-1 agreement falls at 20 %"


def test_what_does_not_move_is_blind_unless_the_half_does_not_touch_it() -> None:
    (control,) = ladder_controls(ladder(0.0, 0.0, 0.0), gates(0.15))
    assert (control.behaved, control.found) == (False, "KLD, semantic does not rise")
    (control,) = ladder_controls(ladder(0.0, 0.0, 0.0, half="decoder"), gates(0.15))
    assert control.behaved
    (control,) = ladder_controls(ladder(0.1, 0.1, half="decoder"), gates(0.15))
    assert not control.behaved


def test_rungs_for_the_report() -> None:
    (rung,) = rungs_of([Hurt("decoder", 0.4, {"kld_cb0": about(0.2), "backbone_only": about(0.1)})])
    assert (rung.half, rung.strength, list(rung.values)) == ("decoder", 0.4, ["kld_cb0"])
    assert rung.values["kld_cb0"].value == pytest.approx(0.2)


# The reference against itself


def test_the_reference_equals_itself_or_says_where_not() -> None:
    same = {"kld_cb0": observed([[0.0]] * 5), "top1": observed([[100.0]] * 5)}
    assert self_control("fp16", same).behaved
    control = self_control("fp16", {**same, "top1": observed([[100.0]] * 4 + [[99.9]])})
    assert (control.behaved, control.found) == (False, "differs: Top-1 agreement")
    assert not self_control("fp16", {}).behaved
