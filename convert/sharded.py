"""A checkpoint cut into several safetensors files, joined by Hugging Face's `*.safetensors.index.json`."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..models.errors import CheckpointError
from .safetensors_file import SafetensorsFile
from .tensor_store import F32Array, Shape


class ShardedFiles:
    """The shards of one index, as one store. Raises `CheckpointError` if the index or a shard is not usable."""

    def __init__(self, index: Path) -> None:
        owner = _read_index(index)
        self._shards: dict[str, SafetensorsFile] = {}
        with ExitStack() as stack:
            for shard in sorted(set(owner.values())):
                self._shards[shard] = SafetensorsFile(index.parent / shard)
                stack.callback(self._shards[shard].close)
            for name, shard in owner.items():
                if name not in self._shards[shard].shapes:
                    raise CheckpointError(f"{index}: names tensor {name} in {shard}, which does not hold it")
            self._stack = stack.pop_all()
        self._owner = owner
        self._index = {shard: i for i, shard in enumerate(self._shards)}
        self._shapes = {name: self._shards[shard].shapes[name] for name, shard in owner.items()}

    @property
    def files(self) -> Sequence[Path]:
        """The shards, sorted by name."""
        return [file for shard in self._shards.values() for file in shard.files]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor that the index names."""
        return self._shapes

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(shard, byte offset of the row)."""
        shard = self._owner[name]
        return self._index[shard], self._shards[shard].position(name, row)[1]

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` from the shard that holds the tensor."""
        return self._shards[self._owner[name]].read(name, start, stop)

    def close(self) -> None:
        """Close all shards."""
        self._stack.close()


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        owner = {str(name): str(shard) for name, shard in weight_map.items()}
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a safetensors index (no readable weight_map: {error})") from error
    for shard in set(owner.values()):
        # An index is data from strangers: a shard may only be a plain file beside it.
        if PurePosixPath(shard).name != shard or PureWindowsPath(shard).name != shard:
            raise CheckpointError(f"{index}: shard {shard!r} is not a plain file name: refusing to leave the directory")
    return owner
