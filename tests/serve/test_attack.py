"""Hostile requests: none crashes the server, hangs it, makes it grow, or is answered by an error of its own."""

from pathlib import Path

import pytest
from attack import attack, table
from attack_kinds import KINDS, shot
from attack_target import attacked, judged


def _attack(bundle: Path, count: int, *, by_schema: int) -> None:
    with attacked(bundle) as target:
        result = attack(target, count, seed=18, by_schema=by_schema)
    print(table(result))
    assert not result.findings, "\n".join(result.findings)
    # Several answers may come over one connection, and schemathesis leaves out what it cannot make twice.
    assert result.statuses.total() >= 0.9 * count
    assert set(KINDS) <= set(result.outcomes)


def test_a_few_of_each_kind(bundle: Path) -> None:
    _attack(bundle, 2 * len(KINDS), by_schema=0)


def test_what_is_a_finding() -> None:
    fine = b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}'
    assert judged(400, fine, False) == "400"
    assert judged(503, fine, False) == "503"
    assert judged(405, b"", True) == "405"
    assert judged(500, fine, False).startswith("finding: 500")
    assert judged(200, b"Traceback (most", False).startswith("finding: a trace")
    assert judged(400, fine.replace(b'"t"', b'"t", "more": 1'), False).startswith("finding: no shape")
    assert judged(400, fine.replace(b'"m"', b'"' + b"m" * 3000 + b'"'), False).startswith("finding: no shape")


def test_a_request_is_its_seed_and_number() -> None:
    assert [shot(1, number) for number in range(200)] == [shot(1, number) for number in range(200)]
    assert shot(1, 0)[1] != shot(2, 0)[1]


@pytest.mark.long
def test_hundreds(bundle: Path) -> None:
    _attack(bundle, 500, by_schema=100)


@pytest.mark.slow
def test_thousands(bundle: Path) -> None:
    _attack(bundle, 5000, by_schema=1000)
