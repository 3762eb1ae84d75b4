"""History: what is a regression, from the last step and from the first; what is missing; what cannot be compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import FRAMES, GATES, KLD, MODEL, SUBJECT, THERE, found, observations, results

from miso_gguf.quant_eval.gates.accepted import Accepted, accept_into, load_accepted
from miso_gguf.quant_eval.gates.history import (
    judge_history,
    no_entry,
    noise_between_machines,
    verdict_to_accept,
    with_history,
)
from miso_gguf.quant_eval.gates.judge import worst
from miso_gguf.quant_eval.gates.observed import AcceptedError, Observed, check_comparable, observed_of
from miso_gguf.quant_eval.results import GateResult, LevelResult, Verdict

FEW = 499
"""Resamples."""
RNG = np.random.default_rng(1)


def held(*evaluations: Observed) -> Accepted:
    """A file into which these were accepted, one after the other."""
    accepted = None
    for each in evaluations:
        accepted = _accepted(accepted, each)
    assert accepted is not None
    return accepted


def _accepted(before: Accepted | None, each: Observed) -> Accepted:
    path = Path(_accepted.directory) / "held.json"  # type: ignore[attr-defined]
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_text(before.model_dump_json())
    accept_into(path, each, lambda _held: "PASS")
    return load_accepted(path)


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path) -> None:
    _accepted.directory = tmp_path  # type: ignore[attr-defined]


def outcomes(now: Observed, accepted: Accepted) -> dict[str, Verdict]:
    """By kind of gate."""
    return {gate.kind: gate.outcome for gate in judge_history(now, accepted, GATES, resamples=FEW)}


# One step, and many


def test_an_unchanged_build_passes_to_the_last_digit() -> None:
    """What is kept is rounded, and so is what is held against it."""
    (gate,) = judge_history(found(), held(found()), GATES)
    assert (gate.kind, gate.verdict) == ("history", "PASS")
    assert gate.reason.endswith("every clip is as it was")
    assert outcomes(found(KLD * (1 + 1e-9)), held(found())) == {"history": "PASS"}


@pytest.mark.parametrize("factor", [1.21, 1.62, 2.0])
def test_one_step_that_is_seen(factor: float) -> None:
    assert outcomes(found(factor * KLD), held(found())) == {"history": "FAIL"}
    assert outcomes(found(KLD), held(found(factor * KLD))) == {"history": "PASS"}, "the other way round"


def test_many_small_steps_are_stopped_by_the_anchor() -> None:
    """8 % is within a step; 1.08 to the third is 26 %."""
    accepted = held(found())
    for step in range(1, 4):
        now = found(1.08**step * KLD)
        said = outcomes(now, accepted)
        assert said["history"] != "FAIL"
        assert said.get("anchor") == (None if step == 1 else "PASS" if step == 2 else "FAIL")
        accepted = held(*[found(1.08**each * KLD) for each in range(step + 1)])


def test_thirteen_steps_of_55_percent_need_force_each_and_the_anchor_never_moves(tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"
    accept_into(path, found(), lambda _held: "PASS")
    for step in range(1, 14):
        now = found(1.55**step * KLD)

        def judge(accepted: Accepted | None, now: Observed = now) -> Verdict | None:
            return verdict_to_accept(results(), now, accepted, GATES)

        if step == 1:
            with pytest.raises(AcceptedError, match="its verdict is FAIL"):
                accept_into(path, now, judge)
        assert accept_into(path, now, judge, force=True).forced
    accepted = load_accepted(path)
    (entry,) = accepted.entries
    assert entry.anchor == found()
    assert entry.accepted == found(1.55**13 * KLD)
    # Nothing changed since; yet it is 300 times the first.
    assert outcomes(entry.accepted, accepted) == {"history": "PASS", "anchor": "FAIL"}
    last = accepted.log[-1].date[:10]
    many = f"13 of 14 accepted evaluations were accepted by force, the last on {last} with verdict FAIL"
    assert accepted.forced() == many
    noted = with_history(results(), entry.accepted, accepted, GATES)
    assert noted.notes == [f"history: {many}"]


def test_what_was_left_out_by_force_is_still_held_against_the_anchor() -> None:
    two = {"kld_cb0": observations(KLD), "top1": observations(100 - 1e4 * KLD)}
    first = observed_of(results(), {"q4_0": two, "q8_0": two})
    for left in ({"q4_0": two}, {"q4_0": two, "q8_0": {"top1": two["top1"]}}):
        accepted = held(first, observed_of(results(created="later"), left))
        gates = judge_history(
            observed_of(results(), {"q4_0": two, "q8_0": {**two, "kld_cb0": observations(100 * KLD)}}), accepted, GATES
        )
        assert [each.kind for each in gates if each.outcome == "FAIL"] == ["anchor"]
        assert {each.outcome for each in judge_history(accepted.entries[0].accepted, accepted, GATES)} == {"PASS"}


# What is not there


def test_what_was_accepted_and_is_not_there_is_missing() -> None:
    two = {"kld_cb0": observations(KLD), "top1": observations(100 - 1e4 * KLD), "mcd": observations(KLD)}
    before = observed_of(results(), {"q4_0": two, "q8_0": two, "f32": two})
    now = observed_of(results(), {"q4_0": {"kld_cb0": observations(KLD)}, "q4_k_m": two})
    gates = judge_history(now, held(before), GATES)
    assert [(gate.level, gate.metric, gate.outcome) for gate in gates] == [
        ("q4_0", "kld_cb0", "PASS"),
        ("q4_0", "top1", "MISSING"),
        ("q8_0", "kld_cb0", "MISSING"),
        ("q8_0", "top1", "MISSING"),
    ], "F32 has no margins, MCD no tolerance, Q4_K_M no history"
    assert "but it was not measured now" in gates[1].reason
    assert "but q8_0 was not run now" in gates[2].reason
    # Other stages, on purpose, are compared over these only.
    assert [gate.outcome for gate in judge_history(now, held(before), GATES.only(["one-step"]))] == []


def test_another_kind_of_machine_has_nothing_to_be_held_against() -> None:
    accepted = held(found())
    now = found(kind=THERE)
    judged = with_history(results(THERE), now, accepted, GATES)
    assert judged.gates == []
    assert judged.missing == [no_entry(now, accepted)]
    assert "CPU (AVX2). There are: CPU (AVX2 AVX512). Accept one" in judged.missing[0]
    # That is no reason not to accept it as the first of its kind; anything else that is missing is.
    passed = GateResult(
        level="q4_0", metric="kld_cb0", kind="at_most", margin=1, estimate=None, p_value=None, verdict="PASS", reason=""
    )
    first = judged.model_copy(update={"verdict": "MISSING", "gates": [passed]})
    assert verdict_to_accept(first, now, accepted, GATES) == "PASS"
    more = first.model_copy(update={"missing": [*first.missing, "q8_0: was not run"]})
    assert verdict_to_accept(more, now, accepted, GATES) == "MISSING"
    failed = first.model_copy(update={"gates": [passed, passed.model_copy(update={"verdict": "FAIL"})]})
    assert verdict_to_accept(failed, now, accepted, GATES) == "FAIL"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "Other"}, "model is 'Other', the accepted one's 'Tiny [1]'"),
        ({"source_sha256": "dd"}, "checkpoint is 'dd', the accepted one's 'bb'"),
        ({"corpus_sha256": "dd"}, "corpus is 'dd', the accepted one's 'cc'"),
        ({"reference": "f32"}, "level compared with is 'f32', the accepted one's 'fp16'"),
        ({"settings": {**SUBJECT.settings, "top_k": 1}}, "setting top_k is 1, the accepted one's 50"),
        ({"settings": {**SUBJECT.settings, "top_p": 1}}, "setting top_p is 1, the accepted one's None"),
    ],
)
def test_something_else_cannot_be_compared(change: Mapping[str, Any], message: str) -> None:
    accepted = held(found())
    check_comparable(SUBJECT, accepted.entries[0].accepted.subject)
    other = found().model_copy(update={"subject": SUBJECT.model_copy(update=change)})
    with pytest.raises(AcceptedError) as caught:
        judge_history(other, accepted, GATES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_clips_that_both_have_are_compared() -> None:
    """One seed was run: the easy one, whose mean is lower; that is not an improvement."""
    hard = KLD * [[1, 3]]
    (gate,) = judge_history(
        observed_of(results(), {"q4_0": {"kld_cb0": observations(1.5 * hard[:, :1], FRAMES[:, :1])}}),
        held(found(hard)),
        GATES,
    )
    assert gate.verdict == "FAIL"
    assert gate.estimate is not None
    assert gate.estimate.clips == 20
    assert "(of its 40 clips 20 were run)" in gate.reason


def test_scores_of_another_instrument_are_another_measurement() -> None:
    before, same, newer = (found().model_copy(update={"instruments": {"kld_cb0": by}}) for by in ("1.0", "1.0", "1.1"))
    (gate,) = judge_history(same, held(before), GATES)
    assert gate.verdict == "PASS"
    (gate,) = judge_history(newer, held(before), GATES)
    assert gate.verdict == "MISSING"
    assert "it is scored by 1.1, not by 1.0" in gate.reason


# Two machines


def test_a_metric_that_is_no_more_is_passed_over() -> None:
    """An earlier version's, in an accepted file of two kinds of machine."""
    both = {"abolished": observations(KLD), "kld_cb0": observations(KLD)}
    there = observed_of(results(THERE), {"q4_0": {**both, "kld_cb0": observations(1.05 * KLD)}})
    (gate,) = judge_history(found(), held(observed_of(results(), {"q4_0": both}), there), GATES)
    assert (gate.metric, gate.verdict) == ("kld_cb0", "PASS")


