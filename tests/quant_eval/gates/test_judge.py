"""Gates: what a file may say, and which verdict follows from what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miso_gguf.models.levels import LEVELS as KNOWN
from miso_gguf.quant_eval.gates.config import Gate, Gates, GatesError, Tolerance, load_gates, margin_for
from miso_gguf.quant_eval.gates.judge import judge, worst
from miso_gguf.quant_eval.metric import RECORDINGS, STAGES
from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.results import GateResult
from miso_gguf.quant_eval.stats.bootstrap import Bootstrap
from miso_gguf.quant_eval.stats.estimates import holm
from miso_gguf.quant_eval.stats.observations import Observations

ALL = load_gates()
GATES = ALL.only(STAGES)
LEVELS = ("fp16", "q8_0", "q4_k_m", "q4_0")


def observed(values: Any) -> Observations:
    """From values `[prompts, seeds]`."""
    array = np.asarray(values, np.float64)
    prompts, seeds = np.indices(array.shape)
    return Observations(prompts.ravel(), seeds.ravel(), array.ravel(), np.ones(array.size))


def around(mean: float, spread: float, prompts: int = 40, seed: int = 0) -> Observations:
    """Values whose mean is `mean` exactly."""
    noise = np.random.default_rng(seed).normal(0, 1, (prompts, 3))
    return observed(mean + spread * (noise - noise.mean()))


def failing(new: int, cured: int = 0, prompts: int = 40) -> Observations:
    """Clips of as many prompts that fail anew, and of others that are cured."""
    values = np.zeros((prompts, 3))
    values[:new, 0] = 100
    values[prompts - cured :, 1] = -100
    return observed(values)


def gates_of(metrics: Sequence[str], kind: Any, margin: float) -> Gates:
    return Gates(tuple(Gate(metric, kind, {"q8_0": margin}) for metric in metrics), {})


def verdict(metric: str, kind: str, margin: float, seen: Observations) -> GateResult:
    (result,) = judge("q8_0", {metric: seen}, gates_of([metric], kind, margin), resamples=999)
    return result


def test_the_default_gates_are_those_of_the_specification() -> None:
    table: dict[str, Any] = {
        gate.metric: (gate.kind, [gate.margins[level] for level in LEVELS])
        for gate in ALL.gates
        if METRICS[gate.metric].needs != RECORDINGS
    }
    flattened = np.log(1 - np.array([0.02, 0.05, 0.10, 0.15]))
    assert table.pop("f0_range") == ("at_least", pytest.approx(flattened, abs=1e-4))
    assert table == {
        "kld_cb0": ("at_most", [0.001, 0.005, 0.06, 0.15]),
        "top1": ("at_least", [99, 96, 88, 82]),
        # Not the 25, 60, 100 that were for gross errors too: what has a gate of its own here.
        "lf0_rmse": ("at_most", [10, 15, 20, 30]),
        "gross_pitch_error": ("at_most", [1, 2, 5, 8]),
        "vuv_error": ("at_most", [1, 2, 5, 8]),
        "dur_ratio": ("within", [0.02, 0.03, 0.08, 0.12]),
        "new_failures": ("failures", [1, 1, 2, 5]),
        "wer": ("at_most", [2, 2, 3, 5]),
        "speaker_similarity": ("at_least", [-0.01, -0.01, -0.02, -0.04]),
        "dnsmos": ("at_least", [-0.05, -0.05, -0.1, -0.15]),
    }
    assert set(table) <= set(ALL.history) <= set(METRICS)


def test_gates_of_some_stages() -> None:
    some = GATES.only(["logits"])
    assert [gate.metric for gate in some.gates] == ["kld_cb0", "top1"]
    assert "kld_cb0" in some.history
    assert "lf0_rmse" not in some.history
    assert GATES.only(["logits", "one-step", "free"]) == GATES
    assert ALL.only(STAGES, [RECORDINGS, "wer", "speaker_similarity", "dnsmos"]) == ALL
    assert [gate.metric for gate in ALL.only(["logits"], [RECORDINGS]).gates] == [
        *("kld_cb0", "kld_cb0_recorded", "top1", "top1_recorded"),
    ]
    alone = ALL.only(["logits"], [RECORDINGS], speaks=False)
    assert [gate.metric for gate in alone.gates] == ["kld_cb0_recorded", "top1_recorded"]
    assert alone.history.keys() == {"kld_cb0_recorded", "kld_rest_recorded", "top1_recorded"}


def test_people_are_judged_as_the_model_is_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    margins = {gate.metric: gate.margins for gate in ALL.gates}
    twins = [metric for metric in margins if METRICS[metric].needs == RECORDINGS]
    assert twins == [
        f"{metric}_recorded" for metric in ("kld_cb0", "top1", "lf0_rmse", "gross_pitch_error", "vuv_error")
    ]
    for twin in twins:
        assert margins[twin] == margins[twin.removesuffix("_recorded")]
        assert ALL.history[twin] == ALL.history[twin.removesuffix("_recorded")]
    path = tmp_path / "gates.toml"
    path.write_text(
        "schema_version = 1\n"
        '[gates.kld_cb0]\nkind = "at_most"\nmargins = { q8_0 = 1 }\n'
        '[gates.kld_cb0_recorded]\nkind = "at_most"\nmargins = { q8_0 = 2 }\n'
        "[history.margins]\nkld_cb0 = { percent = 1, least = 0 }\nkld_cb0_recorded = { percent = 2, least = 0 }\n"
    )
    own = load_gates(path)
    assert [(gate.metric, gate.margins["q8_0"]) for gate in own.gates] == [("kld_cb0", 1), ("kld_cb0_recorded", 2)]
    assert own.history["kld_cb0_recorded"].percent == 2


def test_gates_of_instruments_are_only_for_those_who_asked() -> None:
    without, with_wer = ALL.only(["free"]), ALL.only(["free"], ["wer"])
    assert "wer" not in [*without.history, *(gate.metric for gate in without.gates)]
    assert with_wer.history.keys() - without.history.keys() == {"wer"}
    assert [gate.metric for gate in with_wer.gates if gate not in without.gates] == ["wer"]


def test_what_is_ideal_in_every_clip_passes_but_for_failures() -> None:
    zeros = np.zeros((3, 1))
    measured = {gate.metric: observed(zeros + (100 if gate.metric == "top1" else 0)) for gate in GATES.gates}
    *continuous, counted = judge("q8_0", measured, GATES)
    assert {result.verdict for result in continuous} == {"PASS"}
    for result in continuous:
        assert result.estimate is not None
        assert result.estimate.low == result.estimate.value == result.estimate.high
        assert result.p_value is None, "no test was made"
        assert "in every clip" in result.reason
    assert continuous[1].reason == "Top-1 agreement: 100.00 % in every clip"
    assert (counted.verdict, counted.outcome) == ("INCONCLUSIVE", "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("metric", "kind"), [("kld_cb0", "at_most"), ("dur_ratio", "within"), ("dur_ratio", "at_least")]
)
def test_zeros_pass_a_margin_of_zero_even_for_a_single_prompt(metric: str, kind: str) -> None:
    assert verdict(metric, kind, 0.0, observed(np.zeros((1, 1)))).verdict == "PASS"
    assert verdict(metric, kind, 0.0, observed(np.zeros((40, 3)))).verdict == "PASS"


@pytest.mark.parametrize(
    ("metric", "kind", "margin", "good", "bad"),
    [
        ("lf0_rmse", "at_most", 25, 20, 30),
        ("top1", "at_least", 96, 98, 94),
        ("dur_ratio", "within", 0.03, 0.01, 0.05),
        ("dur_ratio", "within", 0.03, -0.01, -0.05),
        ("f0_range", "at_least", -0.05, 0.0, -0.1),
        ("f0_range", "at_least", -0.05, 0.05, -0.15),
    ],
)
def test_pass_fail_and_inconclusive(metric: str, kind: str, margin: float, good: float, bad: float) -> None:
    """`margin` lies in the middle between `good` and `bad`, on one of its sides."""
    apart = abs(good - bad)
    passed, failed = (verdict(metric, kind, margin, around(mean, apart / 5)) for mean in (good, bad))
    assert (passed.verdict, failed.verdict) == ("PASS", "FAIL")
    assert passed.p_value is not None
    assert failed.p_value is not None
    assert max(passed.p_value, failed.p_value) <= 0.05
    assert (passed.is_beyond, failed.is_beyond, passed.needed, failed.needed) == (False, True, None, None)
    for mean, said, outcome in ((good, "inside it", "INCONCLUSIVE"), (bad, "beyond it", "FAIL")):
        open_ = verdict(metric, kind, margin, around(mean, 20 * apart))
        assert (open_.verdict, open_.outcome) == ("INCONCLUSIVE", outcome)
        assert f"{said}, but not surely, 40 prompts cannot tell, {open_.needed} would" in open_.reason
        assert open_.p_value is not None
        assert open_.p_value > 0.05


@pytest.mark.parametrize(("mean", "says"), [(20, "PASS"), (30, "FAIL")])
def test_so_many_prompts_as_are_said_to_be_needed_decide(mean: float, says: str) -> None:
    few = verdict("lf0_rmse", "at_most", 25, around(mean, 100))
    assert few.verdict == "INCONCLUSIVE"
    assert few.estimate is not None
    assert few.needed is not None
    bound = few.estimate.high if says == "PASS" else few.estimate.low
    assert few.needed == int(np.ceil(40 * ((bound - mean) / (25 - mean)) ** 2))
    assert verdict("lf0_rmse", "at_most", 25, around(mean, 100, prompts=few.needed + 40)).verdict == says
    assert verdict("lf0_rmse", "at_most", 25, around(mean, 100, prompts=few.needed // 2)).verdict == "INCONCLUSIVE"


def test_needed_of_a_margin_on_both_sides_is_what_the_nearer_one_takes() -> None:
    for mean in (0.01, -0.01):
        result = verdict("dur_ratio", "within", 0.03, around(mean, 0.2))
        assert result.estimate is not None
        nearer = result.estimate.high if mean > 0 else result.estimate.low
        assert result.needed == int(np.ceil(40 * ((nearer - mean) / 0.02) ** 2))
    assert verdict("dur_ratio", "within", 0.03, observed(np.array([[0.02], [0.04]] * 6) - 1e-17)).needed is None


@pytest.mark.parametrize(("kind", "mean", "sides"), [("within", 0.05, 2), ("within", -0.05, 2), ("at_most", 0.05, 1)])
@pytest.mark.parametrize("looks", [1, 4])
def test_needed_to_fail_is_what_all_looks_and_both_sides_take(kind: str, mean: float, sides: int, looks: int) -> None:
    seen = around(mean, 0.2)
    others = ("f0_range", "speech_rate", "pause_mean")[: looks - 1]
    gates = gates_of(["dur_ratio", *others], kind, 0.03)
    result = judge("q8_0", {"dur_ratio": seen, **{metric: around(0, 0.001) for metric in others}}, gates)[0]
    assert (result.verdict, result.is_beyond) == ("INCONCLUSIVE", True)
    low, high = Bootstrap(seen).interval(1 - 0.05 / (looks * sides))
    nearer = low if mean > 0 else high
    assert result.needed == int(np.ceil(40 * ((nearer - mean) / 0.02) ** 2))


@pytest.mark.parametrize("mean", [0.05, -0.05])
def test_a_fail_on_either_side_of_zero_counts_both(mean: float) -> None:
    seen = around(mean, 0.04)
    result = verdict("dur_ratio", "within", 0.03, seen)
    one_side = Bootstrap(observed(seen.values.reshape(40, 3) * np.sign(mean)), resamples=999).p_above(0.03)
    assert (result.verdict, result.p_value) == ("FAIL", 2 * one_side)


def test_what_is_ideal_passes_no_margin_that_asks_for_more() -> None:
    result = verdict("f0_range", "at_least", 0.1, observed(np.zeros((12, 3))))
    assert (result.verdict, result.is_beyond) == ("FAIL", True)


def test_what_is_printed_decides() -> None:
    """PASS just where the bound on the margin's side lies inside the margin."""
    for mean in np.linspace(0.6, 1.4, 17):
        for kind, metric in (("at_most", "kld_cb0"), ("at_least", "dur_ratio"), ("within", "dur_ratio")):
            result = verdict(metric, kind, 1.0, around(float(mean), 0.9))
            assert result.estimate is not None
            inside = result.estimate.low > 1 if kind == "at_least" else result.estimate.high < 1
            assert (result.verdict == "PASS") == inside


