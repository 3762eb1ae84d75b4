"""A full-size bundle of random weights in minutes: the real conversion of a checkpoint that exists only in memory.

Every tensor repeats one pool of random numbers, scaled as `models/synthetic.py` scales them: nothing is drawn twice and
no checkpoint is read from a disk. The files are those of a conversion, byte for byte as large, and every weight is
quantised; the values mean nothing. Good for speed and memory, for nothing else.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint import Checkpoint
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.convert.tensor_store import Shape
from miso_gguf.models.arrays import F32Array
from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.levels import Level
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.mimi import MIMI
from miso_gguf.models.spec import ModelSpec
from miso_gguf.models.synthetic import distribution
from miso_gguf.models.synthetic_mimi import random_mimi
from miso_gguf.models.synthetic_tokenizer import synthetic_tokenizer
from miso_gguf.models.tensors import checkpoint_shapes

_POOL_ITEMS = 16_777_259
"""A prime: rows of any length start somewhere else in the pool each time."""


class RepeatedStore:
    """A checkpoint's tensors, cut from one pool of normal numbers. A `TensorStore`."""

    def __init__(self, spec: ModelSpec, label: Path, seed: int = 0) -> None:
        """`label` is a file that stands for the checkpoint: a conversion hashes it."""
        self.files: Sequence[Path] = [label]
        self.shapes: Mapping[str, Shape] = checkpoint_shapes(spec)
        self._offsets: dict[str, int] = {}
        end = 0
        for name in sorted(self.shapes):
            self._offsets[name] = end
            end += math.prod(self.shapes[name])
        pool = np.random.default_rng(seed).standard_normal(_POOL_ITEMS, np.float32)
        self._pool = np.concatenate([pool, pool])

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """As if they lay one after another in a file."""
        return 0, self._offsets[name] + row * math.prod(self.shapes[name][1:])

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)`."""
        shape = self.shapes[name]
        rows = np.empty((stop - start, *shape[1:]), np.float32)
        flat, done = rows.reshape(-1), 0
        first = self.position(name, start)[1] % _POOL_ITEMS
        while done < flat.size:
            count = min(flat.size - done, _POOL_ITEMS)
            flat[done : done + count] = self._pool[first : first + count]
            done += count
        mean, deviation = distribution(name, shape)
        rows *= np.float32(deviation)
        rows += np.float32(mean)
        return rows

    def close(self) -> None:
        """Nothing is open."""


def write_repeated_bundle(directory: Path, flavor: str, levels: Sequence[Level], threads: int) -> Manifest:
    """Convert a repeated checkpoint of `flavor` to `levels`; what is there already stays."""
    spec = FLAVORS[flavor]
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary)
        label, mimi, tokenizer = inputs / "repeated.txt", inputs / "mimi.safetensors", inputs / "tokenizer.json"
        label.write_text(f"random numbers, repeated, in the shapes of {spec.name}\n")
        save_file(random_mimi(MIMI, 0), mimi)
        tokenizer.write_text(json.dumps(synthetic_tokenizer(spec)), "utf-8")
        checkpoint = Checkpoint(RepeatedStore(spec, label), spec, None)
        return convert(plan_conversion(directory, checkpoint, mimi, tokenizer, Request(levels=levels, threads=threads)))
