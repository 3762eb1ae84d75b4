"""What the command says, and its exit code: never 0 beside what is missing or has failed."""

from collections.abc import Sequence

import pytest
from sample_results import sample

from miso_gguf.quant_eval.cli import _exit_code
from miso_gguf.quant_eval.command_text import cost_text, gate_rows, history_line, result_lines
from miso_gguf.quant_eval.results import Control, Estimate, GateResult, Verdict
from miso_gguf.quant_eval.run.cost import Cost, Part


@pytest.mark.parametrize(
    ("verdict", "missing", "strict", "code"),
    [
        ("PASS", [], False, 0),
        ("PASS", [], True, 0),
        ("INCONCLUSIVE", [], False, 0),
        ("INCONCLUSIVE", [], True, 1),
        ("FAIL", [], False, 1),
        ("FAIL", ["q8_0"], False, 1),
        ("MISSING", ["q8_0: Duration"], False, 2),
        ("MISSING", ["q8_0: Duration"], True, 2),
        ("MISSING", [], False, 2),
        ("PASS", ["q8_0"], False, 2),
        (None, [], False, 2),
        (None, ["q8_0"], True, 2),
    ],
)
def test_exit_codes(
    verdict: Verdict | None, missing: Sequence[str], strict: bool, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(verdict, missing, ["why"], strict=strict) == code
    said = capfd.readouterr().err
    assert ("miso-eval: not measured: " + "; ".join(missing) in said) == bool(missing)
    assert ("nothing was judged: why" in said) == (verdict is None)


def gate(verdict: Verdict, **more: object) -> GateResult:
    found = Estimate(value=0.5, low=0.4, high=0.6, prompts=8, clips=8)
    given = {"metric": "kld_cb0", "kind": "at_most", "margin": 1.0, "estimate": found, **more}
    return GateResult.model_validate({"level": "q4_0", "p_value": 0.04, "verdict": verdict, "reason": "", **given})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (gate("PASS"), "PASS"),
        (gate("INCONCLUSIVE", needed=41), "INCONCLUSIVE; 41 prompts would tell"),
        (
            gate("INCONCLUSIVE", metric="new_failures", kind="failures", needed=299),
            "INCONCLUSIVE; 299 clips would tell",
        ),
        (gate("INCONCLUSIVE", is_beyond=True), "INCONCLUSIVE, and fails"),
        (gate("MISSING", estimate=None), "MISSING"),
    ],
)
def test_a_verdict_says_what_it_does(made: GateResult, said: str) -> None:
    ((*_, cell),) = gate_rows([made])
    assert cell.startswith(said)


@pytest.mark.parametrize(
    ("made", "cells"),
    [
        (gate("PASS"), ("0.50000 nats", "0.40000 to 0.60000", "≤ 1")),
        (
            gate("FAIL", kind="history", margin=1.27897e-06),
            ("0.50000 nats", "0.40000 to 0.60000", "≤ +1.279e\N{MINUS SIGN}06"),
        ),
        (gate("PASS", metric="dur_ratio", kind="within", margin=0.03), ("0.500 ln", "0.400 to 0.600", "±0.03")),
        (gate("MISSING", estimate=None), ("-", "-", "≤ 1")),
    ],
)
def test_margins_say_which_side_is_tolerated(made: GateResult, cells: tuple[str, ...]) -> None:
    ((_, _, *shown, _),) = gate_rows([made])
    assert tuple(shown) == cells


def test_failures_are_shown_as_counts() -> None:
    none = Estimate(value=0.0, low=-22.1, high=22.1, prompts=12, clips=12)
    made = gate("INCONCLUSIVE", metric="new_failures", kind="failures", estimate=none, needed=299)
    ((_, _, value, bounds, margin, _),) = gate_rows(
        [made.model_copy(update={"reason": "0 of 12 clips: at most 22.1 %"})]
    )
    assert (value, bounds, margin) == ("0 of 12 clips", "at most 22.1 %", "≤ 1 %")


def test_changes_that_pass_are_counted_and_not_listed() -> None:
    held = [gate("PASS", kind="history"), gate("PASS", kind="anchor"), gate("INCONCLUSIVE", kind="history")]
    assert history_line([gate("FAIL"), *held]) == "history: 2 of 3 gates pass"
    assert [row[1] for row in gate_rows([gate("PASS"), *held])] == ["KLD, semantic", "KLD, semantic (history)"]


def cost(parts: dict[str, float], why_not: str = "") -> Cost:
    made = tuple(Part(name, seconds) for name, seconds in parts.items())
    return Cost(12, 100.0, made, why_not, logits_bytes=2 * 10**9, copies_bytes=16 * 10**9, audio_bytes=0)


def test_the_cost_is_a_line_and_its_larger_parts() -> None:
    said = cost_text(cost({"speaking": 5400.0, "replays": 1620.0, "hashing": 130.0, "reports": 50.0})).splitlines()
    assert said == [
        "12 clips, about 2 min of speech, 18.00 GB on disk (logits 2.00 GB, damaged levels 16.00 GB); about 2.0 h. "
        "It resumes after Ctrl-C.",
        "  speaking    1.5 h  75 %",
        "  replays    27 min  22 %",
        "  the rest    3 min   2 %",
    ]


def test_the_cost_of_one_part_is_all_of_it() -> None:
    assert cost_text(cost({"speaking": 60.0})).splitlines()[1:] == ["  speaking     60 s  100 %"]


def test_a_time_that_is_not_known_has_no_parts() -> None:
    (said,) = cost_text(cost({}, "no estimate of the time on a GPU")).splitlines()
    assert said.endswith("; no estimate of the time on a GPU. It resumes after Ctrl-C.")


def test_controls_are_counted_and_those_astray_named() -> None:
    results = sample()
    good = [control.model_copy(update={"behaved": True}) for control in results.controls]
    lines = dict(result_lines(results.model_copy(update={"controls": good})))
    assert lines[f"controls: {len(good)} of {len(good)} behaved"] is False
    bad = Control(name="all scales off by 50 %", expected="FAIL of F0 error", found="PASS", behaved=False)
    lines = dict(result_lines(results.model_copy(update={"controls": [*good, bad]})))
    assert lines[f"controls: {len(good)} of {len(good) + 1} behaved"] is True
    assert lines["control all scales off by 50 %: PASS (expected: FAIL of F0 error)"] is True
