"""Sharded checkpoints: equal to the same tensors in one file, and never read outside their directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from miso_gguf.convert.checkpoint.safetensors import SafetensorsFile
from miso_gguf.convert.checkpoint.sharded import ShardedFiles, read_index
from miso_gguf.core.errors import CheckpointError

INDEX = "model.safetensors.index.json"
TENSORS: dict[str, NDArray[np.float32]] = {
    "a": np.arange(12, dtype=np.float32).reshape(4, 3),
    "b": np.arange(5, dtype=np.float32) / np.float32(7),
    "c": np.full((2, 2, 2), -1, np.float32),
}


def write_index(directory: Path, weight_map: object) -> Path:
    index = directory / INDEX
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def write_shards(directory: Path, owner: Mapping[str, str]) -> Path:
    for shard in set(owner.values()):
        save_file({name: TENSORS[name] for name in owner if owner[name] == shard}, directory / shard)
    return write_index(directory, owner)


def test_equal_to_one_file(tmp_path: Path) -> None:
    # Shards are in order of their names, whatever the order of the index.
    index = write_shards(tmp_path, {"b": "z.safetensors", "a": "m 1.safetensors", "c": "z.safetensors"})
    save_file(TENSORS, tmp_path / "whole")
    store, whole = ShardedFiles(index), SafetensorsFile(tmp_path / "whole")
    assert store.shapes == whole.shapes
    assert list(store.files) == [tmp_path / "m 1.safetensors", tmp_path / "z.safetensors"]
    for name, array in TENSORS.items():
        for start in range(len(array)):
            np.testing.assert_array_equal(store.read(name, start, len(array)), whole.read(name, start, len(array)))
            file, offset = store.position(name, start)
            raw = store.files[file].read_bytes()
            assert raw[offset : offset + array[start:].nbytes] == array[start:].tobytes()
    assert [store.position(name)[0] for name in "abc"] == [0, 1, 1]
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed file"):
        store.read("a", 0, 1)
    whole.close()


def test_only_the_tensors_of_the_index_are_there(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    store = ShardedFiles(write_index(tmp_path, {"a": "x.safetensors"}))
    assert store.shapes == {"a": (4, 3)}
    store.close()


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "C:\\x.safetensors", "C:x",
        "\\\\host\\share\\x", "sub\\x", "..", ".", "", "./x", "x/", "x/.", "a\0b", "a\nb", "\x1b[2J", "\ud800",
        "é" * 128,
    ],
)  # fmt: skip
def test_shards_outside_the_directory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str) -> None:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    for place in (tmp_path / "x.safetensors", inside / "x.safetensors", inside / "sub" / "x.safetensors"):
        save_file(TENSORS, place)
    index = write_index(inside, {"b": "x.safetensors", "a": shard})
    monkeypatch.setattr(SafetensorsFile, "__init__", lambda *_: pytest.fail("opened a shard"))
    with pytest.raises(CheckpointError, match="is not a plain file name: refusing to leave the directory") as caught:
        ShardedFiles(index)
    assert f"{index}: shard {shard!r}" in str(caught.value)
    str(caught.value).encode()


def test_a_missing_shard(tmp_path: Path) -> None:
    index = write_shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"})
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"index\.json: 1 of its 3 shards are missing beside it: 2\.safetensors\."
    ):
        ShardedFiles(index)
    index = write_index(tmp_path, {str(i): f"{i}.st" for i in range(9)})
    with pytest.raises(
        CheckpointError, match=r"9 of its 9 shards .*: 0\.st, 1\.st, 2\.st, 3\.st, 4\.st, \.\.\.\. Down"
    ):
        ShardedFiles(index)


def test_a_shard_without_its_tensor(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    index = write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors"})
    with pytest.raises(CheckpointError, match=r"names tensor 'b' in 1\.safetensors, which does not hold it"):
        ShardedFiles(index)


def test_a_damaged_shard(tmp_path: Path) -> None:
    index = write_shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    content = (tmp_path / "2.safetensors").read_bytes()
    (tmp_path / "2.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"2\.safetensors: truncated: tensor b ends at byte 20"):
        ShardedFiles(index)
    (tmp_path / "2.safetensors").unlink()
    (tmp_path / "2.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"2\.safetensors: not a regular file"):
        ShardedFiles(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"weight_map": {"a": "x', "no readable weight_map"),
        (b"\xff\xfe", "no readable weight_map"),
        (b"[" * 100_000, "no readable weight_map"),
        (b'{"weight_map": 1' + b"0" * 5000 + b"}", "no readable weight_map"),
        (b"{}", "no readable weight_map: 'weight_map'"),
        (b"[1]", "no readable weight_map"),
        (b"null", "no readable weight_map"),
        (b'{"weight_map": ["a"]}', "weight_map must map tensors to files"),
        (b'{"weight_map": {}}', "weight_map must map tensors to files"),
        (b'{"weight_map": {"a": null}}', "weight_map must map tensors to files"),
        (b'{"weight_map": {"a": ["x"]}}', "weight_map must map tensors to files"),
    ],
)
def test_bad_indexes_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    index = tmp_path / INDEX
    index.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        ShardedFiles(index)
    assert str(caught.value).startswith(f"{index}: not a safetensors index (")
    assert message in str(caught.value)


def test_an_unreadable_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"index: cannot be read \(No such file or directory\)"):
        read_index(tmp_path / "index")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        read_index(tmp_path)


_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["x.safetensors", "../x.safetensors"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "weight_map"]), inner),
    max_leaves=6,
)


@settings(max_examples=examples(150), deadline=None)
@given(_json | st.fixed_dictionaries({"weight_map": _json}), st.binary(max_size=3))
def test_indexes_of_any_json(tmp_path_factory: pytest.TempPathFactory, data: object, tail: bytes) -> None:
    directory = tmp_path_factory.getbasetemp()
    save_file(TENSORS, directory / "x.safetensors")
    (directory / INDEX).write_bytes(json.dumps(data).encode() + tail)
    try:
        store = ShardedFiles(directory / INDEX)
    except CheckpointError:
        return
    assert isinstance(data, dict)
    assert set(store.shapes) == set(data["weight_map"]) <= set(TENSORS)
    assert set(data["weight_map"].values()) == {"x.safetensors"}
    store.close()
