"""What was measured is what the files hold, of what was asked for nothing is left out silently, and FP16 can fail."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from builders import Built
from miso_gguf.console import run
from miso_gguf.core.errors import BundleError
from miso_gguf.quant_eval.cli import cli
from miso_gguf.quant_eval.evaluation import Wanted, evaluate_plan
from miso_gguf.quant_eval.results import Results
from miso_gguf.quant_eval.run.plan import Asked, plan_run
from miso_gguf.quant_eval.run.record_store import RecordError
from miso_gguf.runtime.bundle import open_level

FEW = ["--prompts", 5, "--seeds", 1, "--threads", 1, "--stages", "logits", "--no-vram", "--no-controls"]


def miso_eval(*arguments: object) -> int:
    return run(cli, [str(argument) for argument in arguments], "miso-eval")


@pytest.fixture(scope="module")
def bundle(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One to be changed."""
    return shutil.copytree(built.tiny("f32", "fp16"), tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def out(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of all that it has."""
    directory = tmp_path_factory.mktemp("out")
    assert miso_eval("run", bundle, *FEW, "--out", directory) == 0
    return directory


def results_in(out: Path) -> Results:
    return Results.model_validate_json((out / "results.json").read_bytes())


def gates(path: Path, margin: float) -> Path:
    path.write_text(f'schema_version = 1\n[gates.kld_cb0]\nkind = "at_most"\nmargins = {{ fp16 = {margin} }}\n')
    return path


def test_fp16_is_judged_by_what_it_loses_to_f32(bundle: Path, out: Path, tmp_path: Path) -> None:
    results = results_in(out)
    (fp16,) = results.levels
    assert (fp16.level, fp16.verdict, fp16.why_not_judged, results.verdict) == ("fp16", "PASS", None, "PASS")
    kld = next(gate for gate in results.gates if (gate.level, gate.metric) == ("fp16", "kld_cb0"))
    assert kld.estimate is not None
    assert 0 < kld.estimate.value < 1e-4
    shown = next(each for each in results.metrics if (each.level, each.metric) == ("fp16", "kld_cb0"))
    assert shown.estimate.value == kld.estimate.value
    assert any(each.kld_mean > 0 for each in results.codebooks)
    assert {each.level for each in results.attribution} == {"fp16"}
    assert results.controls[0].found == "equal in every clip", "that it equals itself is still seen"
    assert any("fp16 is shown and judged against f32" in note for note in results.notes)
    # And it can fail. The records are there: nothing is run again.
    strict = gates(tmp_path / "gates.toml", kld.estimate.value / 10)
    assert miso_eval("run", bundle, *FEW, "--gates", strict, "--out", out) == 1
    assert results_in(out).levels[0].verdict == "FAIL"


def test_without_f32_it_is_not_judged(bundle: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert miso_eval("run", bundle, "--levels", "fp16", *FEW, "--out", out) == 2, "and nothing else is"
    said = capfd.readouterr().err
    assert "not measured" not in said
    assert "nothing was judged: F16 not run: level F32 of tiny was left out" in said
    (fp16,) = results_in(out).levels
    assert (fp16.verdict, results_in(out).gates) == (None, [])


def test_progress_is_of_both(bundle: Path, out: Path) -> None:
    asked = Asked(out, prompts=5, seeds=1, stages=("logits",), controls=False, threads=1)
    told: list[int] = []
    plan = plan_run(bundle, [], "fp16", asked)
    evaluate_plan(plan, Wanted(vram=False), told.append)
    assert told == list(range(5 * 2 * 2 + 1))
    assert plan.clips() == told[-1]


def test_an_extra_that_cannot_be_measured_is_named(bundle: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert miso_eval("run", bundle, *FEW, "--extra", "mine=no_such:thing", "--out", out) == 2
    said = capfd.readouterr()
    assert "miso-eval: not measured: mine: not run: " in said.err
    assert "mine: not run: " in said.out
    results = results_in(out)
    assert (results.verdict, len(results.missing)) == ("MISSING", 1)
    assert miso_eval("run", bundle, *FEW, "--out", out) == 0, "who was not asked for is not missed"


@pytest.mark.parametrize("part", ["backbone", "decoder", "embeddings", "codec_decoder"])
@pytest.mark.parametrize("key", ["f32", "fp16"])
def test_replaced_weights_have_no_records(
    part: str, key: str, bundle: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else they would pass by what was measured of those that were there before."""
    path: Path = getattr(open_level(bundle, key), part)
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([before[-1] ^ 1]))
    try:
        assert miso_eval("run", bundle, *FEW, "--out", out) == 2
    finally:
        path.write_bytes(before)
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"miso-eval: error: {path}: holds something else than miso.json says")
    assert f"miso-convert verify {bundle}" in said


def test_weights_that_are_replaced_meanwhile_void_the_run(bundle: Path, tmp_path: Path) -> None:
    path = open_level(bundle, "fp16").codec_encoder  # which no process has open here
    before = path.read_bytes()

    def change(done: int) -> None:
        if done == 1:
            path.write_bytes(before[:-1] + b"?")
            raise KeyboardInterrupt

    asked = Asked(tmp_path, prompts=1, seeds=1, stages=("logits",), controls=False, threads=1)
    plan = plan_run(bundle, ["fp16"], "fp16", asked)
    try:
        with pytest.raises(BundleError, match="was changed while it was evaluated"):
            evaluate_plan(plan, Wanted(vram=False), change)
    finally:
        path.write_bytes(before)
    with pytest.raises(BundleError, match="with --fresh"):
        evaluate_plan(plan, Wanted(vram=False))
    command = ["run", bundle, "--levels", "fp16", *FEW, "--prompts", 1, "--out", tmp_path]
    assert miso_eval(*command) == miso_eval(*command, "--fresh") == 2, "nothing is judged, but"
    assert (tmp_path / "results.json").exists()


def test_records_of_another_machine_are_refused(bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(out, prompts=5, seeds=1, stages=("logits",), controls=False, threads=1)
    monkeypatch.setattr("miso_gguf.quant_eval.run.plan.instructions", lambda: "AVX9")
    with pytest.raises(RecordError, match=r"are of another plan .*--fresh"):
        evaluate_plan(replace(plan_run(bundle, [], "fp16", asked), finer=None), Wanted(vram=False))
