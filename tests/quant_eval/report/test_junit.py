"""JUnit XML: valid by the schema of its dialect, read by another's parser, and as red as the run."""

from itertools import product
from pathlib import Path

import junitparser
import pytest
import xmlschema
from sample_results import bare, check_golden, full, hostile, sample

from miso_gguf.quant_eval.outcome import decided
from miso_gguf.quant_eval.report.junit import junit_xml
from miso_gguf.quant_eval.results import GateResult, Results

DIALECT = xmlschema.XMLSchema(Path(__file__).parents[2] / "data" / "junit-10.xsd")


@pytest.fixture
def parsed(tmp_path: Path) -> "_Parse":
    return _Parse(tmp_path)


class _Parse:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "junit.xml"

    def __call__(self, results: Results, *, strict: bool = False) -> dict[str, junitparser.TestSuite]:
        text = junit_xml(results, strict=strict)
        DIALECT.validate(text)
        self._path.write_text(text, "utf-8")
        return {suite.name: suite for suite in junitparser.JUnitXml.fromfile(str(self._path))}


def _outcomes(suite: junitparser.TestSuite) -> dict[str, str]:
    return {case.name: type(case.result[0]).__name__ if case.result else "passed" for case in suite}


def test_the_file_is_as_it_was_when_somebody_looked_at_it() -> None:
    check_golden("junit.xml", junit_xml(sample()))


def test_gates_are_cases_and_levels_suites(parsed: _Parse) -> None:
    suites = parsed(sample())
    assert list(suites) == ["q8_0", "q4_k_m", "q4_0", "controls"]
    assert set(_outcomes(suites["q8_0"]).values()) == {"passed"}
    assert _outcomes(suites["q4_k_m"])["F0 error"] == "Skipped"
    failed = [name for name, outcome in _outcomes(suites["q4_0"]).items() if outcome == "Failure"]
    assert failed == ["KLD, semantic", "Top-1 agreement", "F0 error"]
    counts = [(suite.tests, suite.failures, suite.skipped, suite.errors) for suite in suites.values()]
    assert counts == [(8, 0, 0, 0), (8, 0, 1, 0), (8, 3, 1, 0), (19, 0, 0, 0)]
    skipped = next(case for case in suites["q4_k_m"] if case.name == "F0 error").result[0]
    assert skipped.message == "The margin lies between the bounds: more prompts are needed."
    assert "bounds of 95 % each [47.5, 60.5], margin ≤ 60 cents, 310 prompts would decide" in skipped.text


def test_strict_fails_what_is_undecided(parsed: _Parse) -> None:
    suites = parsed(sample(), strict=True)
    assert _outcomes(suites["q4_k_m"])["F0 error"] == "Failure"
    assert [suite.skipped for suite in suites.values()] == [0, 0, 0, 0]


def test_a_control_astray_fails_though_all_gates_pass(parsed: _Parse) -> None:
    results = sample(levels=("fp16", "q8_0"))
    of_itself, of_a_gate, *_ = results.controls
    astray = of_a_gate.model_copy(update={"behaved": False, "found": "PASS"})
    suites = parsed(results.model_copy(update={"controls": [of_itself, astray]}))
    assert suites["q8_0"].failures == 0
    wanted = {"fp16 against itself": "passed", f"{of_a_gate.name} (Q8_0: KLD, semantic)": "Failure"}
    assert _outcomes(suites["controls"]) == wanted


def test_nothing_judged_is_no_pass(parsed: _Parse) -> None:
    suites = parsed(bare(sample()))
    assert {name: _outcomes(suite) for name, suite in suites.items()} == {"evaluation": {"gates": "Skipped"}}


def test_a_gate_without_a_measurement_has_its_reason(parsed: _Parse) -> None:
    results = sample(levels=("fp16", "q8_0"))
    change = {"estimate": None, "verdict": "MISSING", "reason": "no clip is voiced"}
    suites = parsed(results.model_copy(update={"gates": [results.gates[0].model_copy(update=change)]}))
    (case,) = suites["q8_0"]
    assert isinstance(case.result[0], junitparser.Error)
    assert suites["q8_0"].errors == 1
    assert case.result[0].message == "no clip is voiced"
    assert case.result[0].text == "Q8_0: KLD, semantic not measured, margin ≤ 0.06 nats"


