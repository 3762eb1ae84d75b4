"""`.pt` checkpoints: the rows that torch reads, without torch, and no code of theirs is run."""

import argparse
import configparser
import datetime
import enum
import errno
import functools
import inspect
import logging
import os
import pickle
import struct
import sys
import tracemalloc
import types
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.convert.checkpoint import unpickle
from miso_gguf.convert.checkpoint.pickle import PickleFile
from miso_gguf.core.errors import CheckpointError

STATE = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "a.scale": torch.arange(5, dtype=torch.float16) / 3,
    "head": torch.arange(8, dtype=torch.float32).reshape(2, 2, 2).to(torch.bfloat16) / 3,
    "scalar": torch.tensor(2.5),
}


def first_number(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1)[:1].view(torch.uint8).numpy().tobytes()


def check_reads(path: Path, prefix: str) -> None:
    store, raw = PickleFile(path), path.read_bytes()
    assert store.files == (path,)
    assert store.shapes == {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in STATE.items()}
    for name, tensor in STATE.items():
        rows = tensor.float().numpy() if tensor.ndim else np.array([tensor.item()], np.float32)
        for start in range(len(rows)):
            for stop in range(start, len(rows) + 1):
                found = store.read(f"{prefix}{name}", start, stop)
                assert found.dtype == np.float32
                assert found.flags.c_contiguous
                np.testing.assert_array_equal(found, rows[start:stop])
        file, offset = store.position(f"{prefix}{name}")
        assert (file, raw[offset:].startswith(first_number(tensor))) == (0, True)
    steps = [store.position(f"{prefix}head", row)[1] for row in range(2)]
    assert steps[1] - steps[0] == 8
    store.read(f"{prefix}a.weight", 0, 1)[:] = 99
    assert store.read(f"{prefix}a.weight", 0, 1).tolist() == [[0, 1, 2]]
    store.close()
    store.close()


