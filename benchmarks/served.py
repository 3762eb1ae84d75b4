"""A server in a process of its own, for benchmarks: on a paced engine, or on a bundle's own models.

    python benchmarks/served.py BUNDLE --frame-ms 40

It says its port in a line of JSON, answers each line that comes in with the calls that its paced models have made since
the last one, and ends when its input does.
"""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import click
import psutil
from paced import PacedCall, Pacing, paced_tts

from miso_gguf.native.threads import default_threads
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve.app import application
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.server import HttpServer, bound
from miso_gguf.serve.service import Service

_STOPS_S = 30.0


class Served:
    """A server that is up, seen from the process that measures it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process, self._of_system = process, psutil.Process(process.pid)
        self.port = int(self._answer()["port"])

    @property
    def cpu_s(self) -> float:
        """Of all its threads, since its start."""
        times = self._of_system.cpu_times()
        return float(times.user + times.system)

    def calls(self) -> list[PacedCall]:
        """Of its paced models, since the last question."""
        _pipe(self._process.stdin).write("calls\n")
        _pipe(self._process.stdin).flush()
        return [PacedCall(*call) for call in self._answer()["calls"]]

    def _answer(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise click.ClickException("the server has ended: its own lines say why")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def served(bundle: Path, *arguments: object) -> Iterator[Served]:
    """A server with these arguments."""
    command = [sys.executable, __file__, str(bundle), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Served(process)
        finally:
            _pipe(process.stdin).close()
            try:
                process.wait(_STOPS_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _talk(calls: list[PacedCall], server: HttpServer) -> None:
    """Of the server's process: answer on its output, and stop it at the end of its input."""
    for _ in sys.stdin:
        made = calls[:]
        del calls[: len(made)]
        print(json.dumps({"calls": made}), flush=True)
    server.stop()
    server.stop()


@click.command(help=(__doc__ or "").split("\n\n", maxsplit=1)[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quant", default="q4_k_m", show_default=True)
@click.option("--streams", default=8, show_default=True)
@click.option("--queue", default=64, show_default=True)
@click.option("--most-seconds", default=ServeOptions.most_seconds, show_default=True, help="Of one answer.")
@click.option("--frame-ms", default=0.0, help="Of a paced engine; 0 takes the bundle's own models.")
@click.option("--chunk-ms", default=1e3 * Pacing.chunk_s, show_default=True, help="Of a prompt, on a paced engine.")
@click.option("--frames-a-row", default=Pacing.frames_a_row, show_default=True, help="On a paced engine.")
@click.option("--codec-threads", default=1, show_default=True, help="On a paced engine.")
@click.option("--threads", default=default_threads(), show_default="as the runtime", help="Of the bundle's own models.")
def main(
    bundle: Path,
    quant: str,
    streams: int,
    queue: int,
    most_seconds: float,
    frame_ms: float,
    chunk_ms: float,
    frames_a_row: float,
    codec_threads: int,
    threads: int,
) -> None:
    logging.getLogger("miso_gguf").setLevel(logging.ERROR)
    calls: list[PacedCall] = []
    if frame_ms:
        pacing = Pacing(frame_ms / 1e3, chunk_ms / 1e3, frames_a_row)
        load = partial(
            paced_tts, bundle, quant, pacing, sequences=streams, codec_threads=codec_threads, note=calls.append
        )
    else:
        load = partial(MisoTTS.load, bundle, quant, threads=threads, gpu_layers=0, sequences=streams)
    service = Service(ServeOptions(streams=streams, queue=queue, most_seconds=most_seconds), bundle.name, load)
    listener = bound("127.0.0.1", 0)
    started = partial(print, json.dumps({"port": listener.getsockname()[1]}), flush=True)
    server = HttpServer(application(service), service, listener, started)
    threading.Thread(target=_talk, args=(calls, server), daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
