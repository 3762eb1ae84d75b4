"""Requests that schemathesis makes of our own OpenAPI document: as it says they may be, and as they must not be."""

from collections.abc import Callable
from typing import Any

import httpx
import schemathesis
from attack_target import Result, Target, judged
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode


def attack_by_schema(target: Target, count: int, number: int, result: Result) -> None:
    """Send about so many, most to what takes a body. `number` is the seed."""
    address = f"http://127.0.0.1:{target.port}"
    schema = schemathesis.openapi.from_dict(httpx.get(f"{address}/openapi.json").json())
    schema.config.base_url = address
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            kind = f"{operation.label}, {'as it must not be' if mode is GenerationMode.NEGATIVE else 'as it may be'}"
            share = count // (4 if operation.body else 20)
            limits: Any = settings(
                max_examples=max(1, share),
                database=None,
                phases=[Phase.generate],
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            strategy: Any = operation.as_strategy(generation_mode=mode)
            try:
                limits(seed(number)(given(strategy)(_sender(kind, result))))()  # type: ignore[no-untyped-call]
            except Unsatisfiable:
                continue  # what takes nothing cannot be asked wrongly


def _sender(kind: str, result: Result) -> Callable[[Any], None]:
    def send(case: Any) -> None:
        answer = case.call(timeout=20)
        outcome = judged(answer.status_code, answer.content, case.method == "HEAD")
        result.note(kind, [outcome])
        if outcome.startswith("finding"):
            result.findings.append(f"{kind}: {case.as_curl_command()[:500]}: {outcome}")

    return send
