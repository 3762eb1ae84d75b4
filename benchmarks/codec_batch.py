"""What it costs to decode several streams together, beside one call for each: full-size Mimi with random weights.

    python benchmarks/codec_batch.py --threads 1

The sides take turns, call by call. Prints a table for people and, last, one line of JSON for programs. Times are
milliseconds a frame and row: the median of all calls, and the 10th and 90th percentiles; and the same of the process's
CPU time, which other programs on the machine disturb less. "Changing company" is the dearest case: of one stream more,
another one sits out each call, so that states are copied each time.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from miso_gguf.convert.mimi.export import export_decoder
from miso_gguf.convert.mimi.weights import mimi_weights
from miso_gguf.core.arrays import F32Array
from miso_gguf.models.mimi import MIMI, TINY_MIMI
from miso_gguf.models.synthetic_mimi import random_mimi
from miso_gguf.runtime.codec.codec import Codec, CodecStream


class Side:
    """One way to decode, with the times of its calls."""

    def __init__(self, codec: Codec, rows: int, spare: int) -> None:
        self._codec, self._rows = codec, rows
        self.streams = [codec.stream() for _ in range(rows + spare)]
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []

    def turn(self, codes: list[Any], number: int, *, together: bool) -> list[F32Array]:
        """Decode `codes` on the streams whose turn it is."""
        rested = number % len(self.streams) if len(self.streams) > self._rows else -1
        streams: list[CodecStream] = [stream for index, stream in enumerate(self.streams) if index != rested]
        wall, cpu = time.perf_counter(), time.process_time()
        if together:
            samples = self._codec.decode_together(streams, codes)
        else:
            samples = [stream.decode(each) for stream, each in zip(streams, codes, strict=True)]
        frames = self._rows * len(codes[0])
        self.cpu_ms.append((time.process_time() - cpu) * 1e3 / frames)
        self.wall_ms.append((time.perf_counter() - wall) * 1e3 / frames)
        return samples


def measure(codec: Codec, rows: int, frames: int, calls: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sides = {name: Side(codec, rows, int(name == "changing")) for name in ("together", "separate", "changing")}
    difference = 0.0
    for number in range(calls + 1):
        codes = list(rng.integers(0, codec.cardinality, (rows, frames, codec.codebooks)))
        samples = {name: side.turn(codes, number, together=name != "separate") for name, side in sides.items()}
        for ours, alone in zip(samples["together"], samples["separate"], strict=True):
            difference = max(difference, float(np.abs(ours - alone).max()))
    record: dict[str, Any] = {"rows": rows, "frames": frames, "largest_difference": difference}
    for name, side in sides.items():
        wall, cpu = (np.percentile(times[1:], [50, 10, 90]).round(2).tolist() for times in (side.wall_ms, side.cpu_ms))
        record[name] = {"wall_ms": wall, "cpu_ms": cpu}
    return record


@click.command()
@click.option("--threads", default=1, show_default=True, help="Threads of the codec.")
@click.option("--rows", default=(1, 4, 8, 16), show_default=True, multiple=True, help="Streams of one call.")
@click.option("--frames", default=(1,), show_default=True, multiple=True, help="Frames of each stream in one call.")
@click.option("--calls", default=20, show_default=True)
@click.option("--tiny", is_flag=True, help="The small codec of the tests.")
def main(threads: int, rows: tuple[int, ...], frames: tuple[int, ...], calls: int, tiny: bool) -> None:
    spec, weights = mimi_weights(random_mimi(TINY_MIMI if tiny else MIMI, 0), TINY_MIMI if tiny else MIMI)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mimi-decoder.onnx"
        path.write_bytes(export_decoder(spec, weights, "float16"))
        with Codec(path, threads=threads) as codec:
            found = [measure(codec, each, count, calls) for count in frames for each in rows]
    names = "together", "separate", "changing"
    table = Table(
        "streams",
        "frames",
        "together",
        "separate calls",
        "changing company",
        "difference",
        title=f"{threads} thread(s)",
    )
    for each in found:
        cells = []
        for name in names:
            (wall, low, high), (cpu, *_) = each[name]["wall_ms"], each[name]["cpu_ms"]
            cells.append(f"{wall:.1f} ({low:.1f} .. {high:.1f}), CPU {cpu:.1f}")
        table.add_row(str(each["rows"]), str(each["frames"]), *cells, f"{each['largest_difference']:.1e}")
    Console(width=140).print(table)
    print(
        json.dumps({"benchmark": "codec_batch", "tiny": tiny, "threads": threads, "unit": "ms/frame", "sides": found})
    )


if __name__ == "__main__":
    main()
