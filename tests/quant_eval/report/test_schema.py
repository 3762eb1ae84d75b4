import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from sample_results import bare, hostile, sample

from miso_gguf.quant_eval.report.schema import results_schema, schema_text

PUBLISHED = Path(__file__).parents[3] / "docs" / "results.schema.json"


def test_the_published_schema_is_that_of_the_code() -> None:
    """Otherwise: python -m miso_gguf.quant_eval.report.schema > docs/results.schema.json."""
    assert PUBLISHED.read_text("utf-8") == schema_text()


@pytest.mark.parametrize("change", [lambda results: results, bare, hostile])
def test_results_are_valid(change: Any) -> None:
    schema = results_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(change(sample()).model_dump_json()), schema)


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 1}, {"kind": "guess"}, {"verdict": "GOOD"}, {"unheard_of": 1}, {"levels": [{"level": "q8_0"}]}],
)
def test_other_documents_are_not(change: dict[str, Any]) -> None:
    document = json.loads(sample().model_dump_json()) | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, results_schema())


def test_nothing_may_be_left_out() -> None:
    schema = results_schema()
    for part in (schema, *schema["$defs"].values()):
        assert part["required"] == list(part["properties"])
        assert part["additionalProperties"] is False
