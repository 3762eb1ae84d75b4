"""What ggml's CUDA backend would do, found out without a GPU: kernels of a frame, graph captures, bytes allocated.

A CUDA build of llama-cpp-python runs over a CUDA runtime that computes nothing (`fake_cudart.c`). Counts and bytes are
exact; no result of a computation means anything, and nothing here is a time.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kit.build import toolkit

from miso_gguf import SpeechOptions
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.options import EngineOptions

SOURCE = Path(__file__).with_name("fake_cudart.c")
_TOOLS = Path(__file__).parents[1]
_FRAMES = 6
"""ggml captures a graph when it is run for the second time unchanged."""


def dry_run(bundle: Path, level: str, *, batch: int = 1, kv_type: str = "f16") -> dict[str, Any]:
    """Count for one level, with the CUDA build of llama_cpp that PYTHONPATH leads to.

    Raises `subprocess.CalledProcessError`: with what ggml said on standard error, if it aborts.
    """
    with tempfile.TemporaryDirectory() as temporary:
        library = _built(Path(temporary))
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [temporary, os.environ.get("LD_LIBRARY_PATH")])),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_TOOLS), os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, str(Path(__file__)), str(bundle), level, str(batch), kv_type]
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    counted: dict[str, Any] = json.loads(output.splitlines()[-1])
    return counted


def _built(directory: Path) -> Path:
    """The runtime, compiled. Every library of CUDA's that ggml loads is a name for it."""
    major = _cuda_major()
    library = directory / f"libcudart.so.{major}"
    flags = ["-O2", "-shared", "-fPIC", f"-I{toolkit() / 'include'}", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *flags, str(SOURCE), "-o", str(library)], check=True)
    for name in (f"libcublas.so.{major}", "libcuda.so.1"):
        (directory / name).symlink_to(library)
    return library


def _cuda_major() -> int:
    """Of the toolkit, from cuda.h: 13010 is 13.1."""
    header = (toolkit() / "include/cuda.h").read_text()
    version = re.search(r"#define CUDA_VERSION (\d+)", header)
    if version is None:
        raise ValueError(f"{toolkit()}/include/cuda.h names no CUDA_VERSION")
    return int(version[1]) // 1000


def _backbone_bytes(path: Path) -> int:
    """Weights that a step reads: the input table is never looked up."""
    with GgufFile(path) as file:
        return sum(tensor.data.nbytes for name, tensor in file.tensors.items() if name != "token_embd.weight")


class _Counter:
    """The counts since the last reset."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(f"libcudart.so.{_cuda_major()}")

    def reset(self) -> None:
        self._library.fake_cudart_reset()

    def read(self) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile() as file:
            self._library.fake_cudart_write(file.name.encode())
            found: dict[str, Any] = json.loads(Path(file.name).read_text())
        return found


def _count(bundle: Path, level: str, batch: int, kv_type: Any) -> dict[str, Any]:
    """In the process over the dry runtime."""
    counter = _Counter()
    files = open_level(bundle, level)
    options = EngineOptions(threads=1, gpu_layers=-1, sequences=batch, kv_type=kv_type, allow_cpu=False)
    with Engine(files, options) as engine:
        spec = engine.spec
        for sequence in range(batch):
            engine.prefill(sequence, [engine.prompts.text("one two three four five", 0)])
        loaded = counter.read()
        hidden = np.zeros((batch, spec.backbone.embed_dim), np.float32)
        noise = np.zeros((batch, spec.codebooks, spec.audio_vocab), np.float32)
        codes = [np.zeros(spec.codebooks, np.int64)] * batch
        part_bytes = {"backbone": _backbone_bytes(files.backbone), "depth_decoder": engine.depth.streamed_bytes}
        found = {
            "level": level,
            "batch": batch,
            "kv_type": kv_type,
            "streamed_bytes": sum(part_bytes.values()),
            "part_bytes": part_bytes,
            "device_bytes_after_prefill": loaded["used_bytes"],
            "backbone": _per_frame(counter, lambda: engine.step(list(range(batch)), codes)),
            "depth_decoder": _per_frame(
                counter, lambda: engine.sample(hidden, noise[:, 0].copy(), noise, SpeechOptions().top_k)
            ),
            "device_bytes": counter.read()["used_bytes"],
        }
        # Teacher forcing has a graph of its own.
        engine.depth_logits(hidden, np.stack(codes))
        return {**found, "depth_graph_splits": engine.depth.splits}


def _per_frame(counter: _Counter, call: Callable[[], object]) -> dict[str, Any]:
    """Run until graphs are captured, then count `_FRAMES` runs, which must all be alike."""
    for _ in range(_FRAMES):
        call()
    counter.reset()
    for _ in range(_FRAMES):
        call()
    return per_frame(counter.read(), _FRAMES)


def per_frame(counted: dict[str, Any], frames: int) -> dict[str, Any]:
    """What one of `frames` equal frames takes: launched one by one, or as one captured graph.

    Raises `ValueError` if they were not alike: then there is no such figure.
    """
    captured = counted["graph_launches"] == frames
    if counted["captures"] or not (captured or counted["graph_launches"] == 0):
        raise ValueError(
            f"{frames} frames launched {counted['graph_launches']} graphs, {counted['captures']} of them new"
        )
    kernels = Counter[str]()
    for name, direct, in_graph in counted["kernels"]:
        if direct % frames:
            raise ValueError(f"{frames} frames launched {name} {direct} times")
        kernels[_short(name)] += direct // frames + (in_graph if captured else 0)
    return {
        "kernels": sum(kernels.values()),
        "copies": counted["copies"] // frames + (counted["captured_copies"] if captured else 0),
        "in_one_graph": captured and not any(direct for _, direct, _ in counted["kernels"]),
        "host_copies": counted["host_copies"] / frames,
        "waits": counted["synchronisations"] / frames,
        "by_kernel": {name: count for name, count in kernels.most_common() if count},
    }


def _short(mangled: str) -> str:
    """A kernel's own name, without namespaces, template arguments and parameters."""
    name = _demangled(mangled).replace("(anonymous namespace)::", "")
    name = name.split("<")[0].split("(")[0]
    return name.split("::")[-1].split(" ")[-1]


def _demangled(name: str) -> str:
    libstdcxx = ctypes.CDLL("libstdc++.so.6")
    libstdcxx.__cxa_demangle.restype = ctypes.c_char_p
    status = ctypes.c_int()
    result = libstdcxx.__cxa_demangle(name.encode(), None, None, ctypes.byref(status))
    return result.decode() if status.value == 0 else name


if __name__ == "__main__":
    print(json.dumps(_count(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])))
