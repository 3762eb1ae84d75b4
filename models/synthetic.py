"""Random checkpoints of any flavour in the exact upstream layout, streamed to disk.

They hold noise, not speech: they exercise every byte of the conversion, at any size up to the full 32.8 GB, where the
real weights cannot be had. `python -m miso_gguf.models.synthetic miso-8b DIR` writes one.
"""

import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..core.arrays import F32Array
from ..core.files import open_whole, write_whole
from .flavors import FLAVORS
from .mimi import MIMI, MIMI_NAME, TINY_MIMI, MimiSpec
from .spec import ModelSpec
from .synthetic_mimi import random_mimi
from .synthetic_tokenizer import synthetic_tokenizer
from .tensors import Shape, checkpoint_shapes

CHECKPOINT_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.json"

_CHUNK_ITEMS = 4 << 20
_THREADS = 2


def write_synthetic(
    directory: Path,
    spec: ModelSpec,
    mimi: MimiSpec,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> Path:
    """Write `model.safetensors` (float32), `mimi.safetensors` and `tokenizer.json` into `directory`.

    Memory stays below 1 GB whatever the size. Returns the checkpoint's path. Equal seeds give equal bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = json.dumps(synthetic_tokenizer(spec), ensure_ascii=False, indent=1)
    write_whole(directory / TOKENIZER_NAME, (tokenizer + "\n").encode())
    codec = random_mimi(mimi, seed)
    with open_whole(directory / MIMI_NAME) as file:
        _write_safetensors(file, {name: value.shape for name, value in codec.items()}, lambda name: [codec[name]])
    path = directory / CHECKPOINT_NAME
    shapes = checkpoint_shapes(spec)
    with open_whole(path) as file, ThreadPoolExecutor(_THREADS) as pool:
        _write_safetensors(file, shapes, lambda name: _random_chunks(name, shapes[name], seed, pool), progress)
    return path


def _write_safetensors(
    file: BinaryIO,
    shapes: Mapping[str, Shape],
    values: Callable[[str], Iterable[F32Array]],
    progress: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Stream float32 tensors, sorted by name as the safetensors library sorts them."""
    header, position = {}, 0
    for name in sorted(shapes):
        end = position + 4 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [position, end]}
        position = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    for name in sorted(shapes):
        for chunk in values(name):
            data = np.ascontiguousarray(chunk, "<f4").data
            file.write(data)
            progress(data.nbytes)


def _random_chunks(name: str, shape: Shape, seed: int, pool: ThreadPoolExecutor) -> Iterator[F32Array]:
    """The tensor's values in order, made by the pool a few chunks ahead of the writer."""
    items = math.prod(shape)
    mean, deviation = distribution(name, shape)

    def make(start: int) -> F32Array:
        # Keyed by name and place: the same values whatever the order or the number of threads.
        generator = np.random.Generator(
            np.random.Philox(key=[seed, zlib.crc32(name.encode()) << 32 | start // _CHUNK_ITEMS])
        )
        values = generator.standard_normal(min(_CHUNK_ITEMS, items - start), np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        return values

    starts = iter(range(0, items, _CHUNK_ITEMS))
    while batch := list(islice(starts, 2 * _THREADS)):
        yield from pool.map(make, batch)


def distribution(name: str, shape: Shape) -> tuple[float, float]:
    """(mean, standard deviation): keeps activations of order one through any number of layers."""
    if name.endswith(".scale"):
        return 1.0, 0.1
    if name.endswith("_embeddings.weight"):
        return 0.0, 0.5
    inputs = shape[-2] if name == "audio_head" else shape[-1]
    return 0.0, 1.0 / math.sqrt(inputs)


def main(arguments: list[str]) -> int:
    """`FLAVOR DIR [SEED]`."""
    if len(arguments) not in (2, 3) or arguments[0] not in FLAVORS:
        print(f"usage: python -m miso_gguf.models.synthetic {{{','.join(FLAVORS)}}} DIR [SEED]", file=sys.stderr)
        return 2
    flavor, directory, *seed = arguments
    path = write_synthetic(Path(directory), FLAVORS[flavor], mimi_of(flavor), int(*seed) if seed else 0)
    print(path)
    return 0


def mimi_of(flavor: str) -> MimiSpec:
    """The codec that goes with a flavour."""
    return TINY_MIMI if flavor == "tiny" else MIMI


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
