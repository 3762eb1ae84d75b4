"""Files of earlier versions are read; a command's old spellings work, each with a line that names the new one."""

import json
from pathlib import Path
from typing import Any

import pytest
from sample_results import sample

from miso_gguf.console import run
from miso_gguf.quant_eval import cli
from miso_gguf.quant_eval.gates.accepted import load_accepted
from miso_gguf.quant_eval.old_names import renamed
from miso_gguf.quant_eval.results import parsed_results
from miso_gguf.quant_eval.run.plan import Asked

TINY = Path(cli.__file__).parent / "baselines" / "tiny.json"


def of_schema_1() -> dict[str, Any]:
    """The sample as the first version wrote it."""
    document: dict[str, Any] = json.loads(sample().model_dump_json())
    document |= {"schema_version": 1, "baseline": document.pop("reference"), "layers": ["logits", "coupled", "free"]}
    del document["stages"]
    for clip in document["clips"]:
        clip |= {f"baseline_{part}": clip.pop(f"reference_{part}") for part in ("audio", "contour")}
    return document


def test_results_of_schema_1_are_read() -> None:
    assert parsed_results(json.dumps(of_schema_1())) == sample()
    assert parsed_results(sample().model_dump_json()) == sample()


def test_only_keys_of_ours_are_renamed() -> None:
    document = of_schema_1()
    document["machine"] = {"layers": "a", "baseline": "b"}
    document["corpus"]["categories"] = {"baseline": 3}
    read = parsed_results(json.dumps(document))
    assert read.machine == document["machine"]
    assert read.corpus.categories == {"baseline": 3}


@pytest.mark.parametrize("document", [None, 3, [], {}, {"schema_version": 3, "baseline": 1}, {"baseline": 1}])
def test_what_is_of_another_version_stays_as_it_is(document: Any) -> None:
    assert renamed(document) == document


@pytest.mark.parametrize("damaged", [{"clips": 3}, {"subject": [1]}, {"layers": None}, {"clips": [3]}, {"layers": [3]}])
def test_damage_is_left_for_those_who_check(damaged: dict[str, Any]) -> None:
    assert renamed({"schema_version": 1, **damaged})["schema_version"] == 2
    with pytest.raises(ValueError, match="validation error"):
        parsed_results(json.dumps(of_schema_1() | damaged | {"subject": 1}))


@pytest.mark.parametrize("version", [3, "2", None, 2.5])
def test_results_of_another_schema_are_refused(version: object) -> None:
    with pytest.raises(ValueError, match=rf"no results of schema 2, .* but {version!r}$"):
        parsed_results(json.dumps(of_schema_1() | {"schema_version": version}))


def test_what_is_no_results_is_refused_in_one_line() -> None:
    documents: list[Any] = [[], {**json.loads(sample().model_dump_json()), "more": 1}]
    for document in documents:
        with pytest.raises(ValueError, match=r"results|more") as refused:
            parsed_results(json.dumps(document))
        assert "\n" not in str(refused.value)


def test_the_tiny_model_s_accepted_evaluation_is_read() -> None:
    assert json.loads(TINY.read_bytes())["schema_version"] == 1
    accepted = load_accepted(TINY)
    assert (accepted.schema_version, accepted.subject.reference) == (2, "fp16")
    assert set(accepted.levels) == {"q8_0", "q4_k_m", "q4_0"}


# The command


def miso_eval(*arguments: object) -> int:
    return run(cli.cli, [str(argument) for argument in arguments], "miso-eval")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """Reference and stages of each run that is asked for; none is done."""
    found: list[tuple[str, tuple[str, ...]]] = []

    def plan(_bundle: Path, _levels: list[str], reference: str, asked: Asked) -> None:
        found.append((reference, asked.stages))
        raise ValueError("planned")

    monkeypatch.setattr(cli, "plan_run", plan)
    return found


@pytest.mark.parametrize(
    ("old", "new", "hints", "expected"),
    [
        ([], [], [], ("fp16", ("logits", "one-step", "free"))),
        (["--baseline", "q8_0"], ["--reference", "q8_0"], ["--baseline is called --reference now"], None),
        (["--layers", "logits,free"], ["--stages", "logits,free"], ["--layers is called --stages now"], None),
        (
            ["--layers", "coupled"],
            ["--stages", "one-step"],
            ["--layers is called --stages now", "the stage coupled is called one-step now"],
            ("fp16", ("one-step",)),
        ),
        (["--stages", "coupled"], ["--stages", "one-step"], ["the stage coupled is called one-step now"], None),
    ],
)
def test_old_options_of_a_run(
    old: list[str],
    new: list[str],
    hints: list[str],
    expected: Any,
    planned: list[Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    for arguments, said in ((old, hints), (new, [])):
        miso_eval("run", "DIR", "--out", "out", *arguments)
        lines = capfd.readouterr().err.splitlines()
        assert lines == [*(f"miso-eval: {hint}" for hint in said), "miso-eval: error: planned"]
    assert planned[0] == planned[1]
    assert expected in (None, planned[0])


def test_accepting_and_gating_as_they_were_called(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With a report of the first version, whose file had another name too."""
    (tmp_path / "baseline.json").write_bytes(TINY.read_bytes())
    for spelled, hint in (
        (["baseline", "save"], "miso-eval: baseline save is called accept now\n"),
        (["accept"], ""),
    ):
        out = tmp_path / f"{spelled[0]}.out.json"
        assert miso_eval(*spelled, tmp_path, out) == 0
        assert capfd.readouterr().err == hint
        assert load_accepted(out) == load_accepted(TINY)
    for option, hint in (("--baseline", "miso-eval: --baseline is called --accepted now\n"), ("--accepted", "")):
        assert miso_eval("gate", tmp_path, option, TINY) == 0
        assert capfd.readouterr().err == hint
    assert miso_eval("gate", tmp_path) == 2
    assert "Missing option '--accepted'" in capfd.readouterr().err


def test_a_new_report_goes_before_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "baseline.json").write_text("{}")
    (tmp_path / "observations.json").write_bytes(TINY.read_bytes())
    assert miso_eval("accept", tmp_path, tmp_path / "accepted.json") == 0


def test_old_spellings_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["--help"], ["run", "--help"], ["gate", "--help"], ["compare", "--help"]):
        assert miso_eval(*command) == 0
        said = capfd.readouterr().out
        assert "--layers" not in said
        assert "baseline" not in said
