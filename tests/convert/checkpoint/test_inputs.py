"""Every case of what people bring comes out as it says, and `docs/inputs.md` says it in the same words."""

from pathlib import Path

import pytest
from input_cases import SECTIONS, Case, Kit, base_inputs, outcome
from inputs import DOCUMENT, row, table

from builders import Inputs

CASES = [case for cases in SECTIONS.values() for case in cases]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return base_inputs(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text("utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.have)
def test_it_comes_out_as_it_says(case: Case, base: Inputs, document: str, tmp_path: Path) -> None:
    accepted, said = outcome(case, Kit(tmp_path, base))
    assert accepted == case.accepted, said
    assert case.said in said
    assert accepted or said
    assert "\n" not in said or "tensor" in said.splitlines()[0], "one line, unless it lists tensors"
    assert f"\n{row(case, accepted, said)}\n" in document, "stale: make docs"


def test_the_document_has_no_other_rows(document: str) -> None:
    assert len({case.have for case in CASES}) == len(CASES) >= 60
    rows = [line for line in document.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == [case.have for case in CASES]
    for title in SECTIONS:
        assert table(title, []).rstrip() in document
