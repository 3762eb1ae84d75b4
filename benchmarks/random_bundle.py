"""A full-size bundle of random weights, a level at a time in a minute: its rows are drawn from one pool.

It goes through the real conversion, so size, layout and metadata of the files are those of a conversion. Each row of a
matrix is one of some thousand that are quantised only once, so even the slowest types take seconds; but matrices have
full rank and no two layers are alike, so errors go through the layers as they do in random weights without a pool
(`gpu/bundle.py` repeats whole chunks, faster still: good for speed and memory alone).
"""

import json
import math
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from gguf import GGMLQuantizationType
from safetensors.numpy import save_file

from miso_gguf.convert import quantize as quantize_module
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import Checkpoint
from miso_gguf.convert.checkpoint.tensor_store import Shape
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.core.arrays import F32Array, U8Array
from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.levels import Level
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.mimi import MIMI_NAME
from miso_gguf.models.spec import ModelSpec
from miso_gguf.models.synthetic import TOKENIZER_NAME, distribution, mimi_of
from miso_gguf.models.synthetic_mimi import random_mimi
from miso_gguf.models.synthetic_tokenizer import synthetic_tokenizer
from miso_gguf.models.tensors import checkpoint_shapes
from miso_gguf.native.ggml import quantize

_POOL_WEIGHTS = 8 << 20
"""2048 rows of the backbone's 4096 columns, 585 of its 14336."""
_CHEAP = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}


class PooledStore:
    """A checkpoint's tensors, each row drawn from a pool of rows of that width. A `TensorStore`."""

    def __init__(self, spec: ModelSpec, label: Path) -> None:
        """`label` is a file that stands for the checkpoint: a conversion hashes it."""
        self.files: Sequence[Path] = [label]
        self.shapes: Mapping[str, Shape] = checkpoint_shapes(spec)
        self.left_out: Sequence[str] = ()
        self._order = {name: index for index, name in enumerate(sorted(self.shapes))}
        self._pool = np.random.default_rng(0).standard_normal(_POOL_WEIGHTS, np.float32)

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """As if each tensor lay somewhere behind the one before."""
        return 0, (self._order[name] << 40) + row

    def check_dtype(self, name: str) -> None:
        """All are float32."""

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)`. The heads, which a conversion transposes, have columns from the pool."""
        shape = (stop - start, *self.shapes[name][1:])
        mean, deviation = distribution(name, self.shapes[name])
        rng = np.random.default_rng([zlib.crc32(name.encode()), start])
        if name == "audio_head":
            heads, inputs, codes = shape
            rows = self._rows(rng, heads * codes, inputs).reshape(heads, codes, inputs).transpose(0, 2, 1)
        else:
            rows = self._rows(rng, math.prod(shape[:-1]), shape[-1]).reshape(shape)
        values: F32Array = np.ascontiguousarray(rows)
        values *= np.float32(deviation)
        values += np.float32(mean)
        return values

    def _rows(self, rng: np.random.Generator, count: int, columns: int) -> F32Array:
        pool = self._pool[: len(self._pool) // columns * columns].reshape(-1, columns)
        return pool[rng.integers(len(pool), size=count)]

    def close(self) -> None:
        """Nothing is open."""


class _RowsOnce:
    """`quantize` that remembers rows by how they begin. Tensors of a width must have the same importances."""

    def __init__(self) -> None:
        self._known: dict[tuple[GGMLQuantizationType, int], dict[int, U8Array]] = {}

    def __call__(self, qtype: GGMLQuantizationType, rows: F32Array, imatrix: F32Array | None = None) -> U8Array:
        if qtype in _CHEAP:
            return quantize(qtype, rows, imatrix)
        known = self._known.setdefault((qtype, rows.shape[1]), {})
        begins = np.ascontiguousarray(rows[:, :2]).view(np.uint64)[:, 0].tolist()
        fresh = {begin: index for index, begin in enumerate(begins) if begin not in known}
        if fresh:
            known |= zip(fresh, quantize(qtype, rows[list(fresh.values())], imatrix), strict=True)
        return np.stack([known[begin] for begin in begins])


def write_random_bundle(
    directory: Path,
    flavor: str,
    levels: Sequence[Level],
    threads: int,
    imatrix_backbone: Path | None = None,
    imatrix_decoder: Path | None = None,
) -> Manifest:
    """Convert random weights of `flavor` to `levels`; what is there already stays."""
    spec = FLAVORS[flavor]
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(quantize_module, "quantize", _RowsOnce()):
        inputs = Path(temporary)
        label, mimi, tokenizer = inputs / "pooled.txt", inputs / MIMI_NAME, inputs / TOKENIZER_NAME
        label.write_text(f"random rows of a pool, in the shapes of {spec.name}\n")
        save_file(random_mimi(mimi_of(flavor), 0), mimi)
        tokenizer.write_text(json.dumps(synthetic_tokenizer(spec)), "utf-8")
        # What is random needs none of the checks that take most of the time.
        request = Request(
            levels,
            imatrix_backbone=imatrix_backbone,
            imatrix_decoder=imatrix_decoder,
            threads=threads,
            allow_nonfinite=True,
            allow_zero=True,
        )
        checkpoint = Checkpoint(PooledStore(spec, label), spec)
        return convert(plan_conversion(directory, checkpoint, mimi, tokenizer, request))
