"""A checkpoint in one file or several: each opened by what its first bytes say it is, whatever it is called.

Several are joined by Hugging Face's `*.index.json`, or by their numbers where there is no index.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import PureWindowsPath

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from ...hub.path import HubPath
from .foreign import CHECKPOINT, INDEX, refuse_file
from .pickle import PickleFile, is_pickle
from .safetensors import SafetensorsFile, is_safetensors
from .tensor_store import SMALL_BYTES, Shape, SourcePath, TensorFile, check_regular

INDEX_NAME = "model.safetensors.index.json"
"""What Hugging Face calls the index of a model."""

_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_HEAD_BYTES = 16
_LISTED = 5
_MAX_NAME_BYTES = 255


def open_file(path: SourcePath, head: bytes | None = None, wanted: str = CHECKPOINT) -> TensorFile:
    """One file of either format, which begins with `head`. Its name decides only what is said if it is of none."""
    head = head_of(path) if head is None else head
    try:
        if is_safetensors(head) or not (is_pickle(head) or path.suffix in _PICKLE_SUFFIXES):
            return SafetensorsFile(path)
        return PickleFile(path)
    except CheckpointError:
        refuse_file(path, wanted)
        raise


def head_of(path: SourcePath) -> bytes:
    """The first bytes of a file; none if it cannot be read, which is for whoever opens it to say."""
    try:
        if isinstance(path, HubPath):
            return path.read_range(0, min(_HEAD_BYTES, path.stat().st_size))
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


class ShardedFiles:
    """The files of an index, or these `shards` without one, as one store.

    Raises `CheckpointError` if the index or a file is not usable.
    """

    def __init__(self, index: SourcePath, shards: Sequence[str] | None = None, wanted: str = CHECKPOINT) -> None:
        owner = read_index(index, wanted) if shards is None else {}
        names = sorted(set(owner.values())) if shards is None else shards
        missing = [shard for shard in names if not (index.parent / shard).exists()]
        if missing:
            listed = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
            raise CheckpointError(
                f"{index}: {len(missing)} of its {len(names)} shards are missing beside it: {listed}. "
                "Download them too."
            )
        self._shards: dict[str, TensorFile] = {}
        with ExitStack() as stack:
            for shard in names:
                self._shards[shard] = open_file(index.parent / shard, wanted=wanted)
                stack.callback(self._shards[shard].close)
            if shards is not None:
                owner = self._owners(index)
            for name, shard in owner.items():
                if name not in self._shards[shard].shapes:
                    raise CheckpointError(f"{index}: names tensor {name!r} in {shard}, which does not hold it")
            self._stack = stack.pop_all()
        self._owner = owner
        self._index = {shard: i for i, shard in enumerate(self._shards)}
        self._shapes = {name: self._shards[shard].shapes[name] for name, shard in owner.items()}
        self._left_out = [name for shard in names for name in self._shards[shard].shapes if owner.get(name) != shard]

    def _owners(self, path: SourcePath) -> dict[str, str]:
        owner: dict[str, str] = {}
        for shard, file in self._shards.items():
            for name in file.shapes:
                if owner.setdefault(name, shard) != shard:
                    raise CheckpointError(f"{path.parent / shard}: tensor {name} is in {owner[name]} too")
        return owner

    @property
    def files(self) -> Sequence[SourcePath]:
        """The shards, sorted by name."""
        return [file for shard in self._shards.values() for file in shard.files]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor that the index names."""
        return self._shapes

    @property
    def left_out(self) -> Collection[str]:
        """What the shards hold beside what the index says that they hold."""
        return self._left_out

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(shard, byte offset of the row)."""
        shard = self._owner[name]
        return self._index[shard], self._shards[shard].position(name, row)[1]

    def check_dtype(self, name: str) -> None:
        """Raises `CheckpointError` on an unsupported dtype."""
        self._shards[self._owner[name]].check_dtype(name)

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` from the shard that holds the tensor."""
        return self._shards[self._owner[name]].read(name, start, stop)

    def close(self) -> None:
        """Close all shards."""
        self._stack.close()


def read_index(index: SourcePath, wanted: str = CHECKPOINT) -> dict[str, str]:
    """Tensor name -> the file beside `index` that holds it. Raises `CheckpointError` if it names anything else."""
    try:
        return _read_index(index)
    except CheckpointError:
        refuse_file(index, INDEX if index.name.endswith(".index.json") else wanted)
        raise


def _read_index(index: SourcePath) -> dict[str, str]:
    try:
        check_regular(index, SMALL_BYTES)
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a safetensors index (no readable weight_map: {error})") from error
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(s, str) for s in weight_map.values()):
        raise CheckpointError(f"{index}: not a safetensors index (its weight_map must map tensors to files)")
    for shard in set(weight_map.values()):
        if not _is_plain_file_name(shard):
            raise CheckpointError(f"{index}: shard {shard!r} is not a plain file name: refusing to leave the directory")
    return weight_map


def _is_plain_file_name(name: str) -> bool:
    """An index is data from strangers: a shard may only be a plain file beside it, on any system."""
    # Windows' separators and drives include those of POSIX.
    return (
        PureWindowsPath(name).name == name
        and name not in ("", "..")
        and name.isprintable()
        and len(name.encode()) <= _MAX_NAME_BYTES
    )
