"""Small checkpoints, bundles and GGUF files for tests."""

import ctypes
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from numpy.typing import NDArray

from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.sources import resolve
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32, FP16, LEVELS, Q4_0, Q4_K_M, Q5_K_M, Q6_K, Q8_0, Level, parse_level
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.mimi import MIMI_NAME, TINY_MIMI
from miso_gguf.models.spec import ModelSpec, TransformerSpec
from miso_gguf.models.synthetic import CHECKPOINT_NAME, TOKENIZER_NAME, write_synthetic
from miso_gguf.models.tensors import gguf_tensors
from miso_gguf.native.llama import load_library

MICRO = replace(
    TINY,
    name="Micro",
    backbone=TransformerSpec(layers=2, embed_dim=64, heads=2, kv_heads=1, head_dim=32, ffn_dim=96),
    decoder=TransformerSpec(layers=1, embed_dim=32, heads=1, kv_heads=1, head_dim=32, ffn_dim=64),
    audio_vocab=515,
)
"""A model for tests of the writer: converts in milliseconds."""


BLOCKS = replace(
    TINY,
    name="Blocks",
    backbone=TransformerSpec(layers=3, embed_dim=256, heads=4, kv_heads=1, head_dim=64, ffn_dim=256),
    decoder=TransformerSpec(layers=2, embed_dim=256, heads=4, kv_heads=1, head_dim=64, ffn_dim=256),
    codebooks=3,
    audio_vocab=515,
)
"""A model for tests of all levels: small, and its columns are whole blocks of every type."""
COMMON = (F32, FP16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0)
"""Levels for tests that need some."""


@dataclass(frozen=True)
class Inputs:
    """What a conversion reads."""

    checkpoint: Path
    mimi: Path
    tokenizer: Path
    config: Path


def make_inputs(directory: Path, spec: ModelSpec = TINY) -> Inputs:
    write_synthetic(directory, spec, TINY_MIMI)
    inputs = _inputs_in(directory)
    inputs.config.write_text(json.dumps(asdict(spec)))
    return inputs


def _inputs_in(directory: Path) -> Inputs:
    names = (CHECKPOINT_NAME, MIMI_NAME, TOKENIZER_NAME, "spec.json")
    return Inputs(*(directory / name for name in names))


def make_bundle(inputs: Inputs, out: Path, levels: Sequence[Level], **request: object) -> Manifest:
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        wanted = Request(levels, **request)  # type: ignore[arg-type]
        return convert(plan_conversion(out, checkpoint, inputs.mimi, inputs.tokenizer, wanted))


def make_every_level(inputs: Inputs, out: Path, spec: ModelSpec) -> None:
    """With a random importance matrix those that cannot do without, and only those."""
    make_bundle(inputs, out, [level for level in LEVELS.values() if not level.needs_imatrix], threads=1)
    matrices = write_random_imatrices(out.parent / f"{out.name}-imatrix", spec)
    make_bundle(inputs, out, [level for level in LEVELS.values() if level.needs_imatrix], threads=1, **matrices)


def make_tiny_bundle(out: Path, levels: Sequence[str]) -> Manifest:
    """The model in the repository that speaks."""
    with resolve("tiny") as sources, open_checkpoint(sources.checkpoint) as checkpoint:
        assert sources.mimi is not None
        wanted = Request([parse_level(level) for level in levels], threads=1)
        return convert(plan_conversion(out, checkpoint, sources.mimi, sources.tokenizer, wanted))


@dataclass(frozen=True)
class Built:
    """Checkpoints and bundles that tests only read: each is built once in a test run, by whoever asks first."""

    directory: Path
    """Of all processes of the run."""

    def inputs(self, spec: ModelSpec = TINY) -> Inputs:
        return _inputs_in(self._once(("inputs", spec), lambda directory: make_inputs(directory, spec)))

    def bundle(self, levels: Sequence[Level], spec: ModelSpec = TINY) -> Path:
        inputs = self.inputs(spec)
        return self._once((spec, *levels), lambda out: make_bundle(inputs, out, levels, threads=1))

    def every_level(self, spec: ModelSpec = BLOCKS) -> Path:
        """A bundle of all levels."""
        inputs = self.inputs(spec)
        return self._once((spec, "every level"), lambda out: make_every_level(inputs, out, spec))

    def tiny(self, *levels: str) -> Path:
        """The model in the repository that speaks."""
        return self._once(("tiny", *levels), lambda out: make_tiny_bundle(out, levels))

    def _once(self, content: object, build: Callable[[Path], object]) -> Path:
        place = self.directory / f"built-{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}"
        with FileLock(f"{place}.lock"):
            if not place.exists():
                partial = place.with_suffix(".partial")
                build(partial)
                partial.rename(place)
        return place


def tensor_bytes(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor of a GGUF, read by gguf-py."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


def llama_quantize(
    source: Path, target: Path, level: Level, imatrix: Mapping[str, NDArray[np.float32]] | None = None
) -> dict[str, tuple[str, bytes]]:
    """`llama_model_quantize` of a GGUF: the oracle. The decoder's `token_embd` is Q8_0, as our layout says."""
    lib = load_library()
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, level.ftype
    if "-decoder-" in source.name and level.mixture.quantises:
        params.token_embedding_type = int(GGMLQuantizationType.Q8_0)
    if imatrix is not None:
        entries = (lib.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(type(entry.data))
        params.imatrix = entries
    status = lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0
    return tensor_bytes(target)


def write_imatrix(
    path: Path,
    sums: Mapping[str, NDArray[np.float32]],
    counts: Mapping[str, float],
    part: str | None = None,
    dataset: str = "noise.txt",
) -> None:
    """An imatrix in llama.cpp's GGUF format; `part` is what ours name beside it."""
    writer = GGUFWriter(path, "none")
    writer.add_type("imatrix")
    if part is not None:
        writer.add_string("miso.part", part)
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.array([[counts[name]]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_random_imatrices(directory: Path, spec: ModelSpec, dataset: str = "noise.txt") -> dict[str, Path]:
    """One for each half, as `Request` takes them: of all matrices but the table that is looked up."""
    directory.mkdir(parents=True, exist_ok=True)
    generator, files = np.random.default_rng(1), {}
    for part in ("backbone", "decoder"):
        matrices = [t for t in gguf_tensors(spec) if t.part == part and len(t.shape) == 2]
        names = {t.name: t.shape[-1] for t in matrices if t.name != "token_embd.weight"}
        sums = {name: generator.gamma(0.5, 40.0, columns).astype(np.float32) for name, columns in names.items()}
        files[f"imatrix_{part}"] = directory / f"{part}.imatrix.gguf"
        write_imatrix(files[f"imatrix_{part}"], sums, dict.fromkeys(sums, 37.0), dataset=dataset)
    return files
