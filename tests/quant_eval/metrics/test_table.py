"""The table of metrics: a new one is one declaration beside its function, and is everywhere from then on."""

import ast
from math import inf
from pathlib import Path

import pytest

from miso_gguf.quant_eval import evaluation
from miso_gguf.quant_eval.accepting import accept
from miso_gguf.quant_eval.evaluation import Wanted, evaluate_plan
from miso_gguf.quant_eval.instruments.differences import INSTRUMENTS
from miso_gguf.quant_eval.metric import DIFFERENCE, DISTANCE, STAGES
from miso_gguf.quant_eval.metrics import divergence, table
from miso_gguf.quant_eval.metrics.divergence import Divergence
from miso_gguf.quant_eval.metrics.table import METRICS, frame_weights
from miso_gguf.quant_eval.report.write import write_reports
from miso_gguf.quant_eval.run.plan import Asked, plan_run

ROOM = Path(evaluation.__file__).parent


def test_a_new_metric_is_one_declaration(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the results, the gates and the reports, and no other file knows of it."""
    monkeypatch.setattr(divergence.DISTRIBUTIONS, "_members", dict(divergence.DISTRIBUTIONS._members))

    @divergence.DISTRIBUTIONS.metric("Worst KLD", "nats", "lower", DISTANCE, "The largest KLD of a clip.", digits=4)
    def kld_worst(found: Divergence) -> float:
        return float(found.kld.max())

    monkeypatch.setitem(table.METRICS, "kld_worst", divergence.DISTRIBUTIONS["kld_worst"])

    gates = tmp_path / "gates.toml"
    gates.write_text(
        'schema_version = 1\n[gates.kld_worst]\nkind = "at_most"\nmargins = { fp16 = 0.0, q8_0 = 0.0 }\n'
        "[history]\nanchor = 2\n[history.margins]\nkld_worst = { percent = 10, least = 0 }\n"
    )
    asked = Asked(tmp_path / "out", corpus="tiny", prompts=5, seeds=1, stages=("logits",), controls=False, threads=1)
    plan = plan_run(bundle, ["fp16", "q8_0"], "fp16", asked)
    results = evaluate_plan(plan, Wanted(gates=gates, vram=False))
    found = {entry.level: entry.estimate.value for entry in results.metrics if entry.metric == "kld_worst"}
    assert found["fp16"] == 0.0 < found["q8_0"]
    assert [(gate.level, gate.metric, gate.verdict) for gate in results.gates] == [("q8_0", "kld_worst", "FAIL")]
    write_reports(results, plan.audio, plan.out)
    for name in ("report.md", "report.html", "junit.xml"):
        assert "Worst KLD" in (plan.out / name).read_text("utf-8"), name
    accepted = tmp_path / "accepted.json"
    accept(plan.out, accepted, gates, force=True)
    again = evaluate_plan(plan, Wanted(gates=gates, vram=False, history=accepted))
    assert [(gate.kind, gate.verdict) for gate in again.gates][1:] == [("history", "PASS")]


def test_no_other_file_knows_a_metric_by_name() -> None:
    """Only where it is declared: a metric's key is the name of its function, and nowhere a text.

    An instrument bears the name of the metric that it gives.
    """
    for path in ROOM.rglob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)}
        known = {key for key in METRICS if key in texts and not _declares(path, key)}
        assert not known, f"{path.relative_to(ROOM)} names {', '.join(sorted(known))}"


def _declares(path: Path, key: str) -> bool:
    return f"def {key}(" in path.read_text("utf-8") or (key in INSTRUMENTS and path.parent.name == "instruments")


def test_what_is_declared_fits_together() -> None:
    for key, metric in METRICS.items():
        assert metric.key == key
        assert metric.stage in STAGES
        assert metric.kinds, key
        low, high = metric.range
        assert low < high, key
        assert metric.ideal is None or low <= metric.ideal <= high, key
        if metric.direction == "higher" and metric.ideal is not None and metric.range != DIFFERENCE:
            assert metric.ideal == high, f"{key}: nothing is better than no difference"
        if metric.counts_failures:
            assert metric.range == (-100, 100), key
    assert METRICS["first_divergence"].ideal is None
    assert METRICS["kld_cb0"].range == (0, inf)


def test_clips_count_by_their_frames_where_a_metric_is_of_frames() -> None:
    keys = ["kld_cb0", "eos_shift", "eos_shift_before", "eos_early", "lf0_rmse", "dur_ratio"]
    assert frame_weights(keys, 60) == {"kld_cb0": 60.0, "eos_shift_before": 60.0, "lf0_rmse": 60.0}
