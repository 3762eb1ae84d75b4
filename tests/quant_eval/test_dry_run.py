"""What a run will cost, without the run; and how much of the corpus `--quick` takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders import Built
from miso_gguf.console import run
from miso_gguf.quant_eval.cli import cli
from miso_gguf.quant_eval.run import speed


@pytest.fixture
def bundle(built: Built, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(speed, "read_bandwidth", lambda _threads: 1e10)
    return built.tiny("fp16", "q8_0")


def printed(bundle: Path, capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    out = bundle.parent / "never"
    given = ["run", bundle, "--dry-run", "--json", "--no-controls", "--threads", 1, "--out", out, *arguments]
    assert run(cli, [str(each) for each in given], "miso-eval") == 0
    assert not out.exists()
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_it_prints_and_ends(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = printed(bundle, capfd, "--prompts", 4, "--seeds", 2)
    assert found["clips"] == 3 * 4 * 2, "of the reference, and of two candidates"
    assert found["wall_s"] == pytest.approx(sum(part["seconds"] for part in found["parts"]))
    assert found["why_not"] == ""
    assert {"speaking", "replays", "codec", "prosody", "loading", "hashing"} <= {
        each["name"] for each in found["parts"]
    }


def test_it_forgets_nothing(bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    kept.write_text("{}")
    given = ["run", bundle, "--dry-run", "--fresh", "--prompts", 1, "--threads", 1, "--out", tmp_path]
    assert run(cli, [str(each) for each in given], "miso-eval") == 0
    assert kept.exists()


def test_of_a_comparison_too(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["compare", bundle, bundle, "--level", "q8_0", "--prompts", 2, "--seeds", 1, "--dry-run", "--out", "never"]
    assert run(cli, [str(each) for each in given], "miso-eval") == 0
    assert capfd.readouterr().out.startswith("8 clips, ")
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("arguments", "prompts"),
    [
        (["--corpus", "builtin"], 40),
        (["--corpus", "builtin:50"], 50),
        (["--corpus", "builtin", "--prompts", 7], 7),
        (["--corpus", "tiny:3"], 3),
    ],
)
def test_quick_is_a_part_of_the_corpus(
    arguments: list[object], prompts: int, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One seed, two candidates beside the reference."""
    assert printed(bundle, capfd, "--quick", *arguments)["clips"] == 3 * prompts


def test_without_it_all_of_the_corpus(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(bundle, capfd, "--corpus", "builtin", "--seeds", 1)["clips"] == 3 * 160


def test_an_instrument_that_cannot_be_asked_is_named_before_the_work(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["run", bundle, "--extra", "utmos", "--dry-run", "--prompts", 1, "--threads", 1, "--out", "never"]
    assert run(cli, [str(each) for each in given], "miso-eval") == 0
    said = " ".join(capfd.readouterr().err.split())
    assert said.startswith("miso-eval: --extra utmos will be missing: no package brings UTMOS: pass utmos=MODULE:")
