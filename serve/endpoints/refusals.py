"""How the OpenAPI document describes answers that are errors: all of one shape."""

from typing import Any

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def refusals(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a path: what each status means."""
    content = {"application/json": {"schema": ERROR_SCHEMA}}
    return {status: {"description": text, "content": content} for status, text in texts.items()}
