import pytest
from sample_results import bare, estimate, full, sample

from miso_gguf.quant_eval.report import words
from miso_gguf.quant_eval.report.headline import alerts, headline, why_not_judged
from miso_gguf.quant_eval.report.sections import costs
from miso_gguf.quant_eval.report.sections.quality import worse_half
from miso_gguf.quant_eval.results import Attribution, Estimate, GateResult, Results


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"),
        (-0.0, 3, "0"),
        (0.0314, 5, "0.03140"),
        (-0.0314, 2, "-0.03"),
        (1e-7, 5, "1.0e-7"),
        (-4.96e-3, 2, "-5.0e-3"),
        (12345.6, 1, "12,345.6"),
        (0.996, 2, "1.00"),
    ],
)
def test_numbers_tell_zero_from_small(value: float, digits: int, text: str) -> None:
    assert words.number(value, digits) == text.replace("-", "\N{MINUS SIGN}")


@pytest.mark.parametrize(
    ("kind", "metric", "text"),
    [
        ("at_most", "kld_cb0", "≤ 0.06"),
        ("at_least", "top1", "≥ 0.06"),
        ("within", "dur_ratio", "±0.06"),
        ("failures", "new_failures", "≤ 0.06"),
        ("history", "kld_cb0", "≤ +0.06"),
        ("anchor", "top1", "≥ \N{MINUS SIGN}0.06"),
        ("paired", "vuv_error", "≤ +0.06"),
        ("history", "dur_ratio", "±0.06"),
    ],
)
def test_margins(kind: str, metric: str, text: str) -> None:
    known = {"level": "q8_0", "estimate": None, "p_value": None, "verdict": "PASS", "reason": ""}
    gate = GateResult.model_validate({**known, "metric": metric, "kind": kind, "margin": 0.06})
    assert words.margin(gate) == text


def _gate(**values: object) -> GateResult:
    known = {"level": "q8_0", "metric": "kld_cb0", "kind": "at_most", "margin": 0.06, "p_value": None}
    return GateResult.model_validate({**known, "estimate": estimate(0.05), "verdict": "PASS", "reason": "", **values})


def test_the_headline_says_the_worst_first() -> None:
    assert headline(sample()) == (
        "Q4_0: 3 of 8 gates fail (KLD, semantic; Top-1 agreement; F0 error), 1 undecided; "
        "Q4_K_M: 1 of 8 gates undecided; Q8_0 passes every gate."
    )
    assert headline(sample(levels=("fp16", "q8_0"))) == "Q8_0 passes every gate."
    quick = sample(levels=("fp16", "q8_0")).model_copy(update={"stages": ["logits", "one-step"]})
    assert headline(quick) == "Q8_0 passes every gate of teacher-forced logits and one-step decode, all that was run."
    assert headline(sample(levels=("fp16", "q8_0", "q4_k_m"))) == (
        "Q4_K_M: 1 of 8 gates undecided (F0 error); Q8_0 passes every gate."
    )


def test_levels_of_which_the_same_is_to_be_said_share_a_clause() -> None:
    results = _with_gate(verdict="INCONCLUSIVE")
    twin = results.levels[1].model_copy(update={"level": "q4_0"})
    gates = [*results.gates, *(gate.model_copy(update={"level": "q4_0"}) for gate in results.gates)]
    both = results.model_copy(update={"gates": gates, "levels": [*results.levels, twin]})
    assert headline(both) == "Q8_0 and Q4_0: 1 of 8 gates undecided (F0 error)."


def _with_gate(**values: object) -> Results:
    """A level of which one gate is as said, and all others pass."""
    results = sample(levels=("fp16", "q8_0"))
    gate = results.gates[2].model_copy(update=values)
    gates = [*results.gates[:2], gate, *results.gates[3:]]
    levels = [results.levels[0], results.levels[1].model_copy(update={"verdict": gate.outcome})]
    return results.model_copy(update={"gates": gates, "levels": levels, "verdict": gate.outcome})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"verdict": "INCONCLUSIVE"}, "Q8_0: 1 of 8 gates undecided (F0 error)."),
        (
            {"verdict": "INCONCLUSIVE", "is_beyond": True},
            "Q8_0: 1 of 8 gates undecided beyond the margin (F0 error).",
        ),
        ({"verdict": "MISSING", "estimate": None}, "Q8_0: 1 of 8 gates not measured (F0 error)."),
        ({"verdict": "FAIL"}, "Q8_0: 1 of 8 gates fails (F0 error)."),
    ],
)
def test_what_is_not_green_is_never_said_to_pass(values: dict[str, object], said: str) -> None:
    results = _with_gate(**values)
    assert headline(results) == said
    assert "every gate" not in headline(results)


