"""Safetensors files against the `safetensors` library, and against everything that can be wrong with one."""

import errno
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from miso_gguf.convert.checkpoint.safetensors import SafetensorsFile
from miso_gguf.core.errors import CheckpointError

Array = NDArray[Any]

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def file_bytes(header: object, data: bytes = bytes(16)) -> bytes:
    """A file with this header, given as data, text or bytes."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for tests that write many, one after another."""
    return tmp_path_factory.mktemp("safetensors") / "x.safetensors"


def read_all(path: Path) -> dict[str, Array]:
    store = SafetensorsFile(path)
    try:
        return {name: store.read(name, 0, (shape or (1,))[0]) for name, shape in store.shapes.items()}
    finally:
        store.close()


def bits(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


_shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
_dtypes: st.SearchStrategy[np.dtype[Any]] = st.sampled_from([np.dtype("<f4"), np.dtype("<f2")])
_arrays = _dtypes.flatmap(lambda dtype: hnp.arrays(dtype, _shapes, elements=hnp.from_dtype(dtype, allow_nan=False)))
_names = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, categories=["L", "N", "P"]), max_size=8)


@settings(max_examples=examples(60), deadline=None)
@given(st.dictionaries(_names.filter(lambda name: name != "__metadata__"), _arrays, min_size=1, max_size=5), st.data())
def test_row_ranges_equal_what_the_library_wrote(scratch: Path, arrays: dict[str, Array], data: st.DataObject) -> None:
    safetensors.numpy.save_file(arrays, scratch, {"format": "pt"})
    store = SafetensorsFile(scratch)
    assert store.shapes == {name: array.shape for name, array in arrays.items()}
    assert store.files == (scratch,)
    raw = scratch.read_bytes()
    for name, array in arrays.items():
        rows = array if array.ndim else array.reshape(1)
        start = data.draw(st.integers(0, len(rows)))
        stop = data.draw(st.integers(start, len(rows)))
        found = store.read(name, start, stop)
        assert found.dtype == np.float32
        assert found.shape == rows[start:stop].shape
        np.testing.assert_array_equal(bits(found), bits(rows[start:stop].astype(np.float32)))
        index, offset = store.position(name, start)
        wanted = rows[start:].tobytes()
        assert (index, raw[offset : offset + len(wanted)]) == (0, wanted)
    store.close()


def test_every_bfloat16_and_float16_becomes_its_float32(scratch: Path) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.int16).reshape(256, 256)
    tensors = {
        "bf16": torch.from_numpy(patterns).view(torch.bfloat16),
        "f16": torch.from_numpy(patterns.copy()).view(torch.float16),
    }
    safetensors.torch.save_file(tensors, scratch)
    found = read_all(scratch)
    # Exact, NaN payloads included: bfloat16 is the upper half of float32.
    np.testing.assert_array_equal(bits(found["bf16"]), patterns.view(np.uint16).astype(np.uint32) << 16)
    np.testing.assert_array_equal(found["f16"], tensors["f16"].float().numpy())


def test_a_scalar_is_one_row_and_an_empty_tensor_none(scratch: Path) -> None:
    tensors = {
        "scalar": np.array(2.5, np.float16),
        "empty": np.empty((0, 4), np.float32),
        "last": np.ones((1, 2), np.float32),
    }
    safetensors.numpy.save_file(tensors, scratch)
    found = read_all(scratch)
    assert found["scalar"].tolist() == [2.5]
    assert found["empty"].shape == (0, 4)
    assert found["last"].tolist() == [[1, 1]]


def test_reads_are_safe_from_several_threads(scratch: Path) -> None:
    rows = np.arange(1000 * 64, dtype=np.float32).reshape(1000, 64)
    safetensors.numpy.save_file({"x": rows}, scratch)
    store = SafetensorsFile(scratch)

    def wrong(start: int) -> bool:
        return not np.array_equal(store.read("x", start, start + 3), rows[start : start + 3])

    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(wrong, np.random.default_rng(0).integers(0, 997, 2000).tolist()))
    store.close()


