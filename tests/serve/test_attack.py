"""Hostile requests: none crashes the server, hangs it, makes it grow, or is answered by an error of its own."""

from pathlib import Path

import pytest
from attack import attack, table
from attack_kinds import KINDS
from attack_target import attacked


def _attack(bundle: Path, count: int, *, by_schema: int) -> None:
    with attacked(bundle) as target:
        result = attack(target, count, seed=18, by_schema=by_schema)
    print(table(result))
    assert not result.findings, "\n".join(result.findings)
    # Several answers may come over one connection, and schemathesis leaves out what it cannot make twice.
    assert result.statuses.total() >= 0.9 * count
    assert set(KINDS) <= set(result.outcomes)


def test_a_few_of_each_kind(bundle: Path) -> None:
    _attack(bundle, 3 * len(KINDS), by_schema=0)


@pytest.mark.long
def test_hundreds(bundle: Path) -> None:
    _attack(bundle, 500, by_schema=100)


@pytest.mark.slow
def test_thousands(bundle: Path) -> None:
    _attack(bundle, 5000, by_schema=1000)
