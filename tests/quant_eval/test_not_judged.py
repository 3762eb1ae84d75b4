"""A level without margins is measured and shown, takes no part in the exit code, and every report says so."""

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_results import sample

from miso_gguf.console import run
from miso_gguf.quant_eval.cli import cli
from miso_gguf.quant_eval.report import junit, markdown
from miso_gguf.quant_eval.report.headline import headline
from miso_gguf.quant_eval.report.html import page
from miso_gguf.quant_eval.results import Results

WHY = "no margins for q8_0: measured, not judged"


def miso_eval(*arguments: object) -> int:
    return run(cli, [str(argument) for argument in arguments], "miso-eval")


def gates(path: Path, levels: Sequence[str]) -> Path:
    """Nothing but an exact zero passes."""
    margins = ", ".join(f"{level} = 0.0" for level in levels)
    text = f'[gates.kld_cb0]\nkind = "at_most"\nmargins = {{ {margins} }}\n[history.margins]\n'
    text += "kld_cb0 = { percent = 10, least = 0 }\n"
    path.write_text(f"schema_version = 1\n{text}")
    return path


@pytest.fixture(scope="module")
def report(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose gates have margins for other levels, some of them coarser."""
    out = tmp_path_factory.mktemp("report")
    assert miso_eval(*asked(bundle, out), "--gates", gates(out / "gates.toml", ["fp16", "q4_k_m", "q4_0"])) == 0
    return out


def asked(bundle: Path, out: Path) -> list[object]:
    few = ["--prompts", 5, "--seeds", 1, "--threads", 1, "--stages", "logits", "--no-vram"]
    return ["run", bundle, "--levels", "fp16,q8_0", *few, "--out", out]


def test_it_is_measured_and_not_judged(report: Path) -> None:
    results = Results.model_validate_json((report / "results.json").read_bytes())
    fp16, q8_0, damaged = results.levels
    assert [level.why_not_judged for level in (fp16, q8_0, damaged)] == [None, WHY, None]
    assert (fp16.verdict, q8_0.verdict, results.verdict) == ("PASS", None, "PASS")
    assert {gate.level for gate in results.gates} == {"fp16", "damaged"}
    found = {entry.metric: entry.estimate.value for entry in results.metrics if entry.level == "q8_0"}
    assert found["kld_cb0"] > 0
    assert "Q8_0" in (report / "report.md").read_text("utf-8").split("## All metrics")[1]
    for name in ("report.md", "comment.md", "report.html", "junit.xml", "results.json"):
        assert WHY in (report / name).read_text("utf-8").replace("\\", ""), name


def test_with_margins_it_would_fail(bundle: Path, report: Path, tmp_path: Path) -> None:
    assert miso_eval(*asked(bundle, report), "--gates", gates(tmp_path / "gates.toml", ["fp16", "q8_0"])) == 1


def test_nor_is_it_held_against_what_was_accepted(
    bundle: Path, report: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    accepted = tmp_path / "accepted.json"
    assert miso_eval("accept", report, accepted, "--force") == 0
    document = json.loads(accepted.read_text())
    stored = document["entries"][0]["accepted"]["levels"]["q8_0"]["kld_cb0"]
    stored["values"] = [value / 50 for value in stored["values"]]
    accepted.write_text(json.dumps(document))
    strict = gates(tmp_path / "strict.toml", ["fp16", "q8_0"])
    mild = gates(tmp_path / "mild.toml", ["fp16", "q4_0"])
    assert miso_eval("gate", report, "--accepted", accepted, "--gates", strict) == 1, "it was fifty times better"
    capfd.readouterr()
    assert miso_eval("gate", report, "--accepted", accepted, "--gates", mild) == 2
    said = capfd.readouterr()
    assert said.err == f"miso-eval: nothing was judged: {WHY}\n"
    assert WHY in said.out
    assert miso_eval(*asked(bundle, report), "--gates", mild, "--history", accepted) == 0
    results = Results.model_validate_json((report / "results.json").read_bytes())
    assert not [gate for gate in results.gates if gate.level == "q8_0"]


def test_two_bundles_are_compared_at_such_a_level(bundle: Path, tmp_path: Path) -> None:
    """What is judged is the change."""
    few = ["--prompts", 2, "--seeds", 1, "--threads", 1, "--stages", "logits", "--no-vram", "--no-controls"]
    mild = gates(tmp_path / "mild.toml", ["fp16"])
    command = ["compare", bundle, bundle, "--level", "q8_0", *few, "--gates", mild, "--out", tmp_path / "out"]
    assert miso_eval(*command) == 0


def without(results: Results, level: str) -> Results:
    levels = [
        each.model_copy(update={"verdict": None, "why_not_judged": WHY}) if each.level == level else each
        for each in results.levels
    ]
    gates = [gate for gate in results.gates if gate.level != level]
    return results.model_copy(update={"levels": levels, "gates": gates})


def test_each_report_says_so(tmp_path: Path) -> None:
    results = without(sample(), "q8_0")
    assert headline(results).endswith(f"Q4_K_M: 1 of 8 gates undecided; {WHY}.")
    for text in (markdown.report(results), markdown.comment(results)):
        table = text.replace("\\", "").split("**Not judged**")[1].splitlines()
        assert table[4] == f"| Q8_0 | {WHY} |"
    assert f'<span class="value">{WHY}</span>' in page(results, tmp_path)
    root = ElementTree.fromstring(junit.junit_xml(results, strict=True))
    (suite,) = (suite for suite in root if suite.get("name") == "q8_0")
    assert [suite.get(key) for key in ("tests", "failures", "skipped")] == ["1", "0", "1"]
    skipped = suite.find("testcase/skipped")
    assert skipped is not None
    assert skipped.get("message") == WHY
    assert "Not judged" not in markdown.report(sample())


def test_where_no_level_is_judged_that_is_said() -> None:
    results = without(sample(levels=("fp16", "q8_0")), "q8_0").model_copy(update={"verdict": None})
    assert headline(results) == f"Nothing was judged: {WHY}."
    section = markdown.report(results).replace("\\", "").split("## Verdicts")[1].split("##")[0]
    assert section.strip() == f"_Nothing was judged: {WHY}._"
