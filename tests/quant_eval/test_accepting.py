"""Accepting an evaluation and holding others against it, by the command: what is said, and the exit codes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from builders import Built
from miso_gguf.console import run
from miso_gguf.quant_eval.cli import cli
from miso_gguf.quant_eval.machine import instructions
from miso_gguf.quant_eval.results import Results


def miso_eval(*arguments: object) -> int:
    return run(cli, [str(argument) for argument in arguments], "miso-eval")


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.tiny("fp16", "q8_0", "q4_0")


def evaluation(bundle: Path, out: Path, *more: object) -> int:
    few = ("--prompts", 8, "--seeds", 1, "--threads", 1, "--stages", "logits", "--no-vram", "--no-controls")
    return miso_eval("run", bundle, *few, "--out", out, *more)


@pytest.fixture(scope="module")
def measured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    assert evaluation(bundle, out) == 0
    return out


@pytest.fixture
def report(measured: Path, tmp_path: Path) -> Path:
    """One that a test may change; its records are there."""
    return Path(shutil.copytree(measured, tmp_path / "report"))


@pytest.fixture
def accepted(report: Path, tmp_path: Path) -> Path:
    path = tmp_path / "accepted.json"
    # Two stages were left out on purpose, and this is the first: there is no history that they could be missing in.
    assert miso_eval("accept", report, path) == 0
    return path


def edit(path: Path, *keys: Any, value: Any) -> None:
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value(inner[keys[-1]]) if callable(value) else value
    path.write_text(json.dumps(document))


def better(values: list[float]) -> list[float]:
    return [value / 1.5 for value in values]


def flat(said: str) -> str:
    """Without line breaks."""
    return " ".join(said.split())


def results(report: Path) -> Results:
    return Results.model_validate_json((report / "results.json").read_bytes())


def test_the_same_again_passes_every_gate(report: Path, accepted: Path, bundle: Path) -> None:
    assert miso_eval("gate", report, "--accepted", accepted) == 0
    assert evaluation(bundle, report, "--history", accepted) == 0
    gates = [gate for gate in results(report).gates if gate.kind == "history"]
    assert {gate.level for gate in gates} == {"q8_0", "q4_0"}
    assert {gate.metric for gate in gates} >= {"kld_cb0", "kld_rest", "top1", "eos_shift"}
    assert {gate.verdict for gate in gates} == {"PASS"}
    assert miso_eval("accept", report, accepted) == 0
    assert len(json.loads(accepted.read_text())["log"]) == 2


def test_worse_than_accepted_fails_and_is_accepted_by_force_alone(
    report: Path, accepted: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in ("anchor", "accepted"):
        edit(accepted, "entries", 0, place, "levels", "q4_0", "kld_cb0", "values", value=better)
    assert miso_eval("gate", report, "--accepted", accepted) == 1
    assert evaluation(bundle, report, "--history", accepted) == 1
    found = results(report)
    assert ({level.level: level.verdict for level in found.levels}["q4_0"], found.verdict) == ("FAIL", "FAIL")
    before = accepted.read_bytes()
    capfd.readouterr()
    assert miso_eval("accept", report, accepted) == 2
    assert "it is not accepted: its verdict is FAIL. With --force it is" in capfd.readouterr().err
    assert accepted.read_bytes() == before
    assert miso_eval("accept", report, accepted, "--force") == 0
    assert "accepted (by force, with verdict FAIL: it says so for ever)" in flat(capfd.readouterr().out)
    # From now on it passes by the last one, but neither by the anchor, nor without a word.
    assert miso_eval("gate", report, "--accepted", accepted) == 1
    assert "1 of 2 accepted evaluations were accepted by force" in flat(capfd.readouterr().out)
    assert evaluation(bundle, report, "--history", accepted) == 1
    assert any("accepted by force" in note for note in results(report).notes)
    assert {gate.kind for gate in results(report).gates if gate.outcome == "FAIL"} == {"anchor"}


def test_a_level_that_vanished_is_2_and_named(
    report: Path, accepted: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluation(bundle, report, "--levels", "fp16,q4_0", "--history", accepted) == 2
    assert "q8_0: was not run, and is in the accepted evaluation" in flat(capfd.readouterr().err)
    assert results(report).verdict == "MISSING"
    assert miso_eval("gate", report, "--accepted", accepted) == 2
    assert "q8_0" in capfd.readouterr().err
    assert miso_eval("accept", report, accepted) == 2
    assert "its verdict is MISSING" in capfd.readouterr().err
    assert evaluation(bundle, report, "--levels", "fp16", "--history", accepted) == 2


def test_another_kind_of_machine_is_2_until_one_of_it_is_accepted(
    report: Path, accepted: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in ("anchor", "accepted"):
        edit(accepted, "entries", 0, place, "instructions", value="NEON")
    said = f"no evaluation of this kind of machine was accepted: CPU ({instructions()}). There are: CPU (NEON)."
    assert miso_eval("gate", report, "--accepted", accepted) == 2
    assert said in flat(capfd.readouterr().err)
    assert evaluation(bundle, report, "--history", accepted) == 2
    assert said in flat(capfd.readouterr().err)
    assert miso_eval("accept", report, accepted) == 0
    document = json.loads(accepted.read_text())
    assert [entry["anchor"]["instructions"] for entry in document["entries"]] == ["NEON", instructions()]
    assert [line["forced"] for line in document["log"]] == [False, False]
    assert evaluation(bundle, report, "--history", accepted) == 0


def test_another_corpus_is_2(report: Path, accepted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(accepted, "entries", 0, "accepted", "subject", "corpus_sha256", value="0" * 64)
    assert miso_eval("gate", report, "--accepted", accepted) == 2
    assert "corpus is" in capfd.readouterr().err


def test_what_fails_without_the_history_fails_held_against_it(
    report: Path, accepted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the history nothing has changed; by its own gates, controls and stages the evaluation is no pass."""
    good = (report / "results.json").read_bytes()
    for keys, value, code, said in (
        (("gates", 0, "verdict"), "FAIL", 1, "without the history: FAIL"),
        (("controls", 0, "behaved"), False, 1, "without the history: FAIL"),
        (("missing",), ["wer: no clip of q8_0 has a value"], 2, "wer: no clip of q8_0 has a value"),
    ):
        (report / "results.json").write_bytes(good)
        edit(report / "results.json", *keys, value=value)
        capfd.readouterr()
        assert miso_eval("gate", report, "--accepted", accepted) == code
        assert said in flat("".join(capfd.readouterr()))


