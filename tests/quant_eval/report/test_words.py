import pytest
from sample_results import bare, estimate, sample

from miso_gguf.quant_eval.report import words
from miso_gguf.quant_eval.report.sections import costs
from miso_gguf.quant_eval.report.sections.quality import worse_half
from miso_gguf.quant_eval.results import Attribution, GateResult


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
        ("history", "kld_cb0", "≤ 0.06"),
        ("history", "top1", "≥ 0.06"),
        ("history", "dur_ratio", "±0.06"),
    ],
)
def test_margins(kind: str, metric: str, text: str) -> None:
    known = {"level": "q8_0", "estimate": None, "p_value": None, "verdict": "PASS", "reason": ""}
    gate = GateResult.model_validate({**known, "metric": metric, "kind": kind, "margin": 0.06})
    assert words.margin(gate) == text


def test_the_headline_says_who_passes_and_who_fails_at_what() -> None:
    assert words.headline(sample()) == (
        "Q8_0 passes every gate; Q4_K_M is undecided on 1 of 8 gates (F0 error); "
        "Q4_0 fails 3 of 8 gates (KLD, semantic; Top-1 agreement; F0 error)."
    )
    assert words.headline(sample(levels=("fp16", "q8_0"))) == "Q8_0 passes every gate."


def test_a_control_astray_comes_before_everything() -> None:
    results = sample()
    astray = results.controls[0].model_copy(update={"behaved": False, "found": "0.02"})
    spoilt = results.model_copy(update={"controls": [astray, results.controls[1]]})
    assert words.headline(spoilt) == (
        "This report proves nothing: the control “fp16 against itself” did not behave "
        "(expected exactly zero, found 0.02)."
    )


def test_nothing_judged_is_said_and_not_taken_for_a_pass() -> None:
    assert words.headline(bare(sample())).startswith("Nothing was judged")
    assert words.headline(sample(levels=("fp16",))).startswith("Nothing was judged")


def test_the_front_leaves_out_what_another_level_beats_in_both() -> None:
    points = {"a": (10, 0.0), "b": (5, 0.1), "c": (6, 0.2), "twin": (5, 0.1), "d": (4, 0.5), "e": (4, 0.6)}
    assert costs.front(points) == {"a", "b", "twin", "d"}
    assert costs.front({}) == set()


def test_size_and_kld_needs_no_attribution() -> None:
    results = sample()
    both = costs.size_and_kld(results)
    assert both["fp16"] == (16_200_000_000, 0.0)
    assert both["q4_k_m"][1] == 0.02
    assert "damaged" not in both
    alone = costs.size_and_kld(results.model_copy(update={"attribution": []}))
    klds = [entry.kld_mean for entry in results.codebooks if entry.level == "q4_k_m"]
    assert alone["q4_k_m"][1] == pytest.approx(sum(klds) / 8)
    assert costs.size_and_kld(bare(results)) == {}


def test_a_half_is_worse_only_if_the_intervals_are_apart() -> None:
    def of(backbone: float, decoder: float) -> str:
        both = {"backbone_only": estimate(backbone, 0.1), "decoder_only": estimate(decoder, 0.1)}
        return worse_half(Attribution(level="q4_0", both=estimate(1.0), **both))

    assert of(2.0, 1.0) == "backbone"
    assert of(1.0, 2.0) == "depth decoder"
    assert of(1.0, 1.1) == "cannot be told"
