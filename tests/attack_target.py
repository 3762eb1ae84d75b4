"""A server that is attacked, in a process of its own; what it answered, and what it holds."""

import json
import multiprocessing
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import psutil
from attack_bodies import GOOD, SPEECH

from miso_gguf.models.levels import Q4_K_M
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve.app import application
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.server import HttpServer, bound
from miso_gguf.serve.service import Service

_PATIENCE_S = 60


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


def judged(status: int, body: bytes, is_head: bool) -> str:
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
    options = ServeOptions(
        streams=2,
        voices=voices,
        most_seconds=1,
        most_voices=5,
        most_upload_bytes=1 << 20,
        header_timeout_s=0.3,
        body_timeout_s=0.5,
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
