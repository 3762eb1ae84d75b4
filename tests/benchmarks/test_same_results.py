"""Two results are the same, whatever the machine and the clock; anything else is a line."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sample_results import sample

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "same_results.py"
SPEC = importlib.util.spec_from_file_location("same_results", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
same_results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(same_results)


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sample().model_dump_json())
    found["notes"] = ["q8_0: level q8_0 of new place, files 0123", "nothing said; these are in no stage"]
    found["gates"][0]["reason"] = "F0 error: 1, 2 in the accepted evaluation: every clip is as it was"
    found["clips"][0]["why"] = "fails where the reference does not: looping"
    return found


def of_another_day() -> dict[str, Any]:
    """The same on another machine."""
    found = document()
    found |= {"created": "2020-01-01", "machine": {"cpu": "another"}, "versions": {"numpy": "1"}}
    found["model"] |= {"bundle": "elsewhere", "manifest_sha256": "ff"}
    for level in found["levels"]:
        level |= {"rtf": 9.0, "ttfa_s": 9.0}
        del level["why_not_judged"]
    found["notes"] = ["q8_0: level q8_0 of old, files 0123", "nothing said; these are in no stage"]
    return found


def test_where_and_when_is_no_difference() -> None:
    assert same_results.differences(of_another_day(), document()) == []
    assert same_results.differences(document(), document()) == []


def changed(*keys: Any, value: Any) -> dict[str, Any]:
    found = document()
    inner: Any = found
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return found


@pytest.mark.parametrize(
    ("keys", "value", "line"),
    [
        (["reference"], "f32", 'reference: "fp16" -> "f32"'),
        (["stages"], ["logits"], 'stages: ["logits", "one-step", "free"] -> ["logits"]'),
        (["settings", "top_k"], 51, "settings.top_k: 50 -> 51"),
        (["model", "source_sha256"], "a", f'model.source_sha256: "{"fedcba98" * 8}" -> "a"'),
        (["levels", 1, "bits_per_weight"], 8.6, "levels[q8_0].bits_per_weight: 8.5 -> 8.6"),
        (["levels", 0, "verdict"], "FAIL", 'levels[fp16].verdict: null -> "FAIL"'),
        (["clips", 0, "text"], "x", 'clips[q8_0 question-03 0].text: "Did you really walk all the way home?" -> "x"'),
        (["notes", 0], "q8_0: level q8_0 of x, files 4567", None),
        (["gates", 0, "margin"], 1.0, "gates[q8_0 kld_cb0 at_most].margin: 0.06 -> 1.0"),
        (["metrics"], [], None),
    ],
)
def test_each_difference_is_a_line(keys: list[Any], value: Any, line: str | None) -> None:
    found = same_results.differences(of_another_day(), changed(*keys, value=value))
    assert found == [line] if line else found


def test_the_last_digit_and_the_order_count() -> None:
    other = document()
    estimate = other["metrics"][0]["estimate"]
    estimate["value"] *= 1 + 1e-15
    assert len(same_results.differences(document(), other)) == 1
    other = document()
    other["metrics"][:2] = other["metrics"][1::-1]
    assert [line.split(":")[0] for line in same_results.differences(document(), other)] == ["metrics, in order"]


def test_the_command(tmp_path: Path) -> None:
    old, new, none = (tmp_path / f"{name}.json" for name in ("old", "new", "none"))
    old.write_text(json.dumps(of_another_day()))
    new.write_text(json.dumps(document()))
    none.write_text("[]")
    run = CliRunner().invoke
    assert run(same_results.main, [str(old), str(new)]).exit_code == 0
    new.write_text(json.dumps(changed("reference", value="f32")))
    differs = run(same_results.main, [str(old), str(new)])
    assert (differs.exit_code, differs.output.splitlines()[0]) == (1, 'reference: "fp16" -> "f32"')
    assert run(same_results.main, [str(old), str(none)]).exit_code == 2
