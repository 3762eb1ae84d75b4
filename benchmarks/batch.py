"""Many at once: what a batch that utterances join and leave gives, and what is lost on the way.

    python benchmarks/batch.py BUNDLE --quant q4_k_m --threads 2

Utterances of random lengths arrive at random, and are spoken with 1, 2, 4 and 8 sequences. Beside each stands, from
the same run: (a) the same utterances one after another in a plain loop; (b) the sum of what exactly the calls that
were made take alone. The share of (b) is what is left when threads, locks and Python have had theirs; more than all
where the codec, which has a thread beside the models everywhere, has a core of its own. Numbers are medians of the
rounds, the gain of the rounds' own gains. Then a long prompt is admitted beside a stream that speaks, and the longest
gap in it is held against what was computed in it. Prints tables and, last, one line of JSON.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from calls import CHUNK, CODEC, FRAME, STEP, TOP_K, Alone, Calls, NotedCodec, noted, text_block, without_end
from rich.console import Console
from rich.table import Table

from miso_gguf.models.spec import ModelSpec
from miso_gguf.native.threads import default_threads
from miso_gguf.runtime.bundle import OpenLevel, open_level
from miso_gguf.runtime.codec.codec import Codec
from miso_gguf.runtime.codec.thread import CodecThread
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.noise import scaled_noise
from miso_gguf.runtime.lm.ticket import Ticket
from miso_gguf.runtime.lm.utterance import Utterance
from miso_gguf.runtime.options import EngineOptions

SEED = 0
_PROMPT_ROWS = (6, 14, 24, 70)
"""Of texts; the last one takes two chunks."""


@dataclass(frozen=True)
class Load:
    """What is to be spoken, and when each utterance comes, in lengths of an average one."""

    utterances: Sequence[Utterance]
    arrivals: Sequence[float]

    @classmethod
    def random(cls, spec: ModelSpec, count: int, frames: int, pressure: float) -> "Load":
        """`count` utterances of 1 to 2 x `frames` frames; `pressure` of them come while an average one is spoken."""
        rng = np.random.default_rng(SEED)
        lengths = rng.integers(1, 2 * frames, count, endpoint=True)
        # Each length of prompt as often as the others: what they cost is not left to chance.
        rows = rng.permutation(np.resize(_PROMPT_ROWS, count))
        utterances = [
            Utterance([text_block(spec, int(rows[i]), rng)], int(lengths[i]), SEED, i, top_k=TOP_K)
            for i in range(count)
        ]
        gaps = rng.exponential(1 / pressure, count)
        return cls(utterances, np.cumsum(gaps) - gaps[0])


@dataclass
class Run:
    """What came of a load."""

    wall_s: float = 0.0
    """While something was to be spoken."""
    frames: list[int] = field(default_factory=list)
    """Of each utterance."""
    calls: Calls = field(default_factory=Calls)

    @property
    def frames_per_s(self) -> float:
        """Of all utterances together."""
        return sum(self.frames) / self.wall_s


def one_after_another(engine: Engine, codec: Codec, load: Load) -> Run:
    """A plain loop without batcher, the codec on a thread beside it."""
    run = Run()
    begin = time.perf_counter()
    for utterance in load.utterances:
        stream = codec.stream()
        with ThreadPoolExecutor(1) as beside:
            hidden, logits = engine.prefill(0, utterance.blocks)
            for frame in range(utterance.max_frames):
                noise = scaled_noise(engine.spec, utterance, frame)[None]
                codes = without_end(engine.sample(hidden, logits, noise, utterance.top_k))
                beside.submit(stream.decode, stream.playable(codes))
                if frame + 1 < utterance.max_frames:
                    hidden, logits = engine.step([0], list(codes))
        run.frames.append(utterance.max_frames)
    run.wall_s = time.perf_counter() - begin
    return run


def together(engine: Engine, codec: Codec, load: Load, each_s: float) -> Run:
    """Through the batcher, each utterance read by a thread of its own; an average one takes `each_s` alone."""
    run = Run(frames=[0] * len(load.utterances))
    begin = time.perf_counter()
    spans: list[tuple[float, float]] = []
    with noted(engine, run.calls), CodecThread(NotedCodec(codec, run.calls)) as thread:

        def speak(index: int) -> None:
            arrival = time.perf_counter()
            stream = codec.stream()
            with engine.batcher.admit(load.utterances[index]) as ticket:
                for codes in ticket:
                    thread.decode(stream, stream.playable(codes[None]))
                    run.frames[index] += 1
            spans.append((arrival, time.perf_counter()))

        readers = [threading.Thread(target=speak, args=(index,)) for index in range(len(load.utterances))]
        for reader, arrival in zip(readers, load.arrivals, strict=True):
            time.sleep(max(0.0, begin + arrival * each_s - time.perf_counter()))
            reader.start()
        for reader in readers:
            reader.join()
    run.wall_s = covered_s(spans)
    return run


def covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """How long at least one of `spans` lasted."""
    total, until = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def steps_in_waves(frames: Sequence[int], size: int) -> int:
    """Steps of the backbone if `size` utterances began and ended together; the first frame needs none."""
    return sum(max(frames[start : start + size]) - 1 for start in range(0, len(frames), size))


def gap(engine: Engine, rows: int) -> dict[str, Any]:
    """The longest gap in a stream while a prompt of `rows` rows is read, beside a chunk and a frame of the same run."""
    rng = np.random.default_rng(SEED)
    calls = Calls()
    long = Utterance([text_block(engine.spec, rows, rng)], 1)
    with noted(engine, calls):
        speaking = Utterance([text_block(engine.spec, _PROMPT_ROWS[0], rng)], engine.spec.max_positions // 2)
        with engine.batcher.admit(speaking) as stream:
            times = list(_times(stream, 3))
            admitted = time.perf_counter()
            with engine.batcher.admit(long) as other:
                for now in _times(stream, speaking.max_frames):
                    times.append(now)
                    if other.ended:
                        break
    during = [call for call in calls.made if call.begin > admitted]
    delivered = np.array([now for now in times if now > admitted])
    gaps = np.diff(delivered)
    longest = int(gaps.argmax())
    within = [call for call in during if delivered[longest] < call.end <= delivered[longest + 1]]
    kinds = [call.shape.kind for call in during]
    frame_ends = [index for index, kind in enumerate(kinds) if kind == FRAME]
    return {
        "prompt_rows": rows,
        "longest_gap_ms": _ms(gaps[longest]),
        "median_gap_ms": _ms(float(np.median(gaps))),
        "calls_in_longest_gap_ms": {call.shape.kind: _ms(call.seconds) for call in within},
        "most_chunks_between_frames": max(kinds[start:end].count(CHUNK) for start, end in pairwise(frame_ends)),
    }


def _times(stream: Ticket, count: int) -> Iterator[float]:
    for _, _ in zip(range(count), stream, strict=False):
        yield time.perf_counter()


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)


def measured(engine: Engine, codec: Codec, load: Load, rounds: int) -> dict[str, Any]:
    """All sides with the sequences that `engine` has, in turns, and all on the thread that the models compute on."""
    alone = Alone(engine, codec)
    plain: list[Run] = []
    runs: list[Run] = []
    for _ in range(rounds):
        plain.append(engine.batcher.run(partial(one_after_another, engine, codec, load)))
        runs.append(together(engine, codec, load, plain[-1].wall_s / len(load.utterances)))
        engine.batcher.run(partial(alone.measure, sorted({call.shape for call in runs[-1].calls.made})))
    return _record(engine.sequences, plain, runs, alone)


def _record(size: int, plain: Sequence[Run], runs: Sequence[Run], alone: Alone) -> dict[str, Any]:
    """The medians of all rounds."""
    rates = [run.frames_per_s for run in runs]
    shares = [alone.sum_s(run.calls.made) / run.wall_s for run in runs]
    gains = [run.frames_per_s / other.frames_per_s for run, other in zip(runs, plain, strict=True)]
    run = runs[-1]
    return {
        "sequences": size,
        "frames": sum(run.frames),
        "wall_s": round(float(np.median([run.wall_s for run in runs])), 3),
        "frames_per_s": round(float(np.median(rates)), 2),
        "one_after_another_frames_per_s": round(float(np.median([other.frames_per_s for other in plain])), 2),
        "gain": round(float(np.median(gains)), 3),
        "sum_of_calls_s": {kind: round(alone.sum_s(run.calls.of(kind)), 3) for kind in (CHUNK, STEP, FRAME, CODEC)},
        "spent_in_calls_s": {
            kind: round(sum(call.seconds for call in run.calls.of(kind)), 3) for kind in (CHUNK, STEP, FRAME, CODEC)
        },
        "last_wall_s": round(run.wall_s, 3),
        "share": round(float(np.median(shares)), 3),
        "shares": [round(share, 3) for share in shares],
        "gains": [round(each, 3) for each in gains],
        "steps": len(run.calls.of(STEP)),
        "steps_in_waves": steps_in_waves(run.frames, size),
    }


@click.command(help=(__doc__ or "").split("\n\n", maxsplit=1)[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quant", default="q4_k_m", show_default=True)
@click.option("--threads", default=default_threads(), show_default="as the runtime")
@click.option("--gpu-layers", default=0, show_default=True)
@click.option("--codec-threads", default=1, show_default=True, help="The runtime has 4 beside a GPU.")
@click.option(
    "--sequences", "sizes", multiple=True, type=int, default=(1, 2, 4, 8), show_default=True, help="Again for another."
)
@click.option("--utterances", "count", default=12, show_default=True)
@click.option("--frames", default=20, show_default=True, help="Of an average utterance.")
@click.option("--pressure", default=3.0, show_default=True, help="Utterances that come while one is spoken.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--prompt-rows", default=1500, show_default=True, help="Of the prompt beside a stream; 0 for none.")
def main(
    bundle: Path,
    quant: str,
    threads: int,
    gpu_layers: int,
    codec_threads: int,
    sizes: Sequence[int],
    count: int,
    frames: int,
    pressure: float,
    rounds: int,
    prompt_rows: int,
) -> None:
    level = open_level(bundle, quant)
    records: list[dict[str, Any]] = []
    beside = None
    with Codec(level.codec_decoder, threads=codec_threads) as codec:
        for size in sizes:
            options = EngineOptions(threads=threads, gpu_layers=gpu_layers, sequences=size)
            with Engine(level, options) as engine:
                load = Load.random(engine.spec, count, frames, pressure)
                records.append(measured(engine, codec, load, rounds))
                if prompt_rows and size == min((size for size in sizes if size > 1), default=0):
                    beside = gap(engine, prompt_rows)
    result = {
        "benchmark": "batch",
        "model": level.manifest.model_spec.name,
        "level": level.key,
        "threads": threads,
        "codec_threads": codec.threads,
        "utterances": count,
        "pressure": pressure,
        "rounds": rounds,
        "sizes": records,
        "gap": beside,
    }
    _print(level, threads, records, beside)
    print(json.dumps(result))


def _print(level: OpenLevel, threads: int, records: Sequence[dict[str, Any]], beside: dict[str, Any] | None) -> None:
    table = Table(title=f"{level.manifest.model_spec.name} {level.key}, {threads} of the models' threads")
    for name in ("sequences", "frames/s", "one by one", "gain", "sum of calls / wall", "steps", "in waves"):
        table.add_column(name, justify="right")
    for record in records:
        table.add_row(
            str(record["sequences"]),
            f"{record['frames_per_s']:.2f}",
            f"{record['one_after_another_frames_per_s']:.2f}",
            f"{record['gain']:.2f}x",
            f"{record['share']:.1%}",
            str(record["steps"]),
            str(record["steps_in_waves"]),
        )
    console = Console()
    console.print(table)
    if beside is not None:
        parts = beside["calls_in_longest_gap_ms"]
        console.print(
            f"longest gap beside a prompt of {beside['prompt_rows']} rows: {beside['longest_gap_ms']:.1f} ms; "
            f"in it {', '.join(f'a {kind} of {ms:.1f} ms' for kind, ms in parts.items())}"
        )


if __name__ == "__main__":
    main()
