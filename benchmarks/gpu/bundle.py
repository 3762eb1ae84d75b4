"""A full-size bundle of random weights in a minute or two: one chunk of numbers, quantised once, for all of them.

It goes through the real conversion, so size, layout and metadata of the files are those of a conversion. But every
chunk of a tensor (a million weights) holds the same numbers as every other of its shape, and is quantised only the
first time. Good for speed and memory, for nothing else.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import save_file

from miso_gguf.convert import quantize as quantize_module
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import Checkpoint, open_checkpoint
from miso_gguf.convert.checkpoint.sources import TINY_NAME, resolve
from miso_gguf.convert.checkpoint.tensor_store import Shape
from miso_gguf.convert.conversion import Conversion, Request, plan_conversion
from miso_gguf.core.arrays import F32Array, U8Array
from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.levels import Level
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.mimi import MIMI_NAME
from miso_gguf.models.spec import ModelSpec
from miso_gguf.models.synthetic import distribution, mimi_of
from miso_gguf.models.synthetic_mimi import random_mimi
from miso_gguf.models.synthetic_tokenizer import synthetic_tokenizer
from miso_gguf.models.tensors import checkpoint_shapes, gguf_tensors
from miso_gguf.native.ggml import quantize

_POOL_ITEMS = 8 << 20
_THREADS = 4
"""More only wait for the disk: next to nothing is computed."""


class RepeatedStore:
    """A checkpoint's tensors, whose every row range begins at the beginning of one pool. A `TensorStore`."""

    def __init__(self, spec: ModelSpec, label: Path) -> None:
        """`label` is a file that stands for the checkpoint: a conversion hashes it."""
        self.files: Sequence[Path] = [label]
        self.shapes: Mapping[str, Shape] = checkpoint_shapes(spec)
        self.left_out: Sequence[str] = ()
        self._order = {name: index for index, name in enumerate(sorted(self.shapes))}
        self._pool = np.random.default_rng(0).standard_normal(_POOL_ITEMS, np.float32)

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """As if each tensor lay somewhere behind the one before."""
        return 0, (self._order[name] << 40) + row

    def check_dtype(self, name: str) -> None:
        """All are float32."""

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)`."""
        shape = (stop - start, *self.shapes[name][1:])
        mean, deviation = distribution(name, self.shapes[name])
        values: F32Array = np.resize(self._pool, math.prod(shape)).reshape(shape) * np.float32(deviation)
        values += np.float32(mean)
        return values

    def close(self) -> None:
        """Nothing is open."""


class _QuantisedOnce:
    """`quantize` that remembers: chunks that begin alike are alike here."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], U8Array] = {}

    def __call__(self, qtype: GGMLQuantizationType, rows: F32Array, imatrix: F32Array | None = None) -> U8Array:
        key = (qtype, rows.shape, rows[0, :4].tobytes(), rows[-1, :4].tobytes())
        if key not in self._known:
            self._known[key] = quantize(qtype, rows, imatrix)
        return self._known[key]


def write_repeated_bundle(
    directory: Path, flavor: str, levels: Sequence[Level], *, backbone_layers: int | None = None
) -> Manifest:
    """Convert a repeated checkpoint of `flavor` to `levels`; what is there already stays.

    Fewer `backbone_layers` than it has make a small bundle whose depth decoder is the whole one.
    """
    spec = FLAVORS[flavor]
    if backbone_layers is not None:
        spec = replace(spec, backbone=replace(spec.backbone, layers=backbone_layers))
    with (
        repeated_conversion(directory, flavor, spec, levels) as conversion,
        mock.patch.object(quantize_module, "quantize", _QuantisedOnce()),
    ):
        return convert(conversion)


@contextmanager
def repeated_conversion(directory: Path, flavor: str, spec: ModelSpec, levels: Sequence[Level]) -> Iterator[Conversion]:
    """The conversion of a repeated checkpoint, planned."""
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary)
        label, mimi, tokenizer = inputs / "repeated.txt", inputs / MIMI_NAME, inputs / "tokenizer.json"
        label.write_text(f"random numbers, repeated, in the shapes of {spec.name}\n")
        save_file(random_mimi(mimi_of(flavor), 0), mimi)
        tokenizer.write_text(json.dumps(synthetic_tokenizer(spec)), "utf-8")
        checkpoint = Checkpoint(RepeatedStore(spec, label), spec)
        request = Request(levels=levels, threads=_THREADS, **_even_imatrices(inputs, spec, levels))
        yield plan_conversion(directory, checkpoint, mimi, tokenizer, request)


def write_tiny_bundle(directory: Path, levels: Sequence[Level]) -> Manifest:
    """Convert the tiny model that speaks; what is there already stays."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        resolve(TINY_NAME) as sources,
        open_checkpoint(sources.checkpoint) as checkpoint,
    ):
        weighted = _even_imatrices(Path(temporary), checkpoint.spec, levels)
        request = Request(levels=levels, threads=_THREADS, **weighted)
        return convert(plan_conversion(directory, checkpoint, sources.mimi, sources.tokenizer, request))


def _even_imatrices(directory: Path, spec: ModelSpec, levels: Sequence[Level]) -> dict[str, Any]:
    """Options with importance matrices in which all columns count the same, if one of `levels` cannot do without."""
    if not any(level.needs_imatrix for level in levels):
        return {}
    files = {}
    for part in ("backbone", "decoder"):
        files[f"imatrix_{part}"] = path = directory / f"{part}.gguf"
        writer = GGUFWriter(path, "none")
        writer.add_type("imatrix")
        for tensor in gguf_tensors(spec):
            if tensor.part == part and len(tensor.shape) == 2:
                writer.add_tensor(f"{tensor.name}.in_sum2", np.ones((1, tensor.shape[1]), np.float32))
                writer.add_tensor(f"{tensor.name}.counts", np.ones((1, 1), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files
