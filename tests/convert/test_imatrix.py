"""Importance matrices: llama.cpp's arithmetic, and every file that is not one of this model."""

import errno
import hashlib
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders import MICRO, Built, write_imatrix
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.convert.imatrix import FINGERPRINT_KEY, read_imatrix
from miso_gguf.core.errors import CheckpointError
from miso_gguf.core.printable import printable
from miso_gguf.models.levels import Q4_K_M
from miso_gguf.models.tensors import gguf_tensors

F32Array = NDArray[np.float32]

BACKBONE = [tensor for tensor in gguf_tensors(MICRO) if tensor.part == "backbone"]
DECODER = [tensor for tensor in gguf_tensors(MICRO) if tensor.part == "decoder"]
Q, DOWN = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"
SUMS: dict[str, F32Array] = {
    Q: np.arange(64, dtype=np.float32) / np.float32(3),
    DOWN: np.float32(1e-3) * np.arange(96, dtype=np.float32),
}
COUNTS = {Q: 7.0, DOWN: 1536.0}


def test_importance_is_sums_over_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(path, {**SUMS, "of.another.part": np.ones(3, np.float32)}, {**COUNTS, "of.another.part": 1})
    found = read_imatrix(path, BACKBONE)
    assert set(found.columns) == {Q, DOWN}
    for name, values in found.columns.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, SUMS[name] / np.float32(COUNTS[name]))
    assert (found.file, found.dataset, found.chunks) == ("m.gguf", "noise.txt", 3)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_was_never_counted_weighs_one(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "m", SUMS, {**COUNTS, Q: 0})
    assert read_imatrix(tmp_path / "m", BACKBONE).columns[Q].tolist() == [1.0] * 64


def test_a_matrix_of_which_nothing_matters_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_imatrix(tmp_path / "m", {**SUMS, Q: np.zeros(64, np.float32)}, COUNTS)
    read_imatrix(tmp_path / "m", BACKBONE)
    assert caplog.messages == [f"{tmp_path / 'm'}: says of 1 matrices that no column matters, the first {Q}"]
    caplog.clear()
    write_imatrix(tmp_path / "m", SUMS, {**COUNTS, Q: 0.0})  # of what was never seen, all columns matter alike
    read_imatrix(tmp_path / "m", BACKBONE)
    assert caplog.messages == []


def write_gguf(
    path: Path,
    tensors: dict[str, NDArray[Any]],
    fill: Callable[[GGUFWriter], None] | None = None,
    kind: str = "imatrix",
) -> Path:
    writer = GGUFWriter(path, "none")
    writer.add_type(kind)
    if fill is not None:
        fill(writer)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GOOD = {f"{Q}.in_sum2": SUMS[Q].reshape(1, -1), f"{Q}.counts": np.array([[2]], np.float32)}


@pytest.mark.parametrize(
    ("fill", "dataset", "chunks"),
    [
        (lambda w: None, None, 0),
        (lambda w: w.add_uint32("imatrix.chunk_count", 2**32 - 1), None, 2**32 - 1),
        (lambda w: w.add_int32("imatrix.chunk_count", -1), None, 0),
        (lambda w: w.add_string("imatrix.chunk_count", "many"), None, 0),
        (lambda w: w.add_uint64("imatrix.chunk_count", 2**40), None, 0),
        (lambda w: w.add_string("imatrix.datasets", "x.txt"), None, 0),
        (lambda w: w.add_array("imatrix.datasets", ["x.txt", "y.txt"]), "x.txt", 0),
    ],
)
def test_notes_about_its_making_are_optional(
    tmp_path: Path, fill: Callable[[GGUFWriter], None], dataset: str | None, chunks: int
) -> None:
    found = read_imatrix(write_gguf(tmp_path / "m", GOOD, fill), BACKBONE)
    assert (found.dataset, found.chunks) == (dataset, chunks)