def test_values_that_all_lie_on_the_margin_are_within_it() -> None:
    assert verdict("lf0_rmse", "at_most", 25, observed(np.full((12, 3), 25.0))).verdict == "PASS"
    assert verdict("lf0_rmse", "at_most", 25, observed(np.full((12, 3), 25.001))).verdict == "FAIL"
    assert verdict("dur_ratio", "within", 0.03, observed(np.full((12, 3), -0.03))).verdict == "PASS"


def test_few_prompts_are_not_judged_but_a_terrible_value_is_not_green() -> None:
    result = verdict("lf0_rmse", "at_most", 25, around(1, 0.1, prompts=4))
    assert (result.verdict, result.outcome, result.needed) == ("INCONCLUSIVE", "INCONCLUSIVE", 5)
    assert result.reason == "F0 error: 1.0 cents; 4 prompts are too few to judge by, take 5 or more"
    single = verdict("lf0_rmse", "at_most", 25, around(1000, 0.1, prompts=1))
    assert (single.verdict, single.outcome) == ("INCONCLUSIVE", "FAIL")
    assert "beyond the margin, which counts as a failure" in single.reason
    assert verdict("lf0_rmse", "at_most", 25, around(1, 0.1, prompts=5)).verdict == "PASS"
    assert verdict("lf0_rmse", "at_most", 25, around(100, 0.1, prompts=5)).verdict == "FAIL"
    clip = verdict("new_failures", "failures", 1, failing(1, prompts=1))
    assert (clip.verdict, clip.outcome) == ("INCONCLUSIVE", "FAIL")
    assert verdict("new_failures", "failures", 1, failing(0, prompts=1)).outcome == "INCONCLUSIVE"
    seeds = verdict("new_failures", "failures", 1, observed(np.zeros((4, 75))))
    assert (seeds.verdict, seeds.outcome) == ("INCONCLUSIVE", "INCONCLUSIVE"), "300 clips, but of four prompts"