def test_rows_are_new_arrays(scratch: Path) -> None:
    safetensors.numpy.save_file({"x": np.ones((2, 2), np.float32)}, scratch)
    store = SafetensorsFile(scratch)
    store.read("x", 0, 2)[:] = 7
    assert store.read("x", 0, 2).tolist() == [[1, 1], [1, 1]]
    store.close()
    store.close()


_TWO = {"a": ENTRY, "b": {**ENTRY, "data_offsets": [16, 32]}}
_DEEP = "[" * 100_000


def _with(**changes: object) -> bytes:
    return file_bytes({"a": {**ENTRY, **changes}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x02", "not a safetensors file"),
        (b"PK\x03\x04 a zip file, by mistake", "not a safetensors file"),
        (b"GGUF\x03\x00\x00\x00" + bytes(99), "not a safetensors file"),
        (bytes(64), "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (struct.pack("<Q", 9_999_999) + b"{}", "header of 9999999 bytes is longer than the file (10 bytes)"),
        (file_bytes("x" * 20), "its header is no JSON"),
        (file_bytes(b"\xff\xfe{}"), "its header is no JSON"),
        (file_bytes(_DEEP), "its header is no JSON"),
        (file_bytes('{"a": ' + "1" * 5000 + "}"), "Exceeds the limit"),
        (file_bytes([ENTRY]), "its header is no JSON object"),
        (file_bytes("null"), "its header is no JSON object"),
        (file_bytes('{"a": 1, "a": 2}'), "header names 'a' twice"),
        (file_bytes('{"a": {"dtype": "F32", "dtype": "F16"}}'), "header names 'dtype' twice"),
        (file_bytes({"a": ENTRY}, bytes(15)), "truncated: tensor a ends at byte 16 of the data, the file has 15"),
        (file_bytes({"a": ENTRY}, b""), "truncated: tensor a ends at byte 16"),
        (file_bytes({"a": ENTRY}, bytes(17)), "1 bytes behind the last tensor"),
        (file_bytes({}, bytes(1)), "1 bytes behind the last tensor"),
        (file_bytes(_TWO, bytes(16)), "truncated: tensor b ends at byte 32 of the data, the file has 16"),
        (file_bytes({**_TWO, "b": ENTRY}, bytes(16)), "tensor b starts at byte 0 of the data, expected 16"),
        (
            file_bytes({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 24]}}, bytes(24)),
            "tensor b starts at byte 8 of the data, expected 16",
        ),
        (
            file_bytes({"a": ENTRY, "b": {**ENTRY, "data_offsets": [20, 36]}}, bytes(36)),
            "tensor b starts at byte 20 of the data, expected 16",
        ),
        (_with(data_offsets=[4, 20]), "truncated: tensor a ends at byte 20"),
        (_with(dtype="F16"), "tensor a of F16 [2, 2] needs 8 bytes, its header gives 16"),
        (_with(shape=[2, 3]), "tensor a of F32 [2, 3] needs 24 bytes, its header gives 16"),
        (_with(shape=[]), "tensor a of F32 [] needs 4 bytes, its header gives 16"),
        (_with(data_offsets=[16, 0]), "tensor a of F32 [2, 2] needs 16 bytes, its header gives -16"),
        (_with(dtype="F8_E4M3", data_offsets=[16, 0]), "tensor a starts at byte 16 of the data, expected 0"),
        (_with(shape=[2**60]), "claims shape [1152921504606846976], more than any file holds"),
        (_with(shape=[0, 2**60], data_offsets=[0, 0]), "more than any file holds"),
        (_with(shape=[2**62] * 32), "more than any file holds"),
        (_with(shape=[2**63]), "header entry of tensor 'a' is malformed"),
        (_with(shape=[1] * 33), "header entry of tensor 'a' is malformed"),
        (_with(shape=[-2, -2]), "header entry of tensor 'a' is malformed"),
        (_with(shape=[2.0, 2.0]), "header entry of tensor 'a' is malformed"),
        (_with(shape=[True, 4]), "header entry of tensor 'a' is malformed"),
        (_with(shape="22"), "header entry of tensor 'a' is malformed"),
        (_with(shape={}, data_offsets=[0, 4]), "header entry of tensor 'a' is malformed"),
        (_with(shape=None), "header entry of tensor 'a' is malformed"),
        (_with(data_offsets=[0]), "header entry of tensor 'a' is malformed"),
        (_with(data_offsets=[0, 8, 16]), "header entry of tensor 'a' is malformed"),
        (_with(data_offsets=[0, 10**300]), "header entry of tensor 'a' is malformed"),
        (_with(data_offsets="ab"), "header entry of tensor 'a' is malformed"),
        (_with(dtype=32), "header entry of tensor 'a' is malformed"),
        (_with(dtype="\x1b[31m"), "header entry of tensor 'a' is malformed"),
        (file_bytes({"a": {"dtype": "F32", "shape": [2, 2]}}), "header entry of tensor 'a' is malformed"),
        (file_bytes({"a": None}), "header entry of tensor 'a' is malformed: None"),
        (
            file_bytes('{"a": ' + "[" * 700 + "]" * 700 + "}"),
            "header entry of tensor 'a' is malformed: [[[[[[[...]]]]]]]",
        ),
        (file_bytes({"a\x1b[2J": ENTRY}), r"'a\x1b[2J' is no plausible tensor name"),
        (file_bytes('{"\\ud800": {}}'), r"'\ud800' is no plausible tensor name"),
        (file_bytes({"a" * 501: ENTRY}), "is no plausible tensor name"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


def test_unsupported_dtypes_are_named_when_read(scratch: Path) -> None:
    safetensors.numpy.save_file({"a.weight": np.ones((2, 2), np.float64), "ok": np.ones(1, np.float32)}, scratch)
    store = SafetensorsFile(scratch)
    assert store.shapes["a.weight"] == (2, 2)
    assert store.read("ok", 0, 1).tolist() == [1]
    with pytest.raises(CheckpointError, match=r"tensor a\.weight has dtype F64; supported are F32, F16, BF16\. Save"):
        store.read("a.weight", 0, 1)
    store.close()


def test_unknown_dtypes_are_named_when_read(scratch: Path) -> None:
    scratch.write_bytes(_with(dtype="F4", shape=[32]))
    store = SafetensorsFile(scratch)
    with pytest.raises(CheckpointError, match="tensor a has dtype F4; supported are F32, F16, BF16"):
        store.read("a", 0, 1)
    store.close()


def test_hostile_headers_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    many = ",".join(f'"t{i}": 1' for i in range(100_000))
    hostile = [
        struct.pack("<Q", 100_000_000) + b"{",
        struct.pack("<Q", 9_999_999) + b"{",
        struct.pack("<Q", 1 << 62) + b"{",
        # Quadratic if duplicates were counted one by one.
        file_bytes("{" + many + ', "t7": 1}'),
        # A product of a million digits.
        file_bytes({"a": {**ENTRY, "shape": [10**300] * 20_000}}),
        _with(shape=[2**60]),
    ]
    path = tmp_path / "hostile.safetensors"
    for content in hostile:
        path.write_bytes(content)
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)
        seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30 * len(content) + 100_000
        assert seconds < 5, "far above what it takes, far below what counting pairs would"


def _valid() -> bytes:
    arrays = {
        "text.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
        "norm.scale": np.arange(5, dtype=np.float16),
        "one": np.array(3, np.float32),
    }
    return bytes(safetensors.numpy.save(arrays, {"format": "pt"}))


def _check_against_library(path: Path, content: bytes) -> None:
    """Only a `CheckpointError`, or the values that the library reads."""
    path.write_bytes(content)
    try:
        found = read_all(path)
    except CheckpointError:
        return
    assert sum(array.size for array in found.values()) <= len(content)
    try:
        oracle = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
    except Exception:
        # The library is stricter about the first byte of the header, and knows every dtype.
        return
    assert set(found) == set(oracle)
    for name, array in found.items():
        entry = oracle[name]
        raw = np.frombuffer(entry["data"], {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry["dtype"]])
        wanted = bits(raw.astype(np.float32)) if raw.dtype != np.uint16 else raw.astype(np.uint32) << 16
        assert array.shape == tuple(entry["shape"] or [1])
        np.testing.assert_array_equal(bits(array).reshape(-1), wanted)


_LENGTH = len(_valid())
_positions = st.integers(0, _LENGTH - 1)


@settings(max_examples=examples(300), deadline=None)
@given(st.dictionaries(_positions, st.integers(0, 255), max_size=4), st.integers(0, _LENGTH), st.binary(max_size=9))
def test_damaged_bytes(scratch: Path, edits: dict[int, int], cut: int, tail: bytes) -> None:
    content = bytearray(_valid())
    for position, value in edits.items():
        content[position] = value
    _check_against_library(scratch, bytes(content))
    _check_against_library(scratch, bytes(content[:cut]))
    _check_against_library(scratch, bytes(content) + tail)
    _check_against_library(scratch, bytes(content[:cut]) + tail + bytes(content[cut:]))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 20) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