def test_a_dataset_that_is_no_text(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m", GOOD, lambda w: w.add_array("imatrix.datasets", ["@@@@"]))
    path.write_bytes(path.read_bytes().replace(b"@@@@", b"\xff\xfe\xff\xfe"))
    assert read_imatrix(path, BACKBONE).dataset is None


def _with(name: str, values: object) -> dict[str, NDArray[Any]]:
    return {**GOOD, name: np.array(values, np.float32)}


_LAST = [[*([1.0] * 63), np.nan]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has entries for none of the backbone's tensors: it is of another model or part"),
        ({"x.in_sum2": np.ones((1, 64), np.float32), "x.counts": np.ones((1, 1), np.float32)}, "has entries for none"),
        (_with(f"{Q}.in_sum2", [[1.0] * 65]), f"{Q} has 65 columns and 1 counts, the model's has 64 and 1: this imat"),
        (_with(f"{Q}.in_sum2", [[1.0] * 64] * 2), f"{Q} has 128 columns and 1 counts, the model's has 64 and 1"),
        (_with(f"{Q}.counts", [[1.0, 1.0]]), f"{Q} has 64 columns and 2 counts, the model's has 64 and 1"),
        (_with(f"{Q}.in_sum2", _LAST), f"{Q} has NaN or Inf importances"),
        (_with(f"{Q}.in_sum2", [[np.inf] * 64]), f"{Q} has NaN or Inf importances"),
        ({**_with(f"{Q}.counts", [[0]]), f"{Q}.in_sum2": np.array(_LAST, np.float32)}, "has NaN or Inf importances"),
        (_with(f"{Q}.counts", [[np.nan]]), f"{Q} has NaN or Inf importances"),
        (_with(f"{Q}.counts", [[np.inf]]), f"{Q} has NaN or Inf importances"),
        (_with(f"{Q}.counts", [[1e-44]]), f"{Q} has NaN or Inf importances"),
        (_with(f"{Q}.counts", [[-1]]), f"{Q} has negative importances: the imatrix is damaged"),
        (_with(f"{Q}.in_sum2", [[-1e-9] + [1] * 63]), f"{Q} has negative importances: the imatrix is damaged"),
        ({f"{Q}.in_sum2": GOOD[f"{Q}.in_sum2"]}, f"{Q}.counts is missing or not F32"),
        ({f"{Q}.counts": GOOD[f"{Q}.counts"]}, f"{Q}.in_sum2 is missing or not F32"),
        ({**GOOD, f"{Q}.in_sum2": np.ones((1, 64), np.float16)}, f"{Q}.in_sum2 is missing or not F32"),
    ],
)
def test_entries_that_cannot_be_used(tmp_path: Path, tensors: dict[str, NDArray[Any]], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", tensors)
    with pytest.raises(CheckpointError) as caught:
        read_imatrix(path, BACKBONE)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_an_imatrix_of_the_other_part(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "m", {DOWN: SUMS[DOWN]}, COUNTS)
    with pytest.raises(CheckpointError, match="has entries for none of the decoder's tensors"):
        read_imatrix(tmp_path / "m", DECODER)
    write_imatrix(tmp_path / "m", {Q: SUMS[Q]}, COUNTS)
    with pytest.raises(CheckpointError, match=r"attn_q\.weight has 64 columns .* the model's has 32 and 1"):
        read_imatrix(tmp_path / "m", DECODER)


@pytest.mark.parametrize("its", [None, "f" * 64, "\x1b[31m" + "f" * 64])
def test_one_of_another_checkpoint_is_taken_and_it_is_said(
    built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture, its: str | None
) -> None:
    inputs = built.inputs(MICRO)
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        own = checkpoint.fingerprint()
        path = write_gguf(tmp_path / "m.gguf", GOOD, lambda w: w.add_string(FINGERPRINT_KEY, its or own))
        request = Request([Q4_K_M], imatrix_backbone=path)
        planned = plan_conversion(tmp_path / "out", checkpoint, inputs.mimi, inputs.tokenizer, request)
    assert planned.levels["q4_k_m"].imatrix_backbone == hashlib.sha256(path.read_bytes()).hexdigest()
    said = f"m.gguf: was made of another checkpoint than this one (fingerprint {printable((its or own)[:12])}"
    assert (said in caplog.text) == (its is not None)
    assert "\x1b" not in caplog.text


def test_a_model_is_not_an_imatrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", GOOD, kind="model")
    monkeypatch.setattr(np, "array", lambda *_, **__: pytest.fail("read tensors of what may be gigabytes"))
    with pytest.raises(CheckpointError, match=r"not an imatrix: its general\.type is not 'imatrix'\. Make one"):
        read_imatrix(path, BACKBONE)


def kv(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def gguf(tensors: int, keys: int, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body


def tensor_info(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    info = struct.pack(f"<Q{len(name)}sI", len(name), name, len(dims))
    return info + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


_TYPE = kv(b"general.type", 8, struct.pack("<Q", 7) + b"imatrix")
_SUM = f"{Q}.in_sum2".encode()
_HUGE = 2**60


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"\x01\x00\x00\x00legacy imatrix.dat",
        b"GGUF" + struct.pack("<I", 99) + bytes(40),
        gguf(0, _HUGE),
        gguf(_HUGE, 0),
        gguf(2**64 - 1, 2**64 - 1),
        gguf(0, 1, kv(b"a", 9, struct.pack("<IQ", 0, _HUGE))),
        gguf(0, 1, kv(b"a", 9, struct.pack("<IQ", 7, 2**64 - 1)) + bytes(200)),
        gguf(0, 1, kv(b"a", 9, struct.pack("<IQ", 8, _HUGE))),
        gguf(0, 1, kv(b"a", 8, struct.pack("<Q", _HUGE))),
        gguf(0, 1, struct.pack("<Q", _HUGE)),
        gguf(0, 1, kv(b"a", 9, struct.pack("<IQ", 9, 1) * 5000)),
        gguf(0, 1, kv(b"a", 77, b"")),
        gguf(0, 2, kv(b"a", 0, b"\0") * 2),
        gguf(0, 1, kv(b"general.alignment", 4, struct.pack("<I", 0)) + bytes(64)),
        gguf(1, 1, _TYPE + tensor_info(_SUM, [_HUGE, 1])),
        gguf(1, 1, _TYPE + tensor_info(_SUM, [2**32, 2**32]) + bytes(64)),
        gguf(1, 1, _TYPE + tensor_info(_SUM, [64, 1], offset=_HUGE) + bytes(512)),
        gguf(1, 1, _TYPE + tensor_info(_SUM, [64, 1], kind=999) + bytes(512)),
        gguf(1, 1, _TYPE + struct.pack("<Q", len(_SUM)) + _SUM + struct.pack("<I", 2**32 - 1)),
        gguf(2, 1, _TYPE + tensor_info(_SUM, [1]) * 2 + bytes(512)),
    ],
)
def test_files_that_are_no_imatrix(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"m\.gguf: not an imatrix in GGUF format \(.+\)"):
        read_imatrix(path, BACKBONE)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert seconds < 5


@pytest.mark.parametrize(
    "content",
    [
        gguf(0, 1, kv(b"\xff\xfe", 0, b"\0")),
        gguf(0, 1, kv(b"a", 9, struct.pack("<IQ", 0, 20_000_000) + bytes(20_000_000))),
    ],
    ids=["a key that is no text", "endless numbers"],
)
def test_headers_that_are_valid_and_of_no_use(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"m: not an imatrix: its general\.type is not 'imatrix'"):
        read_imatrix(tmp_path / "m", BACKBONE)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert seconds < 5


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("imatrix") / "m"
    write_imatrix(path, SUMS, COUNTS)
    return path.read_bytes()


def test_truncated_files(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "m"
    refused = 0
    for cut in (*range(0, len(valid), 13), len(valid) - 1):
        path.write_bytes(valid[:cut])
        try:
            found = read_imatrix(path, BACKBONE)
        except CheckpointError:
            refused += 1
            continue
        # Only the padding at the very end can be missed by nobody.
        assert cut > len(valid) - 32
        np.testing.assert_array_equal(found.columns[DOWN], SUMS[DOWN] / np.float32(COUNTS[DOWN]))
    assert refused > len(valid) // 13 - 3


@settings(max_examples=examples(200), deadline=None)
@given(st.dictionaries(st.integers(0, 900), st.integers(0, 255), min_size=1, max_size=3))
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, valid: bytes, edits: dict[int, int]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    content = bytearray(valid)
    for position, value in edits.items():
        content[position] = value
    path.write_bytes(content)
    try:
        found = read_imatrix(path, BACKBONE)
    except CheckpointError:
        return
    columns = {tensor.name: tensor.shape[-1] for tensor in BACKBONE}
    for name, values in found.columns.items():
        assert values.shape == (columns[name],)
        assert np.isfinite(values).all()
        assert (values >= 0).all()


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"none: cannot be read \(No such file or directory\)"):
        read_imatrix(tmp_path / "none", BACKBONE)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        read_imatrix(tmp_path, BACKBONE)

    def denied(*_: object, **__: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match=r"m: cannot be read \(Permission denied\)"):
        read_imatrix(tmp_path / "m", BACKBONE)