@pytest.mark.parametrize(
    ("level", "new", "cured", "says", "outcome"),
    [
        ("q8_0", 9, 0, "FAIL", "FAIL"),
        ("q4_k_m", 12, 0, "FAIL", "FAIL"),
        ("q4_0", 18, 0, "FAIL", "FAIL"),
        ("q8_0", 2, 0, "INCONCLUSIVE", "FAIL"),
        ("q8_0", 1, 0, "INCONCLUSIVE", "INCONCLUSIVE"),
        ("q8_0", 5, 5, "INCONCLUSIVE", "INCONCLUSIVE"),
        ("q8_0", 5, 3, "INCONCLUSIVE", "FAIL"),
        ("q8_0", 0, 0, "INCONCLUSIVE", "INCONCLUSIVE"),
        ("q4_0", 0, 0, "PASS", "PASS"),
        ("q4_0", 0, 5, "PASS", "PASS"),
    ],
)
def test_failures_of_120_clips(level: str, new: int, cured: int, says: str, outcome: str) -> None:
    """Whatever the other gates say: those are good here."""
    good = {"kld_cb0": around(1e-4, 1e-5), "top1": around(99.5, 0.1), "lf0_rmse": around(1, 0.1)}
    results = judge(level, {**good, "new_failures": failing(new, cured)}, GATES, resamples=999)
    assert [result.verdict for result in results[:3]] == ["PASS"] * 3
    assert (results[-1].verdict, results[-1].outcome) == (says, outcome)
    assert results[-1].p_value is None, "bounds decide"