@pytest.mark.parametrize(
    ("verdict", "is_beyond", "strict", "expected"),
    [
        ("PASS", False, True, "passed"),
        ("FAIL", True, False, "Failure"),
        ("INCONCLUSIVE", False, False, "Skipped"),
        ("INCONCLUSIVE", False, True, "Failure"),
        ("INCONCLUSIVE", True, False, "Failure"),
        ("MISSING", False, False, "Error"),
        ("MISSING", False, True, "Error"),
    ],
)
def test_a_case_is_as_red_as_what_it_does_to_the_run(
    parsed: _Parse, verdict: str, is_beyond: bool, strict: bool, expected: str
) -> None:
    results = sample(levels=("fp16", "q8_0"))
    gate: GateResult = results.gates[0].model_copy(update={"verdict": verdict, "is_beyond": is_beyond})
    suites = parsed(results.model_copy(update={"gates": [gate]}), strict=strict)
    assert list(_outcomes(suites["q8_0"]).values()) == [expected]


def test_what_is_missing_is_an_error_once(parsed: _Parse) -> None:
    results = sample(levels=("fp16", "q8_0"))
    gate = results.gates[0].model_copy(update={"verdict": "MISSING", "estimate": None, "reason": "q8_0 is not voiced"})
    vanished = "q4_0 was accepted, and was not run"
    found = decided(results.model_copy(update={"stages": [], "gates": [gate], "missing": [vanished]}))
    absent = found.missing
    assert absent == [vanished, "q8_0: q8_0 is not voiced"]
    suites = parsed(found)
    assert _outcomes(suites["missing"]) == {vanished: "Error"}
    assert [(suite.name, suite.errors) for suite in suites.values() if suite.errors] == [("q8_0", 1), ("missing", 1)]
    only = parsed(bare(sample()).model_copy(update={"missing": absent}))
    assert {name: suite.errors for name, suite in only.items()} == {"missing": 2}


def test_what_would_decide_failures_are_clips_also_against_an_earlier_evaluation(parsed: _Parse) -> None:
    results = sample(levels=("fp16", "q8_0"))
    undecided = {"metric": "new_failures", "verdict": "INCONCLUSIVE", "needed": 420}
    gates = [results.gates[0].model_copy(update={**undecided, "kind": kind}) for kind in ("history", "anchor")]
    cases = list(parsed(results.model_copy(update={"gates": gates}))["q8_0"])
    assert [case.result[0].text.rpartition(", ")[2] for case in cases] == ["420 clips would decide"] * 2


def test_each_control_is_a_case_of_its_own(parsed: _Parse) -> None:
    suite = parsed(full())["controls"]
    names = [case.name for case in suite]
    assert len(set(names)) == len(names) > 10
    assert "intonation flattened by 10 % (Q4_0: F0 range)" in names


def test_each_case_has_a_name_of_its_own(parsed: _Parse) -> None:
    for suite in parsed(full()).values():
        names = [case.name for case in suite]
        assert len(set(names)) == len(names)
        assert {case.classname for case in suite} == {f"quant_eval.{suite.name}"}


@pytest.mark.parametrize("strict", [False, True])
def test_it_is_valid_by_the_published_schema(strict: bool) -> None:
    whole = [sample(), full(), sample(levels=("fp16", "q8_0"))]
    for results, change in product(whole, (lambda same: same, bare, hostile)):
        DIALECT.validate(junit_xml(change(results), strict=strict))
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        DIALECT.validate(junit_xml(sample()).replace("<testsuites ", '<testsuites skipped="0" ', 1))


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("2025-01-02T03:04:05+00:00", "2025-01-02T03:04:05"),
        ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05"),
        ("2025-01-02T01:04:05.678901-02:00", "2025-01-02T03:04:05"),
        ("2025-01-02T03:04:05", None),
        ("0001-01-01T00:00:00+10:00", None),
        ("yesterday", None),
    ],
)
def test_times_are_utc_without_a_zone(parsed: _Parse, created: str, expected: str | None) -> None:
    suites = parsed(sample(levels=("fp16", "q8_0")).model_copy(update={"created": created}))
    assert {suite.timestamp for suite in suites.values()} == {expected}


def test_hostile_words_stay_words(parsed: _Parse) -> None:
    suites = parsed(hostile(sample()))
    failure = next(case for case in suites["q4_0"] if case.name == "F0 error").result[0]
    assert failure.message.startswith('</script><img src=x onerror="alert(1)">')
