"""Converting, ours against llama.cpp's way, on a cut-down depth of real-shaped layers, in one run.

llama.cpp's way is to write an F16 GGUF of each transformer and call `llama_model_quantize` once per level. The third
side is the quantiser's arithmetic alone, on rows that lie in memory: the floor of any converter. `--repeat` alternates
the sides and reports medians. A second table says what each stage of ours takes alone. Prints tables and one JSON line.

    python benchmarks/convert.py [--layers 3] [--repeat 3] [--dir DIR]
"""

import argparse
import ctypes
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from miso_gguf.console import stdout, table
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import Checkpoint, open_checkpoint
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.convert.gguf_header import keys_of
from miso_gguf.convert.rows import RowReader
from miso_gguf.convert.sink import Sink
from miso_gguf.core.files import file_sha256
from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.gguf_parts import llama_values
from miso_gguf.models.levels import FP16, Q4_0, Q4_K_M, Q8_0, Level
from miso_gguf.models.mimi import MIMI_NAME, TINY_MIMI
from miso_gguf.models.spec import ModelSpec
from miso_gguf.models.synthetic import TOKENIZER_NAME, write_synthetic
from miso_gguf.models.tensors import PARTS, Part, Projected, gguf_tensors
from miso_gguf.native.ggml import quantize
from miso_gguf.native.llama import load_library
from miso_gguf.native.threads import default_workers

THREADS = min(2, default_workers())
LEVEL_SETS: dict[str, list[Level]] = {"one level": [Q4_K_M], "four levels": [FP16, Q8_0, Q4_K_M, Q4_0]}


def cut_down_spec(layers: int) -> ModelSpec:
    """Miso 8B's layers and codebooks, fewer of them in the same proportion, and few words."""
    return replace(
        MISO_8B,
        name="Cut",
        backbone=replace(MISO_8B.backbone, layers=layers),
        decoder=replace(MISO_8B.decoder, layers=layers),
        text_vocab=1024,
        codebooks=max(2, layers),
    )


def ours(directory: Path, levels: list[Level], out: Path) -> float:
    """Seconds of one conversion of the whole bundle, codec and embeddings included."""
    start = time.perf_counter()
    with open_checkpoint(directory / "model.safetensors", directory / "spec.json") as checkpoint:
        request = Request(levels, threads=THREADS)
        convert(plan_conversion(out, checkpoint, directory / MIMI_NAME, directory / TOKENIZER_NAME, request))
    return time.perf_counter() - start


def llama_cpp(directory: Path, levels: list[Level], out: Path) -> float:
    """Seconds of F16 GGUFs of both transformers, then one `llama_model_quantize` per further level."""
    lib = load_library()
    start = time.perf_counter()
    out.mkdir(parents=True)
    with open_checkpoint(directory / "model.safetensors", directory / "spec.json") as checkpoint:
        for part in PARTS[:2]:
            source = out / f"{part}-F16.gguf"
            write_f16(checkpoint, part, source)
            for level in levels:
                if level is FP16:
                    continue
                params = lib.llama_model_quantize_default_params()
                params.nthread, params.ftype = THREADS, level.ftype
                if part == "decoder":
                    params.token_embedding_type = int(GGMLQuantizationType.Q8_0)
                target = out / f"{part}-{level.label}.gguf"
                status = lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
                assert status == 0, target
    for file in out.iterdir():
        # Ours syncs what it was asked for; an F16 file that is only a step on the way stays out.
        if FP16 in levels or "-F16" not in file.name:
            with file.open("r+b") as handle:
                os.fsync(handle.fileno())
    return time.perf_counter() - start


def write_f16(checkpoint: Checkpoint, part: Part, path: Path) -> None:
    """An F16 GGUF, written by gguf-py tensor after tensor as llama.cpp's converter does."""
    spec = checkpoint.spec
    reader = RowReader(checkpoint)
    writer = GGUFWriter(path, "llama")
    for key in keys_of(llama_values(spec, part)):
        writer.add_key_value(key.name, key.value, key.type)
    writer.add_file_type(FP16.ftype)
    tensors = [tensor for tensor in gguf_tensors(spec) if tensor.part == part]
    for tensor in tensors:
        dtype = np.dtype(np.float32 if len(tensor.shape) == 1 else np.float16)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.weights * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        rows = np.concatenate([reader.read(tensor, *chunk) for chunk in reader.chunks(tensor)])
        writer.write_tensor_data(rows.reshape(-1) if len(tensor.shape) == 1 else rows.astype(np.float16))
    writer.close()