def test_failures_say_what_was_counted_and_what_is_missing() -> None:
    def said(new: int, cured: int, prompts: int = 40, margin: float = 1) -> tuple[str, int | None]:
        result = verdict("new_failures", "failures", margin, failing(new, cured, prompts))
        return result.reason.removeprefix("New failures: "), result.needed

    assert said(0, 0) == ("0 of 120 clips: at most 2.5 %; 179 more clean clips are needed for 1 %", 299)
    assert said(0, 0, prompts=100) == ("0 of 300 clips: at most 1.0 %; wanted: at most 1 %", None)
    assert said(9, 0) == ("9 of 120 clips: 7.5 % (3.2 to 12.7); wanted: at most 1 %", None)
    assert said(1, 0) == (
        "1 of 120 clips: 0.8 % (-1.8 to 3.9); 353 more clean clips are needed for 1 %, or 9894 in all at this share",
        9894,
    )
    reason, needed = said(2, 0)
    assert reason.endswith("beyond the margin, but not surely, which counts as a failure")
    assert needed == 1029
    assert said(5, 5)[0].startswith("5 new, 5 cured of 120 clips: 0.0 % (-5.1 to 5.1); 505 more clean")
    assert said(6, 0, margin=5) == (
        "6 of 120 clips: 5.0 % (1.3 to 9.6); 114 more clean clips are needed for 5 %; "
        "at this share no number of clips would tell",
        None,
    )
    assert said(0, 0, margin=0) == ("0 of 120 clips: at most 2.5 %; no number of clips can show 0 %", None)


