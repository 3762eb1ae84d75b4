"""Where the time of one frame goes, and how far it is from what the memory allows.

    python benchmarks/frame.py BUNDLE --quant q4_k_m --threads 2

In turns, round by round, so that a busy machine slows all alike: this machine's read bandwidth; a frame of ours, split
into backbone, depth decoder and codec; a frame in eager PyTorch bfloat16 at the same shapes; and the depth decoder
stepped through plain `llama_decode` calls. Prints a table and, last, one line of JSON. Figures are medians; a frame is
80 ms of audio. At full size it needs a converted synthetic checkpoint (README, "At full size without the weights") and,
with --eager, about 9 GB of memory.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from eager import EagerFrame
from rich.console import Console
from rich.table import Table

from miso_gguf.models.spec import ModelSpec
from miso_gguf.native.buffer_types import is_interleaving_safe
from miso_gguf.native.device import Backends
from miso_gguf.native.ggml import dequantize
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.native.graph import F32, Graph
from miso_gguf.native.llama import LlamaModel, LlamaOptions
from miso_gguf.native.scheduler import Scheduler
from miso_gguf.native.threads import default_threads
from miso_gguf.runtime.bundle import OpenLevel, open_level
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.tts import MisoTTS

PAST = 60
"""Positions before the frame that is timed: a short prompt."""
PROMPT_TOKENS = 30
_READ_BYTES = 1 << 30

Call = Callable[[], object]


def read_bandwidth(threads: int) -> Call:
    """Reads 1 GiB, each thread its part, with the cheapest reduction there is."""
    data = np.ones(_READ_BYTES // 8, np.int64)
    parts = np.array_split(data, threads)

    def read() -> None:
        workers = [threading.Thread(target=part.max) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return read


def ours(tts: MisoTTS) -> dict[str, Call]:
    """The parts of our frame, each as it is in the frame loop."""
    engine, spec = tts.engine, tts.engine.spec
    rng = np.random.default_rng(0)
    codes = rng.integers(0, tts.codec.cardinality, (1, spec.codebooks))
    hidden = rng.standard_normal((1, spec.backbone.embed_dim)).astype(np.float32)
    logits = rng.standard_normal((1, spec.audio_vocab)).astype(np.float32)
    noise = rng.gumbel(size=(1, spec.codebooks, spec.audio_vocab)).astype(np.float32)
    rows = np.full((PAST, spec.codebooks + 1), -1, np.int64)
    rows[:, -1] = rng.integers(0, spec.text_vocab, PAST)
    engine.prefill(0, [Block(rows)])
    stream = tts.codec.stream()
    return {
        "backbone": lambda: engine.step([0], [codes[0]]),
        "depth decoder": lambda: engine.sample(hidden, logits, noise, 50),
        "codec": lambda: stream.decode(codes),
    }


def plain_llama(level: OpenLevel, spec: ModelSpec, threads: int) -> tuple[LlamaModel, Call]:
    """The depth decoder as a stock llama.cpp model: a call for each codebook, sampling on the host."""
    options = LlamaOptions(threads=threads, repack=is_interleaving_safe())
    model = LlamaModel(level.decoder, options, context=spec.codebooks)
    with GgufFile(level.decoder) as file:
        table = file.tensor("token_embd.weight", spec.flat_audio_vocab, spec.decoder.embed_dim)
    noise = np.random.default_rng(0).gumbel(size=(spec.codebooks, spec.audio_vocab)).astype(np.float32)

    def frame() -> None:
        model.forget(0)
        inputs = dequantize(table.qtype, table.data[:2], spec.decoder.embed_dim)
        position = 0
        for codebook in range(1, spec.codebooks):
            count = len(inputs)
            wanted = [False] * (count - 1) + [True]
            _, logits = model.decode(inputs, [0] * count, range(position, position + count), wanted)
            position += count
            own = logits[0, codebook * spec.audio_vocab : (codebook + 1) * spec.audio_vocab]
            best = np.argpartition(own, -50)[-50:]
            code = best[np.argmax(own[best] / 0.9 + noise[codebook, best])]
            inputs = dequantize(table.qtype, table.data[[codebook * spec.audio_vocab + code]], spec.decoder.embed_dim)

    return model, frame


def products_only(tts: MisoTTS, threads: int) -> Call:
    """All matrix products of the depth decoder's graph and nothing else: what ggml's kernels take."""
    weights, spec = tts.engine.depth.weights, tts.engine.spec
    backends = Backends(gpu=tts.engine.gpu, threads=threads)
    graph = Graph((spec.codebooks - 1) * (len(weights.layers) * 8 + 4))
    inputs = {
        width: graph.input(F32, width, 1)
        for width in {spec.decoder.embed_dim, spec.decoder.ffn_dim, spec.decoder.q_dim}
    }
    for codebook in range(1, spec.codebooks):
        for layer in weights.layers:
            for matrix in layer.matrices:
                graph.expand(graph.mul_mat(matrix, inputs[matrix.shape[0]]))
        graph.expand(graph.mul_mat(weights.heads[codebook - 1], inputs[spec.decoder.embed_dim]))
    return Scheduler(backends, graph).compute


def first_audio(tts: MisoTTS) -> float:
    """TTFA in seconds of a prompt of 30 tokens, nothing cached."""
    words = ["one"] * 200
    while len(tts.engine.prompts.text(" ".join(words), 0)) > PROMPT_TOKENS and len(words) > 1:
        words.pop()
    tts.engine.prefill(0, [tts.engine.prompts.text("unrelated", 9)])
    with tts.stream(" ".join(words) + ".", options=SpeechOptions(max_seconds=0.16)) as stream:
        return next(stream).elapsed_s


def resident() -> dict[str, float]:
    """Memory of this process in GB; what is mapped from the bundle's files is not anonymous."""
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return {}
    return {name: int(kilobytes) / 1e6 for name, kilobytes in re.findall(r"(Rss|Anonymous):\s+(\d+)", rollup)}


def seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quant", default="q4_k_m", show_default=True)
@click.option("--threads", default=default_threads(), show_default="as the runtime")
@click.option("--gpu-layers", default=0, show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--eager/--no-eager", default=True, show_default=True, help="Also time eager PyTorch.")
def main(bundle: Path, quant: str, threads: int, gpu_layers: int, rounds: int, eager: bool) -> None:
    torch.set_num_threads(threads)
    level = open_level(bundle, quant)
    spec = level.manifest.model_spec
    begin = time.perf_counter()
    with MisoTTS.load(bundle, quant, threads=threads, gpu_layers=gpu_layers) as tts:
        load_s = time.perf_counter() - begin
        memory = resident()
        calls = ours(tts)
        model, calls["depth decoder, llama_decode"] = plain_llama(level, spec, threads)
        calls["products of the depth decoder alone"] = products_only(tts, threads)
        calls["read 1 GiB"] = read_bandwidth(threads)
        if eager:
            frame = EagerFrame(spec, PAST)
            h = frame.backbone()
            calls["eager backbone"] = frame.backbone
            calls["eager depth decoder"] = lambda: frame.depth(h)
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call))
        ttfa = sorted(first_audio(tts) for _ in range(3))[1]
        with tts.stream("one two three four five", options=SpeechOptions(max_seconds=1.6)) as stream:
            list(stream)
            spoken = stream.speech
        model.close()
        streamed = {"backbone": level.backbone.stat().st_size, "depth decoder": tts.engine.depth.streamed_bytes}
    record = report(times, streamed, spec)
    record |= {
        "benchmark": "frame",
        "model": spec.name,
        "level": level.key,
        "threads": threads,
        "rounds": rounds,
        "load_s": round(load_s, 2),
        "ttfa_30_tokens_s": round(ttfa, 3),
        "stream": {key: value for key, value in spoken.as_dict().items() if key != "sentences"},
        "memory_gb": memory,
    }
    print(json.dumps(record))


def report(times: dict[str, list[float]], streamed: dict[str, int], spec: ModelSpec) -> dict[str, Any]:
    """Print the table; the figures for JSON."""
    middle = {name: float(np.median(values)) for name, values in times.items()}
    bandwidth = _READ_BYTES / middle["read 1 GiB"]
    table = Table(
        "", "ms", "10 % .. 90 %", "GB streamed", "GB/s", "% of read bandwidth", title=f"{spec.name}, one frame"
    )
    for name, values in times.items():
        low, high = np.percentile(values, [10, 90]) * 1e3
        size = streamed.get(name.removeprefix("products of the ").removesuffix(" alone"))
        rate = size / middle[name] if size else 0.0
        table.add_row(
            name,
            f"{middle[name] * 1e3:.1f}",
            f"{low:.1f} .. {high:.1f}",
            f"{size / 1e9:.2f}" if size else "",
            f"{rate / 1e9:.1f}" if size else f"{bandwidth / 1e9:.1f}" if name == "read 1 GiB" else "",
            f"{rate / bandwidth:.0%}" if size else "",
        )
    frame_s = middle["backbone"] + middle["depth decoder"]
    floor_s = sum(streamed.values()) / bandwidth
    record: dict[str, Any] = {
        "unit": "ms/frame",
        **{name.replace(" ", "_").replace(",", ""): round(value * 1e3, 2) for name, value in middle.items()},
        "read_gb_per_s": round(bandwidth / 1e9, 2),
        "frame": round(frame_s * 1e3, 1),
        "floor": round(floor_s * 1e3, 1),
        "frame_over_floor": round(frame_s / floor_s, 3),
        "rtf_without_overlap": round((frame_s + middle["codec"]) / 0.08, 3),
        "over_llama_decode": round(middle["depth decoder, llama_decode"] / middle["depth decoder"], 2),
    }
    lines = [f"frame {frame_s * 1e3:.0f} ms = {frame_s / floor_s:.2f} x the memory floor of {floor_s * 1e3:.0f} ms"]
    lines.append(f"depth decoder {record['over_llama_decode']:.1f}x as fast as through llama_decode")
    if "eager backbone" in middle:
        eager_s = middle["eager backbone"] + middle["eager depth decoder"]
        record |= {"eager_frame": round(eager_s * 1e3, 1), "over_eager": round(eager_s / frame_s, 2)}
        lines.append(f"{eager_s / frame_s:.1f}x as fast as eager PyTorch bfloat16 ({eager_s * 1e3:.0f} ms)")
    console = Console()
    console.print(table)
    console.print("\n".join(lines))
    return record


if __name__ == "__main__":
    main()
