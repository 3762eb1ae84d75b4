"""The workflows: they are YAML, and what their steps make is made by the Makefile."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from imports import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def steps(path: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load(path.read_text("utf-8"))
    return [step for job in document["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_step_does_one_thing(path: Path) -> None:
    for step in steps(path):
        assert ("run" in step) != ("uses" in step), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_is_made_has_a_target(path: Path) -> None:
    made = [name for step in steps(path) for name in re.findall(r"\bmake ([a-z][a-z0-9-]*)", step.get("run", ""))]
    assert set(made) <= TARGETS


def test_there_are_some() -> None:
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "quant-regression.yml", "nightly.yml"}
    assert {"test", "regression", "nightly"} <= TARGETS


def test_the_nightly_report_is_kept_from_where_it_is_written() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "NIGHTLY := build/nightly\n" in makefile
    given = [step["with"] for step in steps(ROOT / ".github/workflows/nightly.yml") if "with" in step]
    (kept,) = [each["path"] for each in given if "path" in each]
    assert all(line.startswith("build/nightly/report/") for line in kept.split())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_ends(path: Path) -> None:
    for job in yaml.safe_load(path.read_text("utf-8"))["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 360, "what a hosted runner allows"