@pytest.mark.parametrize(
    ("state", "prefix"),
    [
        (STATE, ""),
        (OrderedDict(STATE), ""),
        ({"model": STATE, "epoch": 3, "optimizer": {"lr": [0.1]}}, "model."),
        ({"state_dict": {"model": STATE}}, "state_dict.model."),
        ({name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()}, ""),
        ({**STATE, "a.weight": STATE["a.weight"].t().contiguous().t()}, ""),
    ],
    ids=["plain", "ordered", "model", "both", "parameters", "strided"],
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_state_dicts(tmp_path: Path, state: dict[str, Any], prefix: str, is_zip: bool) -> None:
    torch.save(state, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=is_zip)
    check_reads(tmp_path / "ckpt.pt", prefix)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_it_needs_no_torch_and_reads_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    large = torch.arange(1 << 22, dtype=torch.float32).reshape(1024, 4096)
    torch.save({**STATE, "large": large}, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    monkeypatch.setitem(sys.modules, "torch", None)
    tracemalloc.start()
    store = PickleFile(tmp_path / "x.pt")
    np.testing.assert_array_equal(store.read("large", 700, 702), large[700:702].numpy())
    np.testing.assert_array_equal(store.read("a.weight", 1, 3), STATE["a.weight"][1:3].numpy())
    assert tracemalloc.get_traced_memory()[1] < large.nbytes / 8
    tracemalloc.stop()
    store.close()
    with pytest.raises(ValueError, match="closed file"):
        store.read("large", 0, 1)


def test_views_of_any_shape(tmp_path: Path) -> None:
    base = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    views = {
        "t": base[0, 0].t(), "permuted": base.permute(3, 0, 2, 1), "column": base[:, :, 1:3, 2], "whole": base,
        "steps": base[0, 0, :, ::2], "one": base[1:, 2:, 3:, 4:], "empty": base[:, :0], "scalar": base[1, 2, 3, 4],
    }  # fmt: skip
    for is_zip in (True, False):
        torch.save(views, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
        store = PickleFile(tmp_path / "x.pt")
        for name, view in views.items():
            rows = view.numpy() if view.ndim else view.numpy().reshape(1)
            for start in range(len(rows)):
                np.testing.assert_array_equal(store.read(name, start, len(rows)), rows[start:])
        store.close()


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_that_was_packed_again(tmp_path: Path, kind: int) -> None:
    """Compressed, or with the longer headers of what is larger than 4 GB."""
    torch.save(STATE, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as whole, zipfile.ZipFile(tmp_path / "y", "w", kind) as out:
        for info in whole.infolist():
            with out.open(info.filename, "w", force_zip64=True) as member:
                member.write(whole.read(info))
    store = PickleFile(tmp_path / "y")
    for name, tensor in STATE.items():
        rows = tensor.float().reshape(tensor.shape or (1,)).numpy()
        np.testing.assert_array_equal(store.read(name, len(rows) - 1, len(rows)), rows[-1:])
    assert store.position("a.weight") < store.position("a.scale") < store.position("head")
    store.close()
    with zipfile.ZipFile(tmp_path / "y") as packed, zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_LZMA) as out:
        out.writestr("x/data.pkl", packed.read("x/data.pkl"))
    with pytest.raises(CheckpointError, match="compressed as torch never does"):
        PickleFile(tmp_path / "z")


def test_damaged_compressed_storages(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickled_tensor(**tensor_of()))  # type: ignore[arg-type]
        archive.writestr("x/data/0", bytes(64))
        place = archive.getinfo("x/data/0").header_offset + 30 + len("x/data/0")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    content[place] = 0xFF
    (tmp_path / "x.pt").write_bytes(content)
    store = PickleFile(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: reading tensor x failed \("):
        store.read("x", 0, 2)
    store.close()


class _Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def _save_zip(value: object, path: Path) -> None:
    torch.save(value, path)


def _save_legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def _save_bare(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("save", [_save_zip, _save_legacy, _save_bare])
@pytest.mark.parametrize("where", ["value", "nested", "alone"])
def test_malicious_pickles_are_refused_and_not_run(tmp_path: Path, save: Any, where: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "ckpt.pt"
    evil = _Malicious(mark)
    save({"value": {**STATE, "x": evil}, "nested": {"model": {"x": evil}}, "alone": evil}[where], path)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt: refused: not a plain dictionary of tensors") as caught:
        PickleFile(path)
    assert not mark.exists()
    # torch's own message advises to load it without the protection.
    assert "weights_only" not in str(caught.value)
    if save is not _save_bare:
        assert f"(it asks for {os.system.__module__}.system)" in str(caught.value)
        # It would have run: the test is worth something.
        torch.load(path, weights_only=False)
        assert mark.exists()


def asking(module: str, name: str, protocol: int) -> bytes:
    if protocol == 0:  # the oldest instruction that makes an object
        return f"(i{module}\n{name}\n.".encode()
    text = f"c{module}\n{name}\n" if protocol < 4 else ""
    named = text.encode() or b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"
    return b"\x80" + bytes([protocol]) + named + b"(X\x01\x00\x00\x00xtR."


ATTACKS = """
os.system posix.system nt.system subprocess.Popen builtins.eval builtins.exec builtins.compile builtins.__import__
__builtin__.open sys.exit importlib.import_module runpy.run_path shutil.rmtree ctypes.CDLL socket.socket pty.spawn
code.interact pickle.loads webbrowser.open timeit.timeit os.path.join _posixsubprocess.fork_exec
"""


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ATTACKS.split())
def test_what_no_checkpoint_needs_is_refused_by_name(tmp_path: Path, name: str, protocol: int) -> None:
    module, attribute = name.rsplit(".", 1)
    path = save_pickled(tmp_path / "x.pt", asking(module, attribute, protocol))
    with pytest.raises(CheckpointError) as caught:
        PickleFile(path)
    assert str(caught.value).startswith(
        f"{path}: refused: not a plain dictionary of tensors (it asks for {name}). Save the state dict alone"
    )


def save_pickled(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", bytes(64))
    return path


def tensor_of(
    dtype: str = "FloatStorage",
    items: int = 16,
    offset: int = 0,
    size: object = (2, 2),
    stride: object = (2, 1),
    key: object = "0",
) -> dict[str, object]:
    return {"dtype": dtype, "items": items, "offset": offset, "size": size, "stride": stride, "key": key}


def pickled_tensor(dtype: str, items: int, offset: int, size: object, stride: object, key: object) -> bytes:
    """`{"x": tensor}` as torch writes it, with whatever numbers."""
    plain = {name: pickle.dumps(value, 2)[2:-1] for name, value in locals().items()}
    storage = b"(X\x07\x00\x00\x00storagectorch\n%b\n%bX\x03\x00\x00\x00cpu%btQ" % (
        dtype.encode(), plain["key"], plain["items"],
    )  # fmt: skip
    numbers = plain["offset"] + plain["size"] + plain["stride"]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89NtR"
    return b"\x80\x02}X\x01\x00\x00\x00x" + tensor + b"s."


def test_the_pickle_written_here_is_torchs(tmp_path: Path) -> None:
    store = PickleFile(save_pickled(tmp_path / "x.pt", pickled_tensor(**tensor_of())))  # type: ignore[arg-type]
    assert (store.shapes, store.read("x", 0, 2).tolist()) == ({"x": (2, 2)}, [[0, 0], [0, 0]])
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        {"items": 17}, {"items": -1}, {"items": 1 << 62}, {"items": None}, {"offset": 13}, {"offset": -1},
        {"offset": 1 << 70}, {"offset": 1.5}, {"size": (5, 4)}, {"size": (-1, 2)}, {"size": (1 << 40, 1 << 40)},
        {"size": (1 << 63,)}, {"size": (2,)}, {"size": 3}, {"size": (2, True)}, {"stride": (1 << 60, 1)},
        {"stride": (-2, 1)}, {"stride": (2,)}, {"stride": "ab"}, {"size": (1,) * 40, "stride": (1,) * 40},
        {"size": (2,) * 32, "stride": (0,) * 32}, {"key": "1"}, {"key": 0}, {"key": "../0"}, {"key": ("0",)},
    ],
    ids=str,
)  # fmt: skip
def test_tensors_that_are_not_in_their_storage(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save_pickled(tmp_path / "x.pt", pickled_tensor(**{**tensor_of(), **change}))
    with pytest.raises(
        CheckpointError, match=r"x\.pt: (refused: not a plain dictionary|tensor x has dtype F32 repeated)"
    ):
        PickleFile(path).read("x", 0, 1)


_NUMBER = b"K\x01"
_KEY = b"X\x01\x00\x00\x00k"
HOSTILE = {
    "nested tuples as a key": b"}" + b")" + b"\x85" * 100_000 + _NUMBER + b"s",
    "nested tuples in a set": b"\x8f(" + b")" + b"\x85" * 100_000 + b"\x90",
    "nested lists": b"]" * 50_000 + b"a" * 49_999,
    "nested dictionaries": b"}" + (_KEY + b"}") * 30_000 + b"s" * 30_000,
    "nested objects": (b"cx\ny\n)R" + _KEY) * 30_000 + _NUMBER + b"s" * 30_000,
    "nested calls": b"cx\ny\n" + b")R" * 100_000,
    "a list in itself": b"]q\x00h\x00a",
    "a dictionary in itself": b"}q\x00" + _KEY + b"h\x00s",
    "a thousand million parts": b"".join(
        b"]%b(%be" % (b"q" + bytes([level]), (b"h" + bytes([level - 1])) * 100 if level else b"") for level in range(30)
    ),
    "a memo of two thousand million": _NUMBER + b"r\xff\xff\xff\x7f",
    "a frame of a thousand million million": b"\x95" + bytes([255] * 6 + [0, 0]) + b"N",
    "bytes of a thousand million": b"\x8e\x00\xca\x9a\x3b\x00\x00\x00\x00x",
    "a byte array of a million million": b"\x96" + bytes([255] * 5 + [0, 0, 0]) + b"x",
    "text longer than the file": b"X\xff\xff\xff\x7fx",
    "a number of many digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "a number of many bytes": b"\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20),
    "an empty stack": b"0000",
    "a missing mark": b"t",
    "a missing memo": b"h\x07",
    "an extension": b"\x82\x01",
    "a buffer": b"\x97",
    "an unknown instruction": b"\xff",
    "state of nothing": b"b",
    "a call of a number": _NUMBER + b")R",
    "a call with a number": b"cx\ny\n" + _NUMBER + b"R",
    "a key without value": b"}(" + _KEY + b"u",
    "an item of a number": _NUMBER + b"(" + _NUMBER + b"e",
    "a storage of nothing": b")Q",
    "a storage of text": b"Px\n",
    "a name of numbers": _NUMBER + _NUMBER + b"\x93",
    "rebuilt of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "rebuilt of itself": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00N(h\x00N)Nt" + b"NtR",
    "rebuilt by nested tuples": b"ctorch._tensor\n_rebuild_from_type_v2\n()" + b"\x85" * 200_000 + b"N)NtR",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_pickles_made_to_break_their_reader(tmp_path: Path, what: str) -> None:
    path = save_pickled(tmp_path / "x.pt", b"\x80\x04" + HOSTILE[what] + b".")
    with pytest.raises(CheckpointError, match=r"x\.pt: (refused: not a plain dictionary|not a state dict)"):
        PickleFile(path)


def save_legacy(path: Path, *, view: object = None, keys: bytes = b"]X\x01\x00\x00\x00ka") -> Path:
    """One tensor of two numbers in a storage `k` of four, in the format without a zip."""
    before: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    head = b"".join(pickle.dumps(value, 2) for value in before)
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00kX\x03\x00\x00\x00cpuK\x04"
    storage += pickle.dumps(view, 2)[2:-1] + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02\x85K\x01\x85\x89NtR"
    state = b"\x80\x02}X\x01\x00\x00\x00x" + tensor + b"s."
    path.write_bytes(head + state + b"\x80\x02" + keys + b"." + struct.pack("<q4f", 4, 0, 1, 2, 3))
    return path


def test_a_view_of_a_storage(tmp_path: Path) -> None:
    for view, numbers in ((None, [0, 1]), (("v", 2, 2), [2, 3])):
        file = PickleFile(save_legacy(tmp_path / "x.pt", view=view))
        assert file.read("x", 0, 2).tolist() == numbers
        file.close()


@pytest.mark.parametrize(
    "damage",
    [
        {"view": ("v", 3, 2)}, {"view": ("v", -1, 2)}, {"view": ("v", 0.5, 2)}, {"view": ("v", 0, 2.0)},
        {"view": ("v",)}, {"keys": b"])" + b"\x85" * 200_000 + b"a"}, {"keys": b"]X\x01\x00\x00\x00ja"},
        {"keys": b"N"}, {"keys": b"]"},
    ],
    ids=lambda damage: str(damage)[:40],
)  # fmt: skip
def test_storages_without_a_zip_that_are_made_up(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt: refused: not a plain dictionary"):
        PickleFile(save_legacy(tmp_path / "x.pt", **damage))


def test_pickles_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_pickled(tmp_path / "x.pt", b"\x80\x04" + b"N0" * 1000 + b"N.")
    with pytest.raises(CheckpointError, match="there is no tensor in it"):
        PickleFile(path)
    monkeypatch.setattr(unpickle, "_MAX_INSTRUCTIONS", 2000)
    with pytest.raises(CheckpointError, match="a pickle of more than 2000 instructions"):
        PickleFile(path)
    monkeypatch.setattr(unpickle, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="a pickle of more than 1000 bytes"):
        PickleFile(path)


def test_a_member_that_is_encrypted(tmp_path: Path) -> None:
    path = save_pickled(tmp_path / "x.pt", pickled_tensor(**tensor_of()))  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # in the directory's entry of the last member
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a member of the zip is not where its directory says, or is encrypted"):
        PickleFile(path)


def test_zip_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path, content = tmp_path / "x.pt", pickled_tensor(**tensor_of())  # type: ignore[arg-type]
    members: list[tuple[dict[str, bytes], str]] = [
        ({"a.npy": b"x", "b.npy": b"y"}, r"NumPy's \.npz: save the weights as \.safetensors"),
        (
            {"x/data.pkl": content, "x/data/0": bytes(64), "x/constants.pkl": b"", "x/code/a.py": b""},
            "TorchScript program",
        ),
        ({"x/data.pkl": content, "y/data.pkl": content}, r"it has no data\.pkl"),
        ({"x/y/data.pkl": content}, r"it has no data\.pkl"),
        ({"x/data.pkl": content}, "x/data/0"),
        ({"x/data.pkl": content, "x/data/0": bytes(63)}, "storage 0 has 63 bytes, too few for 16 numbers"),
        ({"x/data.pkl": content, "x/data/0": bytes(64), "x/byteorder": b"big"}, "saved on a big-endian machine"),
    ]
    for files, message in members:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        with pytest.raises(CheckpointError, match=message):
            PickleFile(path)
    save_pickled(path, content)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data/0", bytes(64))
    with pytest.raises(CheckpointError, match="a member of the zip is there twice"):
        PickleFile(path)
    save_pickled(path, content)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="its end is missing: download it again"):
        PickleFile(path)


@dataclass
class _Settings:
    path: Path
    rate: float = 1e-4


class _Phase(enum.Enum):
    LATE = "late"


class _Bag(dict[str, object]):
    pass


class _Slots:
    __slots__ = ("x",)


def _slots() -> _Slots:
    result = _Slots()
    result.x = 1  # type: ignore[attr-defined]
    return result


HARMLESS: dict[str, object] = {
    "namespace": argparse.Namespace(lr=0.1, out=Path("x")),
    "path": PurePosixPath("a/b"),
    "data class": _Settings(Path("x")),
    "enum": _Phase.LATE,
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    "duration": datetime.timedelta(seconds=3),
    "dictionary of its own": _Bag(x=1, y={"z": [1, 2]}),
    "slots": _slots(),
    "numpy scalar": np.float64(1.5),
    "numpy array": np.arange(5),
    "random state": np.random.default_rng(3),
    "set": {1, 2, (3, 4)},
    "frozen set": frozenset("ab"),
    "default dictionary": defaultdict(list, {"a": [1]}),
    "counter": Counter("abba"),
    "partial": functools.partial(int, base=7),
    "class": OrderedDict,
    "type": int,
    "tuple keys": {(1, 2): 3, None: 4, 1.5: 5, True: 6},
    "bytes": b"\x00" * 300,
    "large number": 10**40,
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "size": torch.Size([1, 2]),
    "generator": torch.random.get_rng_state(),
    "deque": deque([1, 2], maxlen=3),
    "complex": 1 + 2j,
    "simple": types.SimpleNamespace(a=1),
    "config": configparser.ConfigParser(),
    "nothing": inspect.Parameter.empty,
    "logger": logging.getLogger("x"),
}


@pytest.mark.parametrize("what", HARMLESS, ids=str)
def test_what_trainers_save_beside_weights_is_passed_over(tmp_path: Path, what: str) -> None:
    for protocol in (2, 4):
        for is_zip in (True, False):
            torch.save(
                {"args": HARMLESS[what], "model": STATE},
                tmp_path / "x.pt",
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=is_zip,
            )
            store = PickleFile(tmp_path / "x.pt")
            assert [name for name in store.shapes if name.startswith("model.")] == [f"model.{name}" for name in STATE]
            assert {name for name in store.shapes if not name.startswith("model.")} <= {"args"}
            np.testing.assert_array_equal(store.read("model.head", 1, 2), STATE["head"][1:].float().numpy())
            store.close()


class _Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)])
        self.head = torch.nn.Parameter(torch.arange(4.0))
        self.register_buffer("mask", torch.ones(2, 2))


@pytest.mark.filterwarnings("ignore")
def test_a_whole_module_is_its_state_dict(tmp_path: Path) -> None:
    module = _Module()
    torch.save({"net": module}, tmp_path / "x.pt")
    store = PickleFile(tmp_path / "x.pt")
    state = module.state_dict()
    assert store.shapes == {f"net.{name}": tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        np.testing.assert_array_equal(store.read(f"net.{name}", 0, len(tensor)), tensor.numpy())
    store.close()


def test_dictionaries_in_dictionaries_are_paths(tmp_path: Path) -> None:
    head = STATE["head"]
    state = {"a": {"b": [head, {"c": head}]}, 0: head, "x": (head, 3, None), "n": [1, 2]}
    torch.save(state, tmp_path / "x.pt")
    store = PickleFile(tmp_path / "x.pt")
    assert list(store.shapes) == ["a.b.0", "a.b.1.c", "0", "x.0"]
    store.close()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([3], "not a state dict (there is no tensor in it)"),
        ({"a": {"b": 1}}, "not a state dict (there is no tensor in it)"),
        (STATE["head"], "not a state dict (one tensor, without a name)"),
        ({"\x1b[2J": STATE["head"]}, "not a state dict (it has keys that are no tensor names)"),
        ({"a.b": STATE["head"], "a": {"b": STATE["head"]}}, "not a state dict (it has keys that are no tensor names)"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, state: object, message: str) -> None:
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        PickleFile(tmp_path / "x.pt")
    assert message in str(caught.value)


def _quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(3, 3, device="meta"), "none: it has no data, as on 'meta'"),
        (torch.ones(1).expand(3, 3), "F32 repeated"),
        (_quantised(), "a quantised integer"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_numbers_of_their_own_are_refused_when_read(
    tmp_path: Path, tensor: torch.Tensor, dtype: str
) -> None:
    torch.save({**STATE, "s": tensor}, tmp_path / "x.pt")
    store = PickleFile(tmp_path / "x.pt")
    assert store.shapes["s"] == (3, 3)
    with pytest.raises(CheckpointError, match=f"tensor s has dtype {dtype}; supported are F32, F16, BF16"):
        store.read("s", 0, 1)
    store.close()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float64, "F64"), (torch.int32, "I32"), (torch.complex64, "C64"), (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint16, "U16"), (torch.float8_e8m0fnu, "float8_e8m0fnu"),
    ],
)  # fmt: skip
def test_unsupported_dtypes_are_named_when_read(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    torch.save({"ok": STATE["head"], "a.weight": torch.ones(2, 2).to(dtype)}, tmp_path / "x.pt")
    store = PickleFile(tmp_path / "x.pt")
    assert store.read("ok", 0, 1).shape == (1, 2, 2)
    with pytest.raises(
        CheckpointError, match=rf"tensor a\.weight has dtype {name}; supported are F32, F16, BF16\. Save"
    ):
        store.read("a.weight", 0, 1)
    store.close()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", b"hello", whole[: len(whole) // 2], whole[:-30], b"PK\x03\x04" + bytes(500)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.pt: refused: .*\(it may hold code, or be damaged\): .+"):
            PickleFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    with pytest.raises(CheckpointError, match=r"refused: .*\(it may hold code, or be damaged\): .+"):
        PickleFile(path)


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    # The head is where the pickle is, in both formats.
    for position in data.draw(st.lists(st.integers(0, min(len(content), 1500) - 1), max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)) | st.just(len(content)))])
    try:
        store = PickleFile(path)
        for name, shape in store.shapes.items():
            assert store.read(name, 0, 1).shape == (1, *shape[1:]) or shape[:1] == (0,)
            store.position(name)
    except CheckpointError:
        return
    store.close()


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be opened \(No such file or directory\)"):
        PickleFile(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"not a regular file"):
        PickleFile(tmp_path)

    def denied(*_: object, **__: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "x.pt").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be opened \(Permission denied\)"):
        PickleFile(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [..., NotImplemented, len, sorted])
def test_harmless_names_of_python_may_lie_beside(tmp_path: Path, value: object) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(value=value)}, tmp_path / "x.pt")
    check_reads(tmp_path / "x.pt", "model.")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_old_file_that_is_cut_off_says_so(tmp_path: Path, share: float) -> None:
    torch.save(STATE, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="download it again"):
        PickleFile(tmp_path / "x.pt")
