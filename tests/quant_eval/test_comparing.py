"""Two bundles compared: the change is judged, in either direction, by one reference of both."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluations import FRAMES, GATES, KLD, observations

from builders import Built
from miso_gguf.console import run
from miso_gguf.quant_eval.cli import cli
from miso_gguf.quant_eval.gates.comparison import NEW, OLD, comparison_controls, judge_comparison
from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.results import Results
from miso_gguf.quant_eval.run.damage import damaged
from miso_gguf.runtime.bundle import open_level

FEW = ["--prompts", 6, "--seeds", 1, "--threads", 1, "--stages", "logits", "--no-vram"]


def miso_eval(*arguments: object) -> int:
    return run(cli, [str(argument) for argument in arguments], "miso-eval")


@pytest.fixture(scope="module")
def good(built: Built) -> Path:
    return built.tiny("fp16", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def bad(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its Q4_0 alone, damaged: it has no FP16."""
    path = tmp_path_factory.mktemp("bad") / "bundle"
    damaged(open_level(good, "q4_0"), path, strength=0.3)
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all comparisons: what is known of a bundle is not measured again."""
    return tmp_path_factory.mktemp("out")


@pytest.mark.parametrize(("order", "code"), [("bad good", 0), ("good bad", 1), ("good good", 0), ("bad bad", 0)])
def test_the_change_is_judged_not_the_distance(order: str, code: int, good: Path, bad: Path, out: Path) -> None:
    old, new = ({"good": good, "bad": bad}[name] for name in order.split())
    given = ["--reference-bundle", good] if order == "bad bad" else []
    assert miso_eval("compare", old, new, "--level", "q4_0", *FEW, *given, "--out", out) == code
    found = Results.model_validate_json((out / "results.json").read_bytes())
    assert (found.kind, found.reference) == ("compare", "fp16")
    assert {(gate.level, gate.kind) for gate in found.gates} == {("new", "paired")}
    assert {gate.metric for gate in found.gates} == {"kld_cb0", "kld_rest", "top1", "eos_shift"}
    assert [(level.level, level.verdict is None) for level in found.levels] == [
        ("fp16", True),
        ("old", True),
        ("new", False),
    ]
    kld = {each.level: each.estimate.value for each in found.metrics if each.metric == "kld_cb0"}
    assert kld["fp16"] == 0 < min(kld["old"], kld["new"])
    assert (kld["old"] == kld["new"]) == (old == new)
    if old == new:
        assert {gate.verdict for gate in found.gates} == {"PASS"}
    assert [control.behaved for control in found.controls] == [True] * 5
    assert found.controls[0].name == "fp16 against itself"
    assert not (out / "observations.json").exists()
    assert miso_eval("accept", out, out / "accepted.json", "--force") == 2


def test_bundles_that_cannot_be_compared(
    good: Path, bad: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in good.iterdir():
        (other / path.name).symlink_to(path)
    document = json.loads((good / "miso.json").read_text())
    document["sources"] = [{**source, "sha256": "0" * 64} for source in document["sources"]]
    (other / "miso.json").unlink()
    (other / "miso.json").write_text(json.dumps(document))
    cases: Sequence[tuple[list[object], str]] = [
        ([good, other], f"{other} is of another checkpoint"),
        ([other, bad], f"{bad} is of another checkpoint"),
        ([bad, bad], "no level fp16, which both are compared with. Convert it, or name a bundle that has it"),
        ([good, good, "--reference-bundle", bad], f"{bad}: no level fp16"),
    ]
    for arguments, message in cases:
        assert miso_eval("compare", *arguments, "--level", "q4_0", *FEW, "--out", tmp_path / "out") == 2
        said = capfd.readouterr().err.strip().splitlines()
        assert message in said[-1]
        assert said[-1].startswith("miso-eval: error: ")


def test_what_new_lacks_is_missing_and_what_old_lacks_is_no_gate() -> None:
    old = {"kld_cb0": observations(KLD), "top1": observations(100 - 1e4 * KLD)}
    new = {"kld_cb0": observations(KLD), "lf0_rmse": observations(KLD)}
    verdicts = {gate.metric: gate.verdict for gate in judge_comparison({OLD: old, NEW: new}, GATES)}
    assert verdicts == {"kld_cb0": "PASS", "top1": "MISSING"}


def test_every_gated_metric_has_a_step_and_each_gate_can_fail() -> None:
    assert {gate.metric for gate in GATES.gates} <= set(GATES.history)
    rng = np.random.default_rng(0)
    found = {}
    for key in GATES.history:
        metric = METRICS[key]
        values = np.abs(rng.normal(0, 1, KLD.shape)) + 0.1
        if metric.counts_failures:
            values = np.zeros(KLD.shape)
        elif metric.direction == "higher":
            values = 100 - values
        found[key] = observations(values, 1.0 if metric.counts_failures else FRAMES)
    controls = comparison_controls({OLD: found, NEW: found}, GATES, resamples=499)
    assert {control.metric: control.behaved for control in controls} == dict.fromkeys(GATES.history, True)
    assert not comparison_controls(
        {OLD: found, NEW: {k: each.take(each.clips[:2]) for k, each in found.items()}}, GATES
    )


def test_a_control_that_its_gate_lets_pass_does_not_behave(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {side: {"kld_cb0": observations(KLD)} for side in (OLD, NEW)}
    assert [control.behaved for control in comparison_controls(measured, GATES)] == [True]
    monkeypatch.setattr("miso_gguf.quant_eval.gates.comparison._TIMES", 0.1)
    assert [control.behaved for control in comparison_controls(measured, GATES)] == [False]