def test_a_level_that_vanished_is_in_the_headline_and_before_all_sections() -> None:
    results = sample(levels=("fp16", "q8_0")).model_copy(update={"missing": ["q4_0 was not run"]})
    assert headline(results) == "not measured: q4_0 was not run; Q8_0 passes every gate."
    (alert,) = alerts(results)
    assert (alert.mark, alert.lines) == ("MISSING", ("q4_0 was not run",))
    many = results.model_copy(update={"missing": [f"{n} was not run" for n in range(9)]})
    assert headline(many) == "not measured: 9 things that were asked for; Q8_0 passes every gate."
    gate = _with_gate(verdict="MISSING", estimate=None, reason="no clip is voiced")
    twice = gate.model_copy(update={"missing": ["q8_0: no clip is voiced"]})
    assert headline(twice) == "Q8_0: 1 of 8 gates not measured (F0 error).", "once is enough"
    nothing = bare(results).model_copy(update={"missing": ["q8_0 was not run"]})
    assert headline(nothing) == "Nothing was judged: not measured: q8_0 was not run."


def test_alerts_tell_what_would_decide() -> None:
    by_mark = {alert.mark: alert.lines for alert in alerts(full())}
    assert list(by_mark) == ["MISSING", "BEYOND", "INCONCLUSIVE"]
    assert by_mark["BEYOND"][1] == (
        "Q4_0, New failures: 9 of 144 clips, 2 cured, at most 8.9\N{NO-BREAK SPACE}%; margin ≤ 1\N{NO-BREAK SPACE}%; "
        "about 1,210 clips would decide it"
    )
    assert by_mark["INCONCLUSIVE"][1].endswith(
        "0 of 144 clips, at most 2.1\N{NO-BREAK SPACE}%; margin ≤ 1\N{NO-BREAK SPACE}%; needs 299 clips, 155 more"
    )
    assert by_mark["INCONCLUSIVE"][0].endswith("cents; margin ≤ 60; about 310 prompts would decide it")


@pytest.mark.parametrize("kind", ["failures", "history", "anchor", "paired"])
def test_failures_are_decided_by_clips_whatever_they_are_held_against(kind: str) -> None:
    few = Estimate(value=0.0, low=-2.5, high=2.466, prompts=40, clips=120)
    gate = _gate(metric="new_failures", kind=kind, verdict="INCONCLUSIVE", needed=299, estimate=few)
    assert words.needed(gate) == "needs 299 clips, 179 more"
    assert words.needed(gate.model_copy(update={"is_beyond": True})) == "about 299 clips would decide it"


def test_long_lists_are_cut_and_say_so() -> None:
    results = full()
    many = results.model_copy(update={"missing": [f"no {n}" for n in range(30)]})
    (lines,) = (alert.lines for alert in alerts(many) if alert.mark == "MISSING")
    assert len(lines) == 13
    assert lines[-1] == "… and 18 more"


@pytest.mark.parametrize(
    ("reason", "value", "sure"),
    [
        ("New failures: 0 of 120 clips: at most 2.5 %", "0 of 120 clips", "at most 2.5\N{NO-BREAK SPACE}%"),
        ("New failures: 9 of 120 clips: 7.5 %", "9 of 120 clips", "at most 2.5\N{NO-BREAK SPACE}%"),
        ("New failures: 9 new, 2 cured of 120 clips", "9 of 120 clips", "2 cured, at most 2.5\N{NO-BREAK SPACE}%"),
        ("something else", "0 % of 120 clips", "at most 2.5\N{NO-BREAK SPACE}%"),
    ],
)
def test_counts_are_counts(reason: str, value: str, sure: str) -> None:
    none = Estimate(value=0.0, low=-2.5, high=2.466, prompts=40, clips=120)
    gate = _gate(metric="new_failures", kind="failures", margin=1, estimate=none, reason=reason)
    assert words.measured(gate) == (value, sure)
    zero = none.model_copy(update={"low": 0.0, "high": 0.0})
    assert "[0, 0]" not in " ".join(words.measured(gate.model_copy(update={"estimate": zero})))


