"""How fast the exported Mimi is, against moshi's own PyTorch streaming, with the same random weights in one run.

    python benchmarks/codec.py --threads 1

Both sides take turns, round by round, so that a busy machine slows both. Prints a table for people and, last, one line
of JSON for programs. Times are milliseconds a frame (a frame is 80 ms of audio): the median of all calls, and the
10th and 90th percentiles.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from moshi.models.loaders import get_mimi
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from miso_gguf.convert.mimi.export import export_decoder, export_encoder
from miso_gguf.convert.mimi.weights import mimi_weights
from miso_gguf.models.mimi import FRAME_SAMPLES, MIMI
from miso_gguf.models.synthetic_mimi import random_mimi

Call = Callable[[], object]
LONG = 50


class Stream:
    """One stream through a model, its state kept in ONNX Runtime's own memory between calls."""

    def __init__(self, model: bytes, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._entries = json.loads(self._session.get_modelmeta().custom_metadata_map["miso.state"])
        outputs = [entry["output"] for entry in self._entries]
        self._outputs = [next(o.name for o in self._session.get_outputs() if o.name not in outputs), *outputs]
        self._state = {
            entry["input"]: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros([1 if dim == "batch" else dim for dim in entry["shape"]], entry["dtype"])
            )
            for entry in self._entries
        }

    def __call__(self, name: str, data: NDArray[Any]) -> None:
        """Run one call on the input called `name`."""
        feed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(data), **self._state}
        _, *state = self._session.run_with_ort_values(self._outputs, feed)
        self._state = dict(zip((entry["input"] for entry in self._entries), state, strict=True))


@contextmanager
def moshi_streaming(model: Any) -> Iterator[None]:
    with torch.no_grad(), model.streaming(1):
        yield


def milliseconds(call: Call, count: int, frames: int) -> list[float]:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3 / frames)
    return taken


def compare(ours: Call, theirs: Call, rounds: int, count: int, frames: int) -> dict[str, list[float]]:
    milliseconds(ours, 3, frames)
    milliseconds(theirs, 2, frames)
    times: dict[str, list[float]] = {"ours": [], "moshi": []}
    for _ in range(rounds):
        times["ours"] += milliseconds(ours, count, frames)
        times["moshi"] += milliseconds(theirs, count, frames)
    return times


@click.command()
@click.option("--threads", default=1, show_default=True, help="Threads of either side.")
@click.option("--rounds", default=4, show_default=True)
@click.option("--frames", default=25, show_default=True, help="Frames a round, one a call.")
def main(threads: int, rounds: int, frames: int) -> None:
    torch.set_num_threads(threads)
    checkpoint = random_mimi(MIMI, 0)
    spec, weights = mimi_weights(checkpoint)
    moshi = get_mimi(None, num_codebooks=spec.codebooks)
    moshi.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.items()})
    decoder, encoder = export_decoder(spec, weights, "float16"), export_encoder(spec, weights, "float32")

    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.cardinality, (1, spec.codebooks, LONG))
    audio = rng.normal(0, 0.1, (1, 1, FRAME_SAMPLES)).astype(np.float32)
    one, many = codes[:, :, :1], codes
    decode, encode = Stream(decoder, threads), Stream(encoder, threads)
    one_tensor, many_tensor, audio_tensor = (torch.from_numpy(array) for array in (one, many, audio))

    results: dict[str, dict[str, list[float]]] = {}
    with moshi_streaming(moshi):
        results["decode, 1 frame a call"] = compare(
            lambda: decode("codes", one), lambda: moshi.decode(one_tensor), rounds, frames, 1
        )
    with moshi_streaming(moshi):
        results[f"decode, {LONG} frames a call"] = compare(
            lambda: decode("codes", many), lambda: moshi.decode(many_tensor), rounds, 2, LONG
        )
    with moshi_streaming(moshi):
        results["encode, 1 frame a call"] = compare(
            lambda: encode("audio", audio), lambda: moshi.encode(audio_tensor), rounds, frames, 1
        )

    table = Table("ms a frame (10 % .. 90 %)", "ours", "moshi", "ratio", title=f"Mimi, {threads} thread(s)")
    record: dict[str, Any] = {"benchmark": "codec", "threads": threads, "unit": "ms/frame"}
    record["bytes"] = {"decoder_float16": len(decoder), "encoder_float32": len(encoder)}
    for name, sides in results.items():
        spread = {side: np.percentile(times, [50, 10, 90]).round(2).tolist() for side, times in sides.items()}
        ratio = spread["moshi"][0] / spread["ours"][0]
        cells = [f"{middle:.1f} ({low:.1f} .. {high:.1f})" for middle, low, high in spread.values()]
        table.add_row(name, *cells, f"{ratio:.2f}x")
        record[name] = {**spread, "ratio": round(ratio, 2)}
    Console().print(table)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
