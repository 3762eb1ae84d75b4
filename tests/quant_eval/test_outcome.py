"""What follows from gates, controls and gaps: the verdicts, and the names of what is missing."""

from typing import Any

import pytest

from miso_gguf.quant_eval.outcome import decided
from miso_gguf.quant_eval.results import (
    Control,
    CorpusInfo,
    Estimate,
    Extra,
    GateResult,
    LevelResult,
    MetricResult,
    ModelInfo,
    Results,
    Verdict,
)

SOME = Estimate(value=1.0, low=0.5, high=1.5, prompts=8, clips=8)


def level(name: str) -> LevelResult:
    return LevelResult(
        level=name, file_bytes=1, bits_per_weight=4.5, memory=None, rtf=None, ttfa_s=None,
        failures={}, clips=0, verdict=None,
    )  # fmt: skip


def gate(name: str, metric: str, verdict: Verdict, **more: Any) -> GateResult:
    found = None if verdict == "MISSING" else SOME
    return GateResult(
        level=name, metric=metric, kind=more.pop("kind", "at_most"), margin=1.0, estimate=found, p_value=None,
        verdict=verdict, reason=f"{metric}: why", **more,
    )  # fmt: skip


def results(*gates: GateResult, **more: Any) -> Results:
    """Two levels, of which logits and one-step were measured."""
    metrics = [
        MetricResult(level=name, metric=metric, estimate=SOME)
        for name in ("fp16", "q4_0")
        for metric in ("kld_cb0", "flip_rate")
    ]
    given = {
        "levels": [level("fp16"), level("q4_0")],
        "metrics": metrics,
        "stages": ["logits", "one-step"],
        "controls": [],
        **more,
    }
    model = ModelInfo(name="m", bundle="b", manifest_sha256="0", source_sha256="0")
    corpus = CorpusInfo(name="c", sha256="0", prompts=8, categories={}, seeds=[0])
    return Results(
        kind="run", created="2026-01-01T00:00:00+00:00", model=model, reference="fp16", corpus=corpus, settings={},
        machine={}, versions={}, notes=[], gates=list(gates), codebooks=[], attribution=[], clips=[], distributions=[],
        extras=[], verdict=None, **given,
    )  # fmt: skip


def control(*, behaved: bool) -> Control:
    return Control(name="c", expected="this", found="that", behaved=behaved)


GOOD = gate("q4_0", "kld_cb0", "PASS")


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        ([], None),
        ([GOOD], "PASS"),
        ([GOOD, gate("q4_0", "top1", "INCONCLUSIVE")], "INCONCLUSIVE"),
        ([GOOD, gate("q4_0", "top1", "INCONCLUSIVE", is_beyond=True)], "FAIL"),
        ([GOOD, gate("q4_0", "top1", "MISSING"), gate("q4_0", "lf0_rmse", "INCONCLUSIVE")], "MISSING"),
        ([GOOD, gate("q4_0", "top1", "MISSING"), gate("q4_0", "lf0_rmse", "FAIL")], "FAIL"),
        ([GOOD, gate("q4_0", "kld_cb0", "FAIL", kind="history")], "FAIL"),
    ],
)
def test_the_worst_outcome_is_the_verdict(gates: list[GateResult], verdict: Verdict | None) -> None:
    found = decided(results(*gates))
    assert found.verdict == verdict
    levels = {each.level: each.verdict for each in found.levels}
    assert levels["fp16"] is None, "nothing of it was judged"
    assert levels["q4_0"] == verdict


def test_a_control_that_does_not_behave_spoils_everything() -> None:
    assert decided(results(GOOD, controls=[control(behaved=True)])).verdict == "PASS"
    assert decided(results(GOOD, controls=[control(behaved=True), control(behaved=False)])).verdict == "FAIL"
    assert decided(results(controls=[control(behaved=False)])).verdict == "FAIL"


def test_what_is_missing_is_named() -> None:
    found = decided(results(GOOD, gate("q4_0", "top1", "MISSING")))
    assert found.missing == ["q4_0: top1: why"]


def test_a_stage_of_which_there_is_nothing_is_named_once() -> None:
    """And not each of its gates beside."""
    gates = [GOOD, gate("q4_0", "dur_ratio", "MISSING"), gate("q4_0", "f0_range", "MISSING")]
    found = decided(results(*gates, stages=["logits", "free"]))
    assert found.missing == [
        "fp16: no clip has anything of the stage free",
        "q4_0: no clip has anything of the stage free",
    ]
    assert found.verdict == "MISSING"
    assert decided(results(GOOD, stages=["logits", "free"])).verdict == "MISSING", "without a gate too"


def test_a_level_that_vanished_is_named_once() -> None:
    """Ten gates against what was accepted say the same."""
    gates = [gate("q8_0", metric, "MISSING", kind="history") for metric in ("kld_cb0", "top1")]
    found = decided(results(GOOD, *gates))
    assert found.missing == ["q8_0: was not run, and is in the accepted evaluation"]
    assert found.verdict == "MISSING"


def test_extras_that_were_asked_for() -> None:
    about = Estimate(value=1, low=0, high=2, prompts=8, clips=8)

    def extra(name: str, why_not: str | None, *levels: str) -> Extra:
        return Extra(name=name, unit="%", values=dict.fromkeys(levels, about), why_not=why_not)

    there, absent = extra("wer", None, "fp16", "q4_0"), extra("utmos", "not run: no model")
    half = extra("mine", None, "fp16")
    assert decided(results(GOOD), [there]).missing == []
    found = decided(results(GOOD), [there, absent, half])
    assert found.missing == ["utmos: not run: no model", "mine: no clip of q4_0 has a value"]
    assert found.verdict == "MISSING"
