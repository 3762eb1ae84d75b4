"""The published JSON Schema of the results, `docs/results.schema.json`.

It is made with

python -m miso_gguf.quant_eval.report.schema > docs/results.schema.json
"""

import json
import sys
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from ..results import SCHEMA_VERSION, Results

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _AllRequired(GenerateJsonSchema):
    """What has a default is written as well, so a reader may count on it."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return True


def results_schema() -> dict[str, Any]:
    """JSON Schema of `results.json` as it is written: nothing is left out there, so all is required."""
    schema = Results.model_json_schema(mode="serialization", schema_generator=_AllRequired)
    schema["properties"]["schema_version"] |= {"const": SCHEMA_VERSION}
    return {"$schema": DIALECT, **schema}


def schema_text() -> str:
    """The schema as the file holds it."""
    return json.dumps(results_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