def arithmetic(directory: Path, levels: list[Level]) -> dict[str, float]:
    """Seconds of `ggml_quantize_chunk` alone by tensor type, for all weights of the same bundle, on all threads."""
    work: Counter[tuple[str, int]] = Counter()
    with open_checkpoint(directory / "model.safetensors", directory / "spec.json") as checkpoint:
        plan = plan_conversion(
            directory / "none", checkpoint, directory / MIMI_NAME, directory / TOKENIZER_NAME, Request(levels)
        )
        seen = set()
        for file in plan.plans:
            for tensor, info in zip(file.tensors, file.infos, strict=True):
                if (file.part, tensor.name, info.qtype) not in seen and len(tensor.shape) > 1:
                    seen.add((file.part, tensor.name, info.qtype))
                    work[info.qtype.name, tensor.shape[-1]] += tensor.shape[0]
    seconds: defaultdict[str, float] = defaultdict(float)
    generator = np.random.default_rng(0)
    with ThreadPoolExecutor(THREADS) as pool:
        for (name, columns), rows in work.items():
            step = max(1, (1 << 20) // columns)
            buffer = generator.standard_normal((step, columns), np.float32)
            qtype = GGMLQuantizationType[name]
            start = time.perf_counter()
            sizes = [min(step, rows - first) for first in range(0, rows, step)]
            list(pool.map(lambda count, q=qtype, b=buffer: len(quantize(q, b[:count])), sizes))
            seconds[name] += time.perf_counter() - start
    return dict(seconds)


def stages(directory: Path, levels: list[Level]) -> dict[str, float]:
    """Seconds of each stage of a conversion alone, on one thread: what the pass overlaps with the quantiser."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    with open_checkpoint(directory / "model.safetensors", directory / "spec.json") as checkpoint:
        mimi, tokenizer = directory / MIMI_NAME, directory / TOKENIZER_NAME
        plan = plan_conversion(directory / "none", checkpoint, mimi, tokenizer, Request(levels))
        with timed("sha256 of the checkpoint"):
            file_sha256(directory / "model.safetensors")
        tensors = {(file.part, tensor.name): tensor for file in plan.plans for tensor in file.tensors}
        readers = {"read": RowReader(checkpoint, allow_nonfinite=True), "read and check": RowReader(checkpoint)}
        for tensor in tensors.values():
            for name, reader in readers.items():
                stage = "project the decoder's inputs" if isinstance(tensor.source, Projected) else name
                for chunk in reader.chunks(tensor):
                    with timed(stage):
                        reader.read(tensor, *chunk)
        seconds["check for NaN and Inf"] = max(0.0, seconds.pop("read and check") - seconds["read"])
        seconds["project the decoder's inputs"] /= len(readers)
        with timed("codec graphs"):
            plan.codec.encoder_graph()
            plan.codec.decoder_graph()
        block = bytes(4 << 20)
        with timed("write and hash the files"):
            sink = Sink(directory, "scratch")
            for _ in range(plan.needed_bytes // len(block)):
                sink.write(block)
            sink.finish()
            sink.discard()
    return seconds


def main() -> None:
    """Run the three sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the checkpoint and the outputs go [default: a temporary one]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as temporary:
        directory = Path(temporary)
        spec = cut_down_spec(arguments.layers)
        write_synthetic(directory, spec, TINY_MIMI)
        (directory / "spec.json").write_text(json.dumps(asdict(spec)))
        results = {}
        for name, levels in LEVEL_SETS.items():
            samples: dict[str, list[float]] = {"ours": [], "llama.cpp": [], "arithmetic": []}
            by_type: dict[str, float] = {}
            for _ in range(arguments.repeat):
                for side, run in (("ours", ours), ("llama.cpp", llama_cpp)):
                    out = directory / "out"
                    samples[side].append(run(directory, levels, out))
                    shutil.rmtree(out)
                by_type = arithmetic(directory, levels)
                samples["arithmetic"].append(sum(by_type.values()))
            results[name] = {**summary(samples, by_type), "stages_s": rounded(stages(directory, levels))}
    columns = ["", "ours", "llama.cpp's way", "faster", "arithmetic alone", "ours over it"]
    rows = [
        [
            name,
            f"{result['ours_s']:.1f} s",
            f"{result['llama.cpp_s']:.1f} s",
            f"{result['speedup']:.2f}x",
            f"{result['arithmetic_s']:.1f} s",
            f"{result['over_arithmetic']:.2f}x",
        ]
        for name, result in results.items()
    ]
    title = f"{arguments.layers}+{arguments.layers} real-shaped layers, {THREADS} threads"
    stdout.print(table(title, columns, rows, range(1, 6)))
    for name, result in results.items():
        parts = {
            **result["stages_s"],
            **{f"quantise {qtype}, {THREADS} threads": s for qtype, s in result["arithmetic_by_type_s"].items()},
        }
        stdout.print(
            table(f"{name}: each stage alone", ["stage", "seconds"], [[k, f"{v:.2f}"] for k, v in parts.items()], [1])
        )
    print(json.dumps({"benchmark": "convert", "layers": arguments.layers, "threads": THREADS, **results}))


def summary(samples: dict[str, list[float]], by_type: dict[str, float]) -> dict[str, Any]:
    """Medians of each side, and of the ratios within each round."""

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(samples[a], samples[b], strict=True)), 3)

    return {
        **{f"{side}_s": round(statistics.median(values), 2) for side, values in samples.items()},
        "speedup": ratio("llama.cpp", "ours"),
        "over_arithmetic": ratio("ours", "arithmetic"),
        "arithmetic_by_type_s": rounded(by_type),
    }


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """To hundredths."""
    return {name: round(value, 2) for name, value in seconds.items()}


if __name__ == "__main__":
    main()