def test_seeds_that_fail_together_are_weaker_evidence() -> None:
    together = np.zeros((40, 3))
    together[:2] = 100
    one, other = (verdict("new_failures", "failures", 1, seen) for seen in (failing(6), observed(together)))
    assert (one.verdict, other.verdict) == ("FAIL", "INCONCLUSIVE")
    assert one.estimate is not None
    assert other.estimate is not None
    assert one.estimate.value == other.estimate.value == 5


def test_a_fail_is_holms_over_the_gates_of_a_level_and_a_pass_is_its_own() -> None:
    metrics = ("kld_cb0", "kld_rest", "lf0_rmse", "energy_rmse")
    gates = gates_of(metrics, "at_most", 1.0)
    good = {metric: around(1 - 0.1 * (index + 1), 0.45, seed=index) for index, metric in enumerate(metrics)}
    results = judge("q8_0", good, gates, resamples=999)
    assert [result.p_value for result in results] == [Bootstrap(good[m], resamples=999).p_below(1) for m in metrics]
    assert [result.verdict for result in results] == [verdict(m, "at_most", 1.0, good[m]).verdict for m in metrics]
    assert results[0].verdict == "PASS", "though Holm over four would have left it open"
    assert 4 * (results[0].p_value or 0) > 0.05

    bad = {metric: around(1 + 0.1 * (index + 1), 0.45, seed=index) for index, metric in enumerate(metrics)}
    raw = [Bootstrap(bad[metric], resamples=999).p_above(1.0) for metric in metrics]
    results = judge("q8_0", bad, gates, resamples=999)
    assert [result.p_value for result in results] == holm(raw) != raw
    assert [result.verdict for result in results] == ["FAIL"] * 4

    assert verdict("kld_cb0", "at_most", 1.0, bad["kld_cb0"]).verdict == "FAIL"
    mixed = judge("q8_0", {**good, "kld_cb0": bad["kld_cb0"]}, gates, resamples=999)
    assert [result.verdict for result in mixed] == ["INCONCLUSIVE", "PASS", "PASS", "PASS"], "a pass is a look as well"
    assert mixed[0].outcome == "FAIL"
    assert mixed[0].needed is not None
    assert mixed[0].needed > 40


