"""A checkpoint of any supported layout, opened, recognised and checked, in upstream names.

Layouts: torchtune names (Miso, Sesame) and Hugging Face's `CsmForConditionalGeneration`. Where the files come from,
and what they are, is `open_store`'s business.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from ...models.flavors import recognise
from ...models.spec import ModelSpec
from ...models.tensors import checkpoint_shapes
from .hf_layout import (
    CODEC_PREFIX,
    HfSource,
    has_two_audio_tables,
    hf_ignored,
    hf_other_name,
    hf_sources,
    is_hf_layout,
    spec_from_config,
    unpermute_rows,
)
from .pickle import PickleFile
from .safetensors import SafetensorsFile
from .sharded import INDEX_NAME, ShardedFiles
from .source_path import SourcePath
from .tensor_store import Shape, TensorStore

_MAX_LAYERS = 1000
"""A config is data from strangers: the tensor table is written out layer by layer."""


class Checkpoint:
    """Every tensor of the upstream table, by its upstream name. A context manager: closes its files."""

    def __init__(self, store: TensorStore, spec: ModelSpec, sources: Mapping[str, HfSource] | None) -> None:
        self.store = store
        self.spec = spec
        self.shapes: dict[str, Shape] = checkpoint_shapes(spec)
        self.is_hf = sources is not None
        self._sources = sources or {name: HfSource(name, None) for name in self.shapes}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    @property
    def codec_shapes(self) -> dict[str, Shape]:
        """Codec tensors that lie in the same files (Hugging Face layout), by their name there."""
        return {name: shape for name, shape in self.store.shapes.items() if name.startswith(CODEC_PREFIX)}

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """Where a row lies: (file, byte offset)."""
        return self.store.position(self._sources[name].name, row)

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` of an upstream tensor, float32.

        Where the layout permutes the rows of each head, `start` and `stop` must be whole heads.
        """
        source = self._sources[name]
        rows = self.store.read(source.name, start, stop)
        return rows if source.head_dim is None else unpermute_rows(rows, source.head_dim)

    def row_step(self, name: str) -> int:
        """Rows that must be read together: the head dimension where rows are permuted, else 1."""
        return self._sources[name].head_dim or 1

    def check_dtypes(self) -> None:
        """Raises `CheckpointError` if a tensor is of a type that cannot be read."""
        for source in self._sources.values():
            self.store.check_dtype(source.name)

    def fingerprint(self) -> str:
        """sha256 over every tensor's name, shape, first and last row: identifies the weights in a second.

        The whole file's sha256 takes half a minute for 33 GB; it is computed during a conversion, and stands in the
        manifest.
        """
        digest = hashlib.sha256()
        for name, shape in sorted(self.shapes.items()):
            step = self.row_step(name)
            digest.update(f"{name} {list(shape)}\n".encode())
            # One row also where whole heads must be read: the layout is to make no difference.
            digest.update(self.read(name, 0, step)[:1].tobytes())
            digest.update(self.read(name, shape[0] - step, shape[0])[-1:].tobytes())
        return digest.hexdigest()


def open_checkpoint(path: SourcePath, config: Path | None = None) -> Checkpoint:
    """Open the checkpoint at `path`: a `.safetensors` or `.pt` file, or a directory that holds one.

    `config` is a Hugging Face `config.json`, or a model spec as in the manifest, for dimensions that cannot be
    recognised. Raises `CheckpointError`, listing all missing, unknown and mis-shaped tensors at once.
    """
    store = open_store(path)
    try:
        directory = path if path.is_dir() else path.parent
        spec, sources = _recognise(store, config, directory, path)
        checkpoint = Checkpoint(store, spec, sources)
        _check_shapes(checkpoint, path)
    except BaseException:
        store.close()
        raise
    return checkpoint


def open_store(path: SourcePath) -> TensorStore:
    """The tensors of a file, or of the one checkpoint in a directory. Raises `CheckpointError`."""
    if isinstance(path, Path) and path.is_dir():
        path = _checkpoint_in(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return ShardedFiles(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return PickleFile(path)
    return SafetensorsFile(path)


def _checkpoint_in(directory: Path) -> Path:
    for name in (INDEX_NAME, "model.safetensors", "ckpt.pt"):
        if (directory / name).exists():
            return directory / name
    try:
        files = sorted(directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed ({error.strerror or error})") from error
    found = [file for file in files if file.name.endswith(".safetensors.index.json")]
    found = found or [file for file in files if file.suffix in (".safetensors", ".pt", ".pth")]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(
            f"{directory}: expected one checkpoint (model.safetensors, {INDEX_NAME} or a .pt file), found {names}. "
            "Pass the file itself."
        )
    return found[0]


def _recognise(
    store: TensorStore, config: Path | None, directory: SourcePath, path: SourcePath
) -> tuple[ModelSpec, Mapping[str, HfSource] | None]:
    if is_hf_layout(store.shapes):
        spec = _spec_from_file(config or directory / "config.json")
        if has_two_audio_tables(store.shapes):
            spec = replace(spec, tied_audio_embeddings=False)
        return spec, hf_sources(spec, store.shapes)
    if config is not None:
        return _spec_from_file(config), None
    try:
        return recognise(store.shapes), None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _spec_from_file(path: SourcePath) -> ModelSpec:
    spec = _parse_spec(path)
    layers = spec.backbone.layers + spec.decoder.layers
    if layers > _MAX_LAYERS:
        raise CheckpointError(f"{path}: says {layers} layers, more than {_MAX_LAYERS}: no plausible model")
    return spec


def _parse_spec(path: SourcePath) -> ModelSpec:
    try:
        data: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file: a checkpoint in Hugging Face layout needs its config.json beside it, "
            "or --config FILE"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    if "backbone" in data:
        try:
            return ModelSpec.from_dict(data)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    try:
        return spec_from_config(data)
    except (CheckpointError, OverflowError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_shapes(checkpoint: Checkpoint, path: SourcePath) -> None:
    """Compare what the files hold with the table; report every difference in one error."""
    found, expected = checkpoint.store.shapes, {}
    for name, shape in checkpoint.shapes.items():
        expected[checkpoint._sources[name].name] = shape
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and not (checkpoint.is_hf and hf_ignored(name))]
    wrong = [name for name in expected if name in found and tuple(found[name]) != expected[name]]
    # transformers, which reads shards without their index, would take these as well.
    left_out = checkpoint.store.left_out if isinstance(checkpoint.store, ShardedFiles) else ()
    beside = [name for name in left_out if name in expected or hf_other_name(name, expected)]
    problems = [
        *(f"  left out by the index  {name}: it is in a shard, remove it there or name it" for name in beside),
        *(f"  missing   {name} {list(expected[name])}" for name in missing),
        *(f"  unknown   {name} {list(found[name])}{_reason(name, found)}" for name in unknown),
        *(f"  mis-shaped {name}: expected {list(expected[name])}, found {list(found[name])}" for name in wrong),
    ]
    if problems:
        raise CheckpointError(
            f"{path}: not a whole {checkpoint.spec.name} checkpoint "
            f"({len(missing)} missing, {len(unknown)} unknown, {len(wrong)} mis-shaped tensors):\n"
            + "\n".join(problems)
        )


def _reason(name: str, found: Collection[str]) -> str:
    other = hf_other_name(name, found)
    return "" if other is None else f": there as {other} too, remove the one that is not meant"
