"""The server under load, held against the batcher alone: what HTTP, queue, threads and encoding cost.

    python benchmarks/serve.py BUNDLE --out benchmarks/results/serve.json

First on an engine that is paced like a GPU: requests arrive at random, at 80 % of what it can speak, from 1, 4, 16 and
64 clients, once through HTTP from a server in a process of its own, and once admitted to a batcher alone. A client has
one request at a time, so fewer clients than sequences are offered their share. Then on the bundle's own models: one
request at a time, as many as there are sequences, the same arrivals; and the time to first audio through HTTP and of
the library, in turns. Prints tables and, last, one line of JSON; fails if a gate does.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from arrivals import Arrival, Asked, Heard, asked_for, over_network, spread, through_batcher
from calls import errors_only
from paced import PacedCall, Pacing, paced_tts, prompt_number
from rich.console import Console
from rich.table import Table
from served import Served, served
from speech_client import Client
from speech_load import beyond_frames, figures, is_right, lost_ms_a_call, own_frames, percentile

from miso_gguf.native.threads import default_threads
from miso_gguf.runtime.audio.samples import to_pcm16
from miso_gguf.runtime.lm.utterance import Utterance
from miso_gguf.runtime.options import EngineOptions, SpeechOptions
from miso_gguf.runtime.tts import MisoTTS

LEAST_SHARE = 0.93
"""Of the frames a second that the batcher alone gives."""
MOST_BEYOND_FRAMES = 2.0
"""That the first audio may take but for the turns ahead and the prompt's chunks: the rest of the turn that was under
way, and its own first frame."""
MOST_LATER_MS = 15.0
"""Of the first audio through HTTP, against the library."""
_MOST_REQUESTS = 1000
"""Of a run."""

Schedule = Sequence[Sequence[Arrival]]


@dataclass(frozen=True)
class Setup:
    """What all runs have in common."""

    bundle: Path
    quant: str
    streams: int
    clients: Sequence[int]
    load: float
    """Share of the capacity at which requests arrive."""
    seconds: float
    """Of arrivals for each number of clients."""
    pacing: Pacing
    threads: int
    """Of the bundle's own models."""
    crowd: int
    """Requests for each stream, where all come at once."""
    rounds: int
    """Of each side, for the time to first audio."""
    most_seconds: float
    """Of one answer."""

    def schedule(self, clients: int, frames: float, frames_per_s: float) -> Schedule:
        """Arrivals of requests of so many frames on average, where `streams` together give `frames_per_s`."""
        each_s = frames / (self.load * frames_per_s * min(1.0, clients / self.streams))
        count = min(_MOST_REQUESTS, max(clients, round(self.seconds / each_s)))
        return spread(asked_for(count), clients, each_s)

    def at_once(self, clients: int) -> Schedule:
        """Clients that ask for the next as soon as they have the one before."""
        return spread(asked_for(self.crowd * self.streams), clients, 0.0)

    @contextmanager
    def served(self, **more: object) -> Iterator[Served]:
        """A server with these options more, whose model is loaded."""
        options = {
            "quant": self.quant,
            "streams": self.streams,
            "queue": max(self.clients),
            "most-seconds": self.most_seconds,
            **more,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with served(self.bundle, *arguments) as server:
            heard_from(server, spread(asked_for(1), 1, 0.0))
            yield server


def heard_from(server: Served, schedule: Schedule) -> list[Heard]:
    """What came of all requests through HTTP."""

    async def run() -> list[Heard]:
        clients = [Client(server.port) for _ in schedule]
        try:
            return await over_network(lambda client, asked: clients[client].speak(asked), schedule)
        finally:
            for client in clients:
                client.close()

    return asyncio.run(run())


def loaded(server: Served, schedule: Schedule) -> tuple[list[Heard], dict[str, Any]]:
    """What came of all requests, and the figures of it."""
    before = server.cpu_s
    heard = heard_from(server, schedule)
    return heard, {"clients": len(schedule), **figures(heard, server.cpu_s - before)}


def paced(setup: Setup) -> list[dict[str, Any]]:
    """Each number of clients on the paced engine, through HTTP and admitted to the batcher alone."""
    pacing, records = setup.pacing, list[dict[str, Any]]()
    of_engine = {
        "frame-ms": 1e3 * pacing.frame_s,
        "chunk-ms": 1e3 * pacing.chunk_s,
        "frames-a-row": pacing.frames_a_row,
    }
    at_once = replace(pacing, frame_s=0.0, chunk_s=0.0)
    of_alone: list[PacedCall] = []
    with (
        setup.served(**of_engine) as server,
        paced_tts(setup.bundle, setup.quant, pacing, sequences=setup.streams, note=of_alone.append) as tts,
        paced_tts(setup.bundle, setup.quant, at_once, sequences=1) as solo,
    ):
        pool = {asked.number: _utterance(tts, asked) for asked in asked_for(_MOST_REQUESTS)}
        frames = float(np.mean([pacing.frames(utterance.blocks) for utterance in pool.values()]))
        sounds: dict[int, bytes] = {}
        for clients in setup.clients:
            schedule = setup.schedule(clients, frames, setup.streams / pacing.frame_s)
            of_alone.clear()
            before = time.process_time()
            alone = figures(through_batcher(tts.engine.batcher, pool, schedule), time.process_time() - before)
            alone["lost_ms_a_call"] = lost_ms_a_call(of_alone, pacing.frame_s)
            server.calls()
            heard, record = loaded(server, schedule)
            answered = [each for each in heard if each.is_answered]
            prompts = {each.asked.number: prompt_number(pool[each.asked.number].blocks) for each in answered}
            calls = server.calls()
            beyond = beyond_frames(answered, calls, prompts, pacing.frame_s)
            own = own_frames(answered, calls, prompts, pacing.frame_s)
            for asked in (each.asked for each in answered if each.asked.number not in sounds):
                sounds[asked.number] = _alone(solo, asked)
            record |= {
                "wrong": sum(not is_right(each.sound, sounds[each.asked.number]) for each in answered),
                "ttfa_beyond_frames": {"p50": percentile(beyond, 50), "p95": percentile(beyond, 95)},
                "ttfa_own_frames": {"p50": percentile(own, 50), "p95": percentile(own, 95)},
                "lost_ms_a_call": lost_ms_a_call(calls, pacing.frame_s),
                "share": round(record["frames_per_s"] / alone["frames_per_s"], 4),
                "batcher_alone": alone,
            }
            records.append(record)
    return records


def _utterance(tts: MisoTTS, asked: Asked) -> Utterance:
    return tts.utterance(asked.text, options=SpeechOptions(seed=asked.seed))


def _alone(tts: MisoTTS, asked: Asked) -> bytes:
    speech = tts.generate(asked.text, options=SpeechOptions(seed=asked.seed))
    return to_pcm16(speech.samples).astype("<i2").tobytes()


def of_bundle(setup: Setup) -> dict[str, Any]:
    """The bundle's own models: with all streams, one at a time, the same arrivals, and the first audio."""
    with setup.served(threads=setup.threads) as server:
        _, one = loaded(server, setup.at_once(1))
        _, all_at_once = loaded(server, setup.at_once(setup.streams))
        frames = all_at_once["frames"] / all_at_once["requests"]
        schedules = [setup.schedule(clients, frames, all_at_once["frames_per_s"]) for clients in setup.clients]
        arriving = [loaded(server, schedule)[1] for schedule in schedules]
        return {
            "one_at_a_time": one,
            "all_streams": all_at_once,
            "gain": round(all_at_once["frames_per_s"] / one["frames_per_s"], 3),
            "arriving": arriving,
            "ttfa": _first_audio(setup, server),
        }


def _first_audio(setup: Setup, server: Served) -> dict[str, Any]:
    """Of one client through HTTP, and of the library in this process, in turns."""
    through_http: list[float] = []
    of_library: list[float] = []
    options = EngineOptions(threads=setup.threads, gpu_layers=0, sequences=setup.streams)
    with MisoTTS.load(setup.bundle, setup.quant, options=options) as tts:
        for asked in asked_for(setup.rounds):
            (heard,) = heard_from(server, spread([asked], 1, 0.0))
            through_http.append(1e3 * heard.ttfa_s)
            begin = time.perf_counter()
            with tts.stream(asked.text, options=SpeechOptions(seed=asked.seed)) as stream:
                next(stream)
                of_library.append(1e3 * (time.perf_counter() - begin))
    return {
        "rounds": setup.rounds,
        "http_ms": percentile(through_http, 50),
        "library_ms": percentile(of_library, 50),
        "later_ms": percentile([over - under for over, under in zip(through_http, of_library, strict=True)], 50),
    }


def gates(records: Sequence[dict[str, Any]], later_ms: float) -> list[dict[str, Any]]:
    """Each with what was found, what is wanted, and whether it holds."""
    found = [
        gate | {"clients": record["clients"]}
        for record in records
        for gate in (
            _gate("share of the batcher alone", record["share"], least=LEAST_SHARE),
            _gate("TTFA p95 beyond its turns, frames", record["ttfa_beyond_frames"]["p95"], most=MOST_BEYOND_FRAMES),
            _gate("continuity", record["continuity"], least=1.0),
            *(_gate(name, record[name], most=0) for name in ("refused", "lost", "wrong")),
        )
    ]
    return [*found, _gate("TTFA later than the library, ms", later_ms, most=MOST_LATER_MS)]


def _gate(name: str, value: float, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    holds = (least is None or value >= least) and (most is None or value <= most)
    wanted = f">= {least:g}" if least is not None else f"<= {most:g}"
    return {"gate": name, "found": value, "wanted": wanted, "holds": holds}


@click.command(help=(__doc__ or "").split("\n\n", maxsplit=1)[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quant", default="q4_k_m", show_default=True)
@click.option("--threads", default=default_threads(), show_default="as the runtime", help="Of the bundle's own models.")
@click.option("--streams", default=8, show_default=True)
@click.option(
    "--clients", multiple=True, type=int, default=(1, 4, 16, 64), show_default=True, help="Again for another."
)
@click.option("--load", default=0.8, show_default=True, help="Share of the capacity at which requests arrive.")
@click.option("--seconds", default=20.0, show_default=True, help="Of arrivals, for each number of clients.")
@click.option("--frame-ms", default=1e3 * Pacing.frame_s, show_default=True, help="Of the paced engine, for any batch.")
@click.option("--chunk-ms", default=1e3 * Pacing.chunk_s, show_default=True, help="Of a prompt, on the paced engine.")
@click.option("--frames-a-row", default=Pacing.frames_a_row, show_default=True, help="On the paced engine.")
@click.option("--crowd", default=6, show_default=True, help="Requests for each stream, where all come at once.")
@click.option("--most-seconds", default=600.0, show_default=True, help="Of one answer.")
@click.option("--rounds", default=30, show_default=True, help="Of the time to first audio.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep the result in this file.")
def main(
    bundle: Path,
    quant: str,
    threads: int,
    streams: int,
    clients: Sequence[int],
    load: float,
    seconds: float,
    frame_ms: float,
    chunk_ms: float,
    frames_a_row: float,
    crowd: int,
    most_seconds: float,
    rounds: int,
    out: Path | None,
) -> None:
    pacing = Pacing(frame_ms / 1e3, chunk_ms / 1e3, frames_a_row)
    setup = Setup(bundle, quant, streams, clients, load, seconds, pacing, threads, crowd, rounds, most_seconds)
    with errors_only():
        on_paced, own = paced(setup), of_bundle(setup)
    checked = gates(on_paced, own["ttfa"]["later_ms"])
    result = {
        "benchmark": "serve",
        "bundle": bundle.name,
        "level": quant,
        "streams": streams,
        "load": load,
        "seconds": seconds,
        "frame_ms": frame_ms,
        "chunk_ms": chunk_ms,
        "threads": threads,
        "paced": on_paced,
        "own": own,
        "gates": checked,
    }
    _print(setup, on_paced, own, checked)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit(0 if all(gate["holds"] for gate in checked) else 1)


_COLUMNS = (
    *(
        "requests",
        "refused",
        "lost",
        "wrong",
        "frames_per_s",
        "share",
        "lost_ms_a_call",
        "audio_ttfp_ms",
        "ttfa_beyond_frames",
        "ttfa_own_frames",
    ),
    *("audio_rtf", "audio_underrun_ms", "continuity", "continuity_without_buffer", "cpu_ms_a_second_of_audio"),
)


def _print(setup: Setup, on_paced: Sequence[dict[str, Any]], own: dict[str, Any], checked: Sequence[Any]) -> None:
    console = Console()
    title = f"{1e3 * setup.pacing.frame_s:g} ms a frame, arrivals at {setup.load:.0%}"
    alone = [record["batcher_alone"] | {"clients": record["clients"]} for record in on_paced]
    console.print(_table(f"Server: {title}", on_paced), _table(f"Batcher alone: {title}", alone))
    console.print(
        _table(f"Own models, {setup.streams} streams: arrivals at {setup.load:.0%}", own["arriving"]),
        _table(
            "Own models, one at a time, and as many as there are streams", [own["one_at_a_time"], own["all_streams"]]
        ),
    )
    ttfa = own["ttfa"]
    console.print(f"First audio: {ttfa['http_ms']} ms through HTTP, {ttfa['library_ms']} ms of the library")
    table = Table("gate", "clients", "found", "wanted", "", title="Gates")
    for gate in checked:
        holds = "holds" if gate["holds"] else "[bold]FAILS"
        table.add_row(gate["gate"], str(gate.get("clients", 1)), str(gate["found"]), gate["wanted"], holds)
    console.print(table)


def _table(title: str, records: Sequence[dict[str, Any]]) -> Table:
    """A column for each number of clients."""
    table = Table("clients", *(str(record["clients"]) for record in records), title=title)
    for name in _COLUMNS:
        if name in records[0]:
            table.add_row(name.replace("_", " "), *(_shown(record[name]) for record in records))
    return table


def _shown(value: object) -> str:
    return " / ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