def test_what_two_machines_make_of_one_build_is_tolerated() -> None:
    there = KLD * np.exp(RNG.normal(0.2, 0.01, KLD.shape))
    accepted = held(found(), found(there, THERE))
    noise = noise_between_machines(accepted, "q4_0", "kld_cb0")
    assert 0.2 * KLD.mean() < noise < 0.4 * KLD.mean()
    now = found(1.15 * KLD)
    assert outcomes(now, held(found())) == {"history": "FAIL"}
    assert outcomes(now, accepted) == {"history": "PASS"}
    assert noise_between_machines(held(found()), "q4_0", "kld_cb0") == 0
    for other in ({"versions": {"numpy": "3"}}, {"model": MODEL.model_copy(update={"manifest_sha256": "ff"})}):
        assert noise_between_machines(held(found(), found(there, THERE, **other)), "q4_0", "kld_cb0") == 0


def test_another_rendition_is_no_noise() -> None:
    """Where FP16 itself says something else there, the two have nothing to do with each other."""
    there = KLD * np.exp(RNG.normal(2, 1, KLD.shape))
    elsewhere = observed_of(results(THERE), {"q4_0": {"kld_cb0": observations(there, FRAMES + 1)}})
    assert noise_between_machines(held(found(), elsewhere), "q4_0", "kld_cb0") == 0
    # And if it seems to have said the same, no more than the anchor tolerates is taken for noise.
    accepted = held(found(), found(there, THERE))
    assert noise_between_machines(accepted, "q4_0", "kld_cb0") > KLD.mean()
    assert outcomes(found(1.62 * KLD), accepted) == {"history": "FAIL"}
    assert outcomes(found(1.62 * there, THERE), accepted) == {"history": "FAIL"}


def test_verdicts_follow_in_the_results() -> None:
    """As `outcome.py` sees them."""
    level = LevelResult(
        level="q4_0",
        file_bytes=1,
        bits_per_weight=4.5,
        memory=None,
        rtf=None,
        ttfa_s=None,
        failures={},
        clips=0,
        verdict=None,
    )
    judged = with_history(results(levels=[level]), found(2 * KLD), held(found()), GATES)
    assert worst(gate.outcome for gate in judged.gates) == "FAIL"
    assert json.loads(judged.model_dump_json())["gates"][0]["kind"] == "history"
