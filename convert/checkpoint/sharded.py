"""A checkpoint cut into several safetensors files, joined by Hugging Face's `*.safetensors.index.json`."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import PureWindowsPath

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from .foreign import CHECKPOINT, INDEX, refuse_file
from .safetensors import SafetensorsFile
from .source_path import SourcePath
from .tensor_store import Shape

INDEX_NAME = "model.safetensors.index.json"
"""What Hugging Face calls the index of a model."""

_LISTED = 5
_MAX_NAME_BYTES = 255


class ShardedFiles:
    """The shards of one index, as one store. Raises `CheckpointError` if the index or a shard is not usable."""

    def __init__(self, index: SourcePath) -> None:
        owner = read_index(index)
        self._shards: dict[str, SafetensorsFile] = {}
        shards = sorted(set(owner.values()))
        missing = [shard for shard in shards if not (index.parent / shard).exists()]
        if missing:
            listed = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
            raise CheckpointError(
                f"{index}: {len(missing)} of its {len(shards)} shards are missing beside it: {listed}. "
                "Download them too."
            )
        with ExitStack() as stack:
            for shard in shards:
                self._shards[shard] = SafetensorsFile(index.parent / shard)
                stack.callback(self._shards[shard].close)
            for name, shard in owner.items():
                if name not in self._shards[shard].shapes:
                    raise CheckpointError(f"{index}: names tensor {name!r} in {shard}, which does not hold it")
            self._stack = stack.pop_all()
        self._owner = owner
        self._index = {shard: i for i, shard in enumerate(self._shards)}
        self._shapes = {name: self._shards[shard].shapes[name] for name, shard in owner.items()}
        self._left_out = [name for shard in shards for name in self._shards[shard].shapes if owner.get(name) != shard]

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


def read_index(index: SourcePath) -> dict[str, str]:
    """Tensor name -> the file beside `index` that holds it. Raises `CheckpointError` if it names anything else."""
    try:
        return _read_index(index)
    except CheckpointError:
        refuse_file(index, INDEX if index.name.endswith(".index.json") else CHECKPOINT)
        raise


def _read_index(index: SourcePath) -> dict[str, str]:
    try:
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