def test_equal_clips_have_no_bounds_and_changes_have_a_sign() -> None:
    equal = Estimate(value=0.0, low=0.0, high=0.0, prompts=40, clips=120)
    assert words.measured(_gate(estimate=equal)) == ("0", "in every clip")
    assert words.measured(_gate(kind="history", estimate=estimate(0.05, 0.1))) == ("+0.05000", "[0.04500, 0.05500]")
    assert words.measured(_gate(estimate=None, verdict="MISSING")) == ("not measured", "")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("at_most", "KLD, semantic"),
        ("history", "KLD, semantic, change since the last accepted"),
        ("anchor", "KLD, semantic, change since the anchor"),
        ("paired", "KLD, semantic, NEW against OLD"),
    ],
)
def test_gates_of_a_change_say_since_when(kind: str, name: str) -> None:
    assert words.gate_name(_gate(kind=kind)) == name


def test_a_control_astray_comes_before_everything() -> None:
    results = sample()
    astray = results.controls[0].model_copy(update={"behaved": False, "found": "0.02"})
    spoilt = results.model_copy(update={"controls": [astray, results.controls[1]]})
    assert headline(spoilt) == (
        "This report proves nothing: the control “fp16 against itself” did not behave "
        "(expected exactly zero, found 0.02)."
    )
    both = results.model_copy(
        update={"controls": [astray, astray.model_copy(update={"metric": "top1", "level": "q4_0"})]}
    )
    assert headline(both).endswith("found 0.02), nor did 1 more.")
    first = alerts(both)[0]
    assert first.mark == "FAIL"
    assert "(Q4_0, Top-1 agreement)" in first.lines[1]


def test_nothing_judged_is_said_and_not_taken_for_a_pass() -> None:
    assert headline(bare(sample())).startswith("Nothing was judged")
    assert headline(sample(levels=("fp16",))).startswith("Nothing was judged")


def test_the_reference_is_not_judged_against_itself_and_that_is_no_fault() -> None:
    results = sample(levels=("fp16", "q8_0"))
    first = results.levels[0].model_copy(update={"why_not_judged": "not run: no F32 level"})
    results = results.model_copy(update={"levels": [first, results.levels[1]]})
    assert headline(results) == "Q8_0 passes every gate."
    assert why_not_judged(results) == ["F16 not run: no F32 level"]


def test_the_front_leaves_out_what_another_level_beats_in_both() -> None:
    points = {"a": (10, 0.0), "b": (5, 0.1), "c": (6, 0.2), "twin": (5, 0.1), "d": (4, 0.5), "e": (4, 0.6)}
    assert costs.front(points) == {"a", "b", "twin", "d"}
    assert costs.front({}) == set()


def test_size_and_kld_needs_no_attribution() -> None:
    results = sample()
    both = costs.size_and_kld(results)
    assert both["fp16"] == (16_200_000_000, 0.0)
    assert both["q4_k_m"][1] == 0.02
    alone = costs.size_and_kld(results.model_copy(update={"attribution": []}))
    klds = [entry.kld_mean for entry in results.codebooks if entry.level == "q4_k_m"]
    assert alone["q4_k_m"][1] == pytest.approx(sum(klds) / 8)
    assert costs.size_and_kld(bare(results)) == {}


def test_a_half_is_worse_only_if_the_bounds_are_apart() -> None:
    def of(backbone: float, decoder: float) -> str:
        both = {"backbone_only": estimate(backbone, 0.1), "decoder_only": estimate(decoder, 0.1)}
        return worse_half(Attribution(level="q4_0", both=estimate(1.0), **both))

    assert of(2.0, 1.0) == "backbone"
    assert of(1.0, 2.0) == "depth decoder"
    assert of(1.0, 1.1) == "cannot be told"
