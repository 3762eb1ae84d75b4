"""Hostile requests by the hundred, at a server in a process of its own: `python tests/attack.py --help`.

Nothing may crash it, hang it, make it grow, or be answered by an error of its own; and whoever asks for speech in
between hears what was heard before. A request is its seed and number: the same again sends the same.
"""

import argparse
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import parse_headers
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import psutil
from attack_bodies import GOOD, SPEECH, Shot
from attack_kinds import shot

from miso_gguf.models.levels import Q4_K_M

_PATIENCE_S = 60
_WORKERS = 8
_GROWTH_BYTES = 32 << 20
"""Of memory, between a quarter of the requests and all: what allocators keep after the worst of them."""


@dataclass
class Result:
    """What came of all requests."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind: how many were answered how."""
    findings: list[str] = field(default_factory=list)
    before: "State | None" = None
    after: "State | None" = None

    def note(self, kind: str, outcomes: list[str]) -> None:
        """Of one request; more than one if several went over its connection."""
        self.outcomes.setdefault(kind, Counter()).update(outcomes)

    @property
    def statuses(self) -> Counter[str]:
        """Over all kinds."""
        return sum(self.outcomes.values(), Counter[str]())


@dataclass(frozen=True)
class State:
    """What a process holds."""

    memory_bytes: int
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int) -> "State":
        """Now."""
        process = psutil.Process(pid)
        return cls(process.memory_full_info().uss, process.num_threads(), process.num_fds())


@dataclass(frozen=True)
class Target:
    """A server that is attacked."""

    port: int
    pid: int

    def good(self) -> bytes:
        """What a request hears that is as it should be."""
        answer = httpx.post(f"http://127.0.0.1:{self.port}{SPEECH}", json=GOOD, timeout=_PATIENCE_S)
        assert answer.status_code == 200, answer.text
        return answer.content


def attack(target: Target, count: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Result:
    """Send so many hostile requests, eight at a time; what must not happen is in the findings."""
    result, heard = Result(), target.good()
    steps = [count // 4, count // 2, 3 * count // 4, count]
    with ThreadPoolExecutor(_WORKERS) as pool:
        for begin, end in zip([0, *steps], steps, strict=False):
            list(pool.map(lambda number: _fire(target, seed, number, result), range(begin, end)))
            if target.good() != heard:
                result.findings.append(f"after {end} requests a good one hears something else")
            result.after = _settled(target.pid, result.before)
            result.before = result.before or result.after
            say(f"{end} requests: {result.after}")
    assert result.before is not None
    assert result.after is not None
    for name, most in (("memory_bytes", _GROWTH_BYTES), ("threads", 2), ("files", 2)):
        grown = getattr(result.after, name) - getattr(result.before, name)
        if grown > most:
            result.findings.append(f"{name} grew by {grown}")
    return result


def _settled(pid: int, before: State | None) -> State:
    """When the connections of those who hung up are gone; or patience."""
    end = time.monotonic() + 10
    while True:
        state = State.of(pid)
        if before is None or state.files <= before.files or time.monotonic() > end:
            return state
        time.sleep(0.05)


def _fire(target: Target, seed: int, number: int, result: Result) -> None:
    kind, one = shot(seed, number)
    try:
        outcomes = [_judged(*answer) for answer in send(target.port, one)]
    except Exception as error:
        outcomes = [f"finding: {type(error).__name__}: {error}"]
    result.note(kind, outcomes or ["no answer"])
    result.findings += [f"{kind} {seed} {number}: {outcome}" for outcome in outcomes if outcome.startswith("finding")]


def _judged(status: int, body: bytes, is_head: bool) -> str:
    """The outcome of an answer."""
    if status >= 500 and status != 503:
        return f"finding: {status} {body[:300]!r}"
    if b"Traceback" in body or b"site-packages" in body:
        return f"finding: a trace {body[:300]!r}"
    if status >= 400 and not is_head:
        error = json.loads(body)["error"]
        if set(error) != {"message", "type", "param", "code"} or len(body) > 3000:
            return f"finding: no shape {body[:300]!r}"
    return str(status)


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


@contextmanager
def attacked(bundle: Path) -> Iterator[Target]:
    """A server of a bundle, with limits that are soon reached, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="miso-attack-") as voices:
        process = context.Process(target=_serve, args=(bundle, Path(voices), theirs))
        process.start()
        theirs.close()
        assert process.pid is not None
        assert ours.poll(_PATIENCE_S), "the server does not start"
        try:
            yield Target(ours.recv(), process.pid)
            assert process.is_alive(), f"the server ended: {process.exitcode}"
        finally:
            ours.close()
            process.join(_PATIENCE_S)
            process.kill()
            process.join()
        assert process.exitcode == 0, f"the server ended: {process.exitcode}"


def _serve(bundle: Path, voices: Path, pipe: Connection) -> None:
    import threading  # noqa: PLC0415

    from miso_gguf.runtime.tts import MisoTTS  # noqa: PLC0415
    from miso_gguf.serve.app import application  # noqa: PLC0415
    from miso_gguf.serve.options import ServeOptions  # noqa: PLC0415
    from miso_gguf.serve.server import HttpServer, bound  # noqa: PLC0415
    from miso_gguf.serve.service import Service  # noqa: PLC0415

    options = ServeOptions(
        streams=2,
        voices=voices,
        most_seconds=1,
        most_voices=5,
        most_upload_bytes=1 << 20,
        header_timeout_s=0.5,
        body_timeout_s=1,
        reader_timeout_s=5,
    )
    service = Service(options, "tiny", lambda: MisoTTS.load(bundle, Q4_K_M.key, threads=1, sequences=2))
    listener = bound("127.0.0.1", 0)
    server = HttpServer(application(service), service, listener, lambda: pipe.send(listener.getsockname()[1]))

    def until_told() -> None:
        with suppress(EOFError):
            pipe.recv()
        server.stop()
        server.stop()

    threading.Thread(target=until_told, daemon=True).start()
    server.run()


def table(result: Result) -> str:
    """Kinds by outcomes."""
    columns = sorted({outcome[:20] for counts in result.outcomes.values() for outcome in counts})
    lines = [f"{'kind':12}" + "".join(f"{column:>10}" for column in columns)]
    for kind, counts in result.outcomes.items():
        lines.append(f"{kind:12}" + "".join(f"{counts[column]:10}" for column in columns))
    return "\n".join(lines)


def summary(result: Result, seed: int, seconds: float) -> dict[str, Any]:
    """For programs."""
    return {
        "seed": seed,
        "seconds": round(seconds),
        "findings": len(result.findings),
        "statuses": dict(sorted(result.statuses.items())),
    }


def main() -> int:
    """The command. Exit code 1 if there was a finding."""
    parser = argparse.ArgumentParser(description="Attack a server of a bundle's Q4_K_M.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    begin = time.monotonic()
    with attacked(wanted.bundle) as target:
        result = attack(target, wanted.count, wanted.seed, lambda line: print(line, file=sys.stderr))
    print(table(result))
    for finding in result.findings:
        print(finding)
    print(json.dumps(summary(result, wanted.seed, time.monotonic() - begin)))
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
