from pathlib import Path

import junitparser
import pytest
from sample_results import bare, check_golden, hostile, sample

from miso_gguf.quant_eval.report.junit import junit_xml
from miso_gguf.quant_eval.results import Results


@pytest.fixture
def parsed(tmp_path: Path) -> "_Parse":
    return _Parse(tmp_path)


class _Parse:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "junit.xml"

    def __call__(self, results: Results, *, strict: bool = False) -> dict[str, junitparser.TestSuite]:
        self._path.write_text(junit_xml(results, strict=strict), "utf-8")
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
    assert counts == [(8, 0, 0, 0), (8, 0, 1, 0), (8, 3, 1, 0), (2, 0, 0, 0)]
    skipped = next(case for case in suites["q4_k_m"] if case.name == "F0 error").result[0]
    assert skipped.message == "The margin lies between the bounds: more prompts are needed."
    assert "95 % interval [47.5, 60.5], margin ≤ 60 cents" in skipped.text


def test_strict_fails_what_is_undecided(parsed: _Parse) -> None:
    suites = parsed(sample(), strict=True)
    assert _outcomes(suites["q4_k_m"])["F0 error"] == "Failure"
    assert [suite.skipped for suite in suites.values()] == [0, 0, 0, 0]


def test_a_control_astray_fails_though_all_gates_pass(parsed: _Parse) -> None:
    results = sample(levels=("fp16", "q8_0"))
    astray = results.controls[1].model_copy(update={"behaved": False, "found": "PASS"})
    suites = parsed(results.model_copy(update={"controls": [results.controls[0], astray]}))
    assert suites["q8_0"].failures == 0
    assert _outcomes(suites["controls"]) == {"fp16 against itself": "passed", "damaged": "Failure"}


def test_nothing_judged_is_no_pass(parsed: _Parse) -> None:
    suites = parsed(bare(sample()))
    assert {name: _outcomes(suite) for name, suite in suites.items()} == {"evaluation": {"gates": "Skipped"}}


def test_a_gate_without_a_measurement_has_its_reason(parsed: _Parse) -> None:
    results = sample(levels=("fp16", "q8_0"))
    change = {"estimate": None, "verdict": "INCONCLUSIVE", "reason": "no clip is voiced"}
    suites = parsed(results.model_copy(update={"gates": [results.gates[0].model_copy(update=change)]}))
    (case,) = suites["q8_0"]
    assert case.result[0].message == "no clip is voiced"
    assert case.result[0].text == "Q8_0: KLD, semantic not measured, margin ≤ 0.06 nats"


def test_hostile_words_stay_words(parsed: _Parse) -> None:
    suites = parsed(hostile(sample()))
    failure = next(case for case in suites["q4_0"] if case.name == "F0 error").result[0]
    assert failure.message.startswith('</script><img src=x onerror="alert(1)">')