def test_failures_have_5_percent_of_their_own() -> None:
    """Nine gates that are undecided weaken no count, and a count weakens no other gate."""
    others = {gate.metric: around(gate.margins["q8_0"], 5, seed=index) for index, gate in enumerate(GATES.gates[:-1])}
    with_count = judge("q8_0", {**others, "new_failures": failing(9)}, GATES, resamples=999)
    without = judge("q8_0", {**others, "new_failures": failing(0)}, GATES, resamples=999)
    assert with_count[-1].verdict == "FAIL"
    assert with_count[:-1] == without[:-1]


def test_what_was_not_measured_is_missing_and_named() -> None:
    results = judge("q4_0", {"kld_cb0": around(0.1, 0.001)}, GATES, resamples=999)
    assert [result.verdict for result in results] == ["PASS"] + ["MISSING"] * 7
    assert [result.outcome for result in results] == ["PASS"] + ["MISSING"] * 7
    assert results[1].reason == "Top-1 agreement: not measured"
    assert results[1].estimate is None
    assert results[1].p_value is None
    assert [result.margin for result in results][:2] == [0.15, 82]


def test_margins_by_level() -> None:
    kld = GATES.gates[0]
    assert margin_for(kld, "q8_0") == 0.005
    assert margin_for(kld, "q4_k_m+q8_0") == margin_for(kld, "q8_0+q4_k_m") == 0.06
    assert margin_for(kld, "fp16+q4_0") == margin_for(kld, "q4_0+q4_k_m") == 0.15
    for level in ("damaged", "q8_0+nothing"):
        with pytest.raises(ValueError, match="unknown level"):
            margin_for(kld, level)
    only_fine = gates_of(["kld_cb0"], "at_most", 1.0).gates[0]
    for level in ("q4_0", "q4_0+q8_0", "fp16"):
        assert margin_for(only_fine, level) is None, "nobody lends it any"


def test_a_level_without_margins_is_not_judged() -> None:
    gates = gates_of(["kld_cb0", "top1"], "at_most", 1.0)
    far_off = {"kld_cb0": around(100, 0.1), "top1": around(100, 0.1)}
    assert [result.verdict for result in judge("q8_0", far_off, gates, resamples=999)] == ["FAIL", "FAIL"]
    for level in ("q4_0", "q8_0+q4_0", "fp16"):
        assert judge(level, far_off, gates, resamples=999) == []
        assert gates.why_not_judged(level) == f"no margins for {level}: measured, not judged"
    assert gates.why_not_judged("q8_0") is gates.why_not_judged("q8_0+fp16") is gates.why_not_judged("B") is None
    none_left = gates.only(["free"])
    assert none_left.gates == ()
    assert none_left.why_not_judged("q4_0") is not None, "it had no margins before either"
    assert none_left.why_not_judged("q8_0") is None


def test_a_control_is_judged_by_the_margins_of_its_level() -> None:
    (result, *_) = judge("damaged", {"kld_cb0": around(1, 0.1)}, GATES, margins_of="q8_0", resamples=999)
    assert (result.level, result.margin, result.verdict) == ("damaged", 0.005, "FAIL")


def test_the_worst_verdict() -> None:
    assert worst(["PASS", "INCONCLUSIVE", "PASS"]) == "INCONCLUSIVE"
    assert worst(["PASS", "INCONCLUSIVE", "MISSING", None]) == "MISSING"
    assert worst(["PASS", "INCONCLUSIVE", "FAIL", "MISSING"]) == "FAIL"
    assert worst(["PASS"]) == "PASS"
    assert worst([None]) is None
    assert worst([]) is None


