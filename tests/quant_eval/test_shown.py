"""What the command says, and its exit code: never 0 beside what is missing or has failed."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from miso_gguf.quant_eval import shown as module
from miso_gguf.quant_eval.results import Estimate, GateResult, Verdict
from miso_gguf.quant_eval.run.cost import Cost
from miso_gguf.quant_eval.shown import exit_code, hashing_bar, show_cost, show_gates


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
    assert exit_code(verdict, missing, ["why"], strict=strict) == code
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
def test_a_verdict_says_what_it_does(made: GateResult, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    show_gates([made])
    assert said in " ".join(capfd.readouterr().out.split())


def cost(wall_s: float | None, said: str) -> Cost:
    return Cost(12, 100.0, wall_s, said, logits_bytes=2 * 10**9, copies_bytes=16 * 10**9, audio_bytes=0)


def test_the_cost_says_what_it_includes(capfd: pytest.CaptureFixture[str]) -> None:
    show_cost(cost(7200.0, "speaking, codec"))
    said = " ".join(capfd.readouterr().err.split())
    assert said.startswith(
        "12 clips, about 2 min of speech, 18.00 GB on disk (logits 2.00 GB, damaged levels 16.00 GB)"
    )
    assert "about 2.0 h (speaking, codec)" in said
    show_cost(cost(None, "no estimate of the time on a GPU"))
    said = " ".join(capfd.readouterr().err.split())
    assert "; no estimate of the time on a GPU. It resumes" in said


@pytest.mark.parametrize(("step_s", "is_said"), [(0.1, False), (1.5, True)])
def test_hashing_is_told_of_after_two_seconds(
    step_s: float, is_said: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with hashing_bar() as hashed:
        for done in range(1, 6):
            hashed(done * 10**9, 5 * 10**9)
            now[0] += step_s
    assert ("checking the bundle's files against its manifest: 5.00 GB" in capfd.readouterr().err) == is_said
