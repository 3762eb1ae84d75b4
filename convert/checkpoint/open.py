"""A checkpoint of any supported layout, opened, recognised and checked, in upstream names.

What layouts there are is `layouts.py`'s business, where the files come from, and what they are, `open_store`'s.
"""

import hashlib
import logging
from collections.abc import Collection, Container
from contextlib import suppress
from pathlib import Path

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from ...core.note import NOTE
from ...models.spec import ModelSpec
from ...models.tensors import checkpoint_shapes
from .directory import checkpoint_name, shards_of
from .foreign import CHECKPOINT, refuse_directory, refuse_file, refuse_tensors
from .layouts import UPSTREAM, Layout, anchors, layout_of, spec_of
from .sharded import ShardedFiles, head_of, open_file
from .tensor_store import SMALL_BYTES, Shape, SourcePath, TensorStore, check_regular
from .wrapping import unwrap

_INDEX = ".index.json"

log = logging.getLogger(__name__)


class Checkpoint:
    """Every tensor of the upstream table, by its upstream name. A context manager: closes its files."""

    def __init__(self, store: TensorStore, spec: ModelSpec, layout: Layout = UPSTREAM) -> None:
        self.store = store
        self.spec = spec
        self.shapes: dict[str, Shape] = checkpoint_shapes(spec)
        self.layout = layout
        self._sources = layout.sources(spec, store.shapes)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    @property
    def codec_shapes(self) -> dict[str, Shape]:
        """Codec tensors that lie in the same files, by their name there."""
        prefix = self.layout.codec_prefix
        return {name: shape for name, shape in self.store.shapes.items() if prefix and name.startswith(prefix)}

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """Where a row lies: (file, byte offset)."""
        return self.store.position(self._sources[name].name, row)

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` of an upstream tensor, float32.

        Where the layout permutes the rows of each head, `start` and `stop` must be whole heads.
        """
        source = self._sources[name]
        rows = self.store.read(source.name, start, stop)
        return rows if source.head_dim is None else self.layout.unpermuted(rows, source.head_dim)

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


def open_checkpoint(
    path: SourcePath, config: Path | None = None, key: str | None = None, *, is_look: bool = False
) -> Checkpoint:
    """Open the checkpoint at `path`: a file that `torch.save` or safetensors wrote, or a directory that holds one.

    `config` is a Hugging Face `config.json`, or a model spec as in the manifest, for dimensions that cannot be
    recognised. `key` says where in the file the weights are, if there are several (`ema`). Raises `CheckpointError`,
    listing all missing, unknown and mis-shaped tensors at once. What will be opened once more is but a look: what there
    is to note of it is said then.
    """
    store = open_store(path)
    try:
        unwrapped = unwrap(store, path, anchors(), key)
        if unwrapped.note and not is_look:
            log.warning("%s", unwrapped.note, extra=NOTE)
        store = unwrapped.store
        directory = path if path.is_dir() else path.parent
        layout = layout_of(store.shapes)
        checkpoint = Checkpoint(store, spec_of(layout, store.shapes, config, directory, path), layout)
        _check_shapes(checkpoint, path)
    except CheckpointError:
        store.close()
        if isinstance(path, Path):
            _refuse_folder(path)
        refuse_tensors(store.shapes, path)
        raise
    except BaseException:
        store.close()
        raise
    return checkpoint


def open_store(path: SourcePath, wanted: str = CHECKPOINT) -> TensorStore:
    """The tensors of a file, or of the one checkpoint in a directory, as it names them.

    `wanted` is what it was passed as. Raises `CheckpointError`.
    """
    if isinstance(path, Path) and path.is_dir():
        try:
            path = _checkpoint_in(path)
        except CheckpointError:
            _refuse_folder(path)
            raise
    if not path.exists():
        refuse_file(path, wanted)
        raise CheckpointError(f"{path}: no such file")
    head = b"" if path.name.endswith(_INDEX) else head_of(path)
    if path.name.endswith(_INDEX) or _is_json(head):
        return ShardedFiles(path, wanted=wanted)
    shards = shards_of(path.name, _Beside(path), path.parent)
    return open_file(path, head, wanted) if len(shards) == 1 else ShardedFiles(path, shards, wanted)


class _Beside(Container[str]):
    """The names of the files where a file is."""

    def __init__(self, path: SourcePath) -> None:
        self._directory = path.parent

    def __contains__(self, name: object) -> bool:
        return (self._directory / str(name)).exists()


def _is_json(head: bytes) -> bool:
    # A safetensors file may begin with the same byte, of a length.
    return bool(head) and head.lstrip()[:1] == b"{" and head.lstrip()[1:].lstrip()[:1] == b'"'


def _checkpoint_in(directory: Path) -> Path:
    try:
        names = [file.name for file in directory.iterdir()]
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed ({error.strerror or error})") from error
    return directory / checkpoint_name(names, directory)


def _refuse_folder(path: Path) -> None:
    """Raises `CheckpointError` if a folder, or that of a file, which cannot be used is known for something else."""
    directory = path if path.is_dir() else path.parent

    def read(name: str) -> bytes | None:
        try:
            check_regular(directory / name, SMALL_BYTES)
            return (directory / name).read_bytes()
        except (OSError, CheckpointError):
            return None

    with suppress(OSError):
        refuse_directory([file.name for file in path.iterdir()] if path.is_dir() else [], read, path)


def _check_shapes(checkpoint: Checkpoint, path: SourcePath) -> None:
    """Compare what the files hold with the table; report every difference in one error."""
    found, layout, expected = checkpoint.store.shapes, checkpoint.layout, {}
    for name, shape in checkpoint.shapes.items():
        expected[checkpoint._sources[name].name] = shape
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and not layout.is_ignored(name)]
    wrong = [name for name in expected if name in found and tuple(found[name]) != expected[name]]
    # transformers, which reads shards without their index, would take these as well.
    left_out = checkpoint.store.left_out
    beside = [name for name in left_out if name in expected or layout.other_name(name, expected)]
    problems = [
        *(f"  left out by the index  {name}: it is in a shard, remove it there or name it" for name in beside),
        *(f"  missing   {name} {list(expected[name])}" for name in missing),
        *(f"  unknown   {name} {list(found[name])}{_reason(layout, name, found)}" for name in unknown),
        *(f"  mis-shaped {name}: expected {list(expected[name])}, found {list(found[name])}" for name in wrong),
    ]
    if problems:
        raise CheckpointError(
            f"{path}: not a whole {checkpoint.spec.name} checkpoint "
            f"({len(missing)} missing, {len(unknown)} unknown, {len(wrong)} mis-shaped tensors):\n"
            + "\n".join(problems)
        )


def _reason(layout: Layout, name: str, found: Collection[str]) -> str:
    other = layout.other_name(name, found)
    return "" if other is None else f": there as {other} too, remove the one that is not meant"