GOOD = 'schema_version = 1\n[gates.kld_cb0]\nkind = "at_most"\nmargins = { q8_0 = 0.01 }\n'


def test_another_file_replaces_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + "[history]\nanchor = 3\n[history.margins]\ntop1 = { percent = 10, least = 0.1 }\n", "utf-8")
    gates = load_gates(path).only(STAGES)
    assert [(gate.metric, gate.kind, gate.margins) for gate in gates.gates] == [("kld_cb0", "at_most", {"q8_0": 0.01})]
    assert (gates.history, gates.anchor) == ({"top1": Tolerance(10, 0.1)}, 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema_version = 1", "schema_version = 2", "schema_version is 2, expected 1"),
        ("schema_version = 1", "", "schema_version is None, expected 1"),
        ("schema_version = 1", "schema_version = 1\nlevels = 3", "unknown entry 'levels'"),
        (GOOD, "schema_version = 1", "there are no gates"),
        ("kld_cb0", "kld_cbo", "unknown metric 'kld_cbo'; did you mean kld_cb0?"),
        ("q8_0", "q8", f"unknown level 'q8'; known are {', '.join(KNOWN)}"),
        ("at_most", "below", "unknown kind 'below'; known are at_most, at_least, within, failures"),
        ("at_most", "at_least", "at_least does not fit a metric of which lower is good; at_most does"),
        ("at_most", "failures", "failures does not fit"),
        ("0.01", "-0.01", "the margin for q8_0 is -0.01, and must not be negative"),
        ("0.01", "nan", "the margin for q8_0 is nan, expected a number"),
        ("0.01", "true", "the margin for q8_0 is True, expected a number"),
        ("0.01", '"1"', "the margin for q8_0 is '1', expected a number"),
        ("q8_0 = 0.01", "", "there is no margin"),
        ('kind = "at_most"', "", "must be a table with kind and margins"),
        ("margins = { q8_0 = 0.01 }", "margins = 0.01", "must be a table with kind and margins"),
        ("[gates.kld_cb0]", "[gates]\ntop1 = 3\n[gates.kld_cb0]", "gates.top1: must be a table"),
        *(
            ("[gates.kld_cb0]", f"[history]\n{text}\n[gates.kld_cb0]", message)
            for text, message in (
                ('metrics = ["top1"]', "history must be a table with anchor, a number, and margins"),
                ("margins = 3", "history: margins is 3, expected a table by metric"),
                ("margins = { loudness = 3 }", "history: unknown metric 'loudness'"),
                ("margins = { top1 = 3 }", "history.top1: must be a table with percent and least"),
                ("margins = { top1 = { percent = 3 } }", "history.top1: must be a table with percent and least"),
                ("margins = { top1 = { percent = -3, least = 0 } }", "numbers that are not negative"),
                ("anchor = 0.5", "history: anchor is 0.5, expected a number of steps, 1 or more"),
            )
        ),
        (
            "[gates.kld_cb0]",
            '[gates.top1]\nkind = "at_least"\nmargins = { q8_0 = 101 }\n[gates.kld_cb0]',
            "above 100 %",
        ),
        (
            "[gates.kld_cb0]",
            '[gates.top1]\nkind = "at_least"\nmargins = { q8_0 = 90, q4_0 = 80 }\n[gates.kld_cb0]',
            "gates.kld_cb0: no margin for q4_0, which other gates have",
        ),
        ("[gates.kld_cb0]", "[gates.kld_cb0", "no TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new), "utf-8")
    with pytest.raises(GatesError) as caught:
        load_gates(path)
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("0.01", "-1").replace("version = 1", "version = 3"), "utf-8")
    with pytest.raises(GatesError) as caught:
        load_gates(path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such gates file"):
        load_gates(tmp_path / "none.toml")
    with pytest.raises(GatesError, match="cannot be read"):
        load_gates(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(GatesError, match="no TOML"):
        load_gates(tmp_path / "binary.toml")