def test_a_report_that_failed_by_another_history_is_judged_by_this_one(
    report: Path, accepted: Path, bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(accepted.read_bytes())
    for place in ("anchor", "accepted"):
        edit(other, "entries", 0, place, "levels", "q4_0", "kld_cb0", "values", value=better)
        edit(other, "entries", 0, place, "levels", value=lambda levels: {**levels, "q4_k_m": levels["q4_0"]})
    assert evaluation(bundle, report, "--history", other) == 1
    assert miso_eval("gate", report, "--accepted", accepted) == 0


def test_a_report_of_two_runs_is_neither_accepted_nor_held_against_any(
    report: Path, tmp_path: Path, accepted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("results.json", "observations.json"):
        (tmp_path / name).write_bytes((report / name).read_bytes())
    edit(tmp_path / "observations.json", "created", value="2020-01-01T00:00:00+00:00")
    assert miso_eval("accept", tmp_path, tmp_path / "new.json", "--force") == 2
    assert "are of two runs" in capfd.readouterr().err
    assert miso_eval("gate", tmp_path, "--accepted", accepted) == 2
    assert "are of two runs" in capfd.readouterr().err
    assert not (tmp_path / "new.json").exists()


def test_gates_without_history_are_2(report: Path, accepted: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text('schema_version = 1\n[gates.kld_cb0]\nkind = "at_most"\nmargins = { q4_0 = 1 }\n')
    assert miso_eval("gate", report, "--accepted", accepted, "--gates", gates) == 2