_number = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16, 2**31, 2**32, 2**60, 2**63, 2**64, 10**30]) | st.integers(-2, 40)
_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "U8", "BOOL", "F4"]) | _json,
        "shape": st.lists(_number, max_size=4) | _json,
        "data_offsets": st.tuples(_number, _number) | _json,
    },
    optional={"extra": _json},
)


@settings(max_examples=examples(300), deadline=None)
@given(_json | st.dictionaries(st.text(max_size=3), _entry | _json, max_size=4), st.binary(max_size=40))
def test_headers_of_any_json(scratch: Path, header: object, data: bytes) -> None:
    scratch.write_bytes(file_bytes(header, data))
    try:
        found = read_all(scratch)
    except CheckpointError:
        return
    assert sum(array.nbytes for array in found.values()) <= 2 * len(data)


def test_a_file_that_shrinks_while_read(scratch: Path) -> None:
    scratch.write_bytes(file_bytes({"a": ENTRY}))
    store = SafetensorsFile(scratch)
    os.truncate(scratch, scratch.stat().st_size - 1)
    assert store.read("a", 0, 1).tolist() == [[0, 0]]
    with pytest.raises(CheckpointError, match="ends inside tensor a: the file changed while read"):
        store.read("a", 1, 2)
    store.close()


class _FailingDisk:
    def __init__(self, *_: object) -> None:
        pass

    def fail(self, *_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    seek = read = readinto = fail

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


def test_a_failing_disk_is_named(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch.write_bytes(file_bytes({"a": ENTRY}))
    store = SafetensorsFile(scratch)
    store.close()
    monkeypatch.setattr(store, "_file", _FailingDisk())
    with pytest.raises(CheckpointError, match=r"reading tensor a failed \(Input/output error\)"):
        store.read("a", 0, 1)
    disk = _FailingDisk()
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    with pytest.raises(CheckpointError, match=r"its header cannot be read \(Input/output error\)"):
        SafetensorsFile(scratch)
    assert disk.closed


def _denied(*_: object, **__: object) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"none: cannot be opened \(No such file or directory\)"):
        SafetensorsFile(tmp_path / "none")
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="pipe: not a regular file"):
            SafetensorsFile(tmp_path / "pipe")
    (tmp_path / "x").write_bytes(file_bytes({"a": ENTRY}))
    monkeypatch.setattr(Path, "open", _denied)
    with pytest.raises(CheckpointError, match=r"x: cannot be opened \(Permission denied\)"):
        SafetensorsFile(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", file_bytes([1]), file_bytes({"a": ENTRY}, b"")])
def test_a_refused_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    opened: list[Any] = []
    original: Callable[..., Any] = Path.open

    def recording(self: Path, *args: Sequence[Any], **keywords: Any) -> Any:
        opened.append(original(self, *args, **keywords))
        return opened[-1]

    (tmp_path / "x").write_bytes(content)
    monkeypatch.setattr(Path, "open", recording)
    with pytest.raises(CheckpointError):
        SafetensorsFile(tmp_path / "x")
    assert [file.closed for file in opened] == [True]
