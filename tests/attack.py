"""Hostile requests by the hundred, at a server in a process of its own: `python tests/attack.py --help`.

Nothing may crash it, hang it, make it grow, or be answered by an error of its own; and whoever asks for speech in
between hears what was heard before. A request is its seed and number: the same again sends the same.
"""

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import parse_headers
from pathlib import Path
from typing import BinaryIO

from attack_bodies import Shot
from attack_kinds import shot
from attack_schema import attack_by_schema
from attack_target import Result, State, Target, attacked, judged

_SETTLING_S = 10
_WORKERS = 8
_GROWTH_BYTES = 48 << 20
"""Of memory, between half of the requests and all: allocators keep what the largest of them took for a while."""


def attack(
    target: Target, count: int, seed: int, *, by_schema: int = 0, say: Callable[[str], None] = lambda _: None
) -> Result:
    """Send so many hostile requests, eight at a time; of them `by_schema` that schemathesis makes, one after the other.

    What must not happen is in the findings.
    """
    result, heard, raw = Result(), target.good(), count - by_schema
    ends = [raw // 4, raw // 2, 3 * raw // 4, raw]
    with ThreadPoolExecutor(_WORKERS) as pool:
        for part, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            list(pool.map(lambda number: _fire(target, seed, number, result), range(begin, end)))
            if by_schema and part % 2 == 0:
                attack_by_schema(target, by_schema // 2, seed + part, result)
            if target.good() != heard:
                result.findings.append(f"after {end} requests a good one hears something else")
            result.after = _settled(target.pid, result.before)
            result.before = result.before if part > 1 else result.after
            say(f"{result.statuses.total()} answers: {result.after}")
    assert result.before is not None
    assert result.after is not None
    for name, most in (("memory_bytes", _GROWTH_BYTES), ("threads", 2), ("files", 2)):
        grown = getattr(result.after, name) - getattr(result.before, name)
        if grown > most:
            result.findings.append(f"{name} grew by {grown}")
    return result


def _settled(pid: int, before: State | None) -> State:
    """When the connections of those who hung up are gone; or patience."""
    end = time.monotonic() + _SETTLING_S
    while True:
        state = State.of(pid)
        if before is None or state.files <= before.files or time.monotonic() > end:
            return state
        time.sleep(0.05)


def _fire(target: Target, seed: int, number: int, result: Result) -> None:
    kind, one = shot(seed, number)
    try:
        outcomes = [judged(*answer) for answer in send(target.port, one)]
    except Exception as error:
        outcomes = [f"finding: {type(error).__name__}: {error}"]
    result.note(kind, outcomes or ["no answer"])
    result.findings += [f"{kind} {seed} {number}: {outcome}" for outcome in outcomes if outcome.startswith("finding")]


def send(port: int, one: Shot) -> list[tuple[int, bytes, bool]]:
    """The answers to what is sent: status, body, and whether it answers a HEAD. Raises `TimeoutError` if none comes."""
    answers = []
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), one.timeout_s) as connection:
        with suppress(ConnectionError):
            connection.sendall(one.sent)
        if one.cut:
            return []
        with connection.makefile("rb") as file:
            if one.reads < 1 << 30:
                file.read(one.reads)
                return []
            is_head = one.sent.startswith(b"HEAD")
            while (answer := _next(file, is_head)) is not None:
                answers.append((*answer, is_head))
                if not one.pipelined:
                    break
    return answers


def _next(file: BinaryIO, is_head: bool) -> tuple[int, bytes] | None:
    """Status and body of the next answer. Raises if it is cut off, or malformed."""
    status = 100
    while status == 100:
        line = file.readline(1000)
        if not line:
            return None
        version, code, *_ = line.split()
        assert version == b"HTTP/1.1", line
        status, headers = int(code), parse_headers(file)
    assert "X-Request-Id" in headers, line
    if is_head:
        return status, b""
    if headers.get("Transfer-Encoding") == "chunked":
        body = b""
        while size := int(file.readline(100).strip(), 16):
            body += file.read(size)
            assert file.readline(10) == b"\r\n"
        assert file.readline(10) == b"\r\n"
        return status, body
    length = int(headers["Content-Length"])
    body = file.read(length)
    assert len(body) == length, "cut off"
    return status, body


def table(result: Result) -> str:
    """Kinds by outcomes."""
    columns = sorted({outcome[:20] for counts in result.outcomes.values() for outcome in counts})
    width = max(map(len, result.outcomes))
    lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
    for kind, counts in result.outcomes.items():
        lines.append(f"{kind:{width}}" + "".join(f"{counts[column]:10}" for column in columns))
    return "\n".join(lines)


def main() -> int:
    """The command. Exit code 1 if there was a finding."""
    parser = argparse.ArgumentParser(description="Attack a server of a bundle's Q4_K_M.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--by-schema", type=int, default=1000, help="of them, made by schemathesis")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    begin = time.monotonic()
    with attacked(wanted.bundle) as target:
        result = attack(
            target,
            wanted.count,
            wanted.seed,
            by_schema=wanted.by_schema,
            say=lambda line: print(line, file=sys.stderr),
        )
    print(table(result))
    for finding in result.findings:
        print(finding)
    facts = {
        "seed": wanted.seed,
        "seconds": round(time.monotonic() - begin),
        "findings": len(result.findings),
        "statuses": dict(sorted(result.statuses.items())),
    }
    print(json.dumps(facts))
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
