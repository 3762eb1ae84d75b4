"""`.pt` checkpoints: the same rows as from safetensors, and no code of theirs is run."""

import errno
import importlib
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.convert.checkpoint.pickle import PickleFile
from miso_gguf.core.errors import CheckpointError

STATE = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "a.scale": torch.arange(5, dtype=torch.float16) / 3,
    "head": torch.arange(8, dtype=torch.float32).reshape(2, 2, 2).to(torch.bfloat16) / 3,
    "scalar": torch.tensor(2.5),
}


def check_reads(path: Path) -> None:
    store = PickleFile(path)
    assert store.files == (path,)
    assert store.shapes == {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    for name, tensor in STATE.items():
        rows = tensor.float().numpy() if tensor.ndim else np.array([tensor.item()], np.float32)
        for start in range(len(rows)):
            for stop in range(start, len(rows) + 1):
                found = store.read(name, start, stop)
                assert found.dtype == np.float32
                assert found.flags.c_contiguous
                np.testing.assert_array_equal(found, rows[start:stop])
    assert [store.position(name)[1] for name in STATE] == [0, 48, 58, 74]
    assert [store.position("a.weight", row) for row in range(4)] == [(0, 12 * row) for row in range(4)]
    store.read("a.weight", 0, 1)[:] = 99
    assert store.read("a.weight", 0, 1).tolist() == [[0, 1, 2]]
    store.close()
    store.close()


@pytest.mark.parametrize(
    "state",
    [
        STATE,
        OrderedDict(STATE),
        {"model": STATE, "epoch": 3, "optimizer": {"lr": [0.1]}},
        {"state_dict": STATE},
        {"state_dict": {"model": STATE}},
        {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()},
        {**STATE, "a.weight": STATE["a.weight"].t().contiguous().t()},
    ],
    ids=["plain", "ordered", "model", "state_dict", "both", "parameters", "strided"],
)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_state_dicts(tmp_path: Path, state: dict[str, Any], is_zip: bool) -> None:
    torch.save(state, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=is_zip)
    check_reads(tmp_path / "ckpt.pt")


def test_new_files_are_mapped_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load = torch.load

    def recording(*args: Any, **keywords: Any) -> Any:
        asked.append((keywords["weights_only"], keywords["mmap"], keywords["map_location"]))
        return load(*args, **keywords)

    monkeypatch.setattr(torch, "load", recording)
    torch.save(STATE, tmp_path / "new.pt")
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    PickleFile(tmp_path / "new.pt").close()
    PickleFile(tmp_path / "old.pt").close()
    assert asked == [(True, True, "cpu"), (True, False, "cpu")]


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
        assert "Trying to load unsupported GLOBAL" in str(caught.value)
        assert f"{os.system.__module__}.system" in str(caught.value)
        # It would have run: the test is worth something.
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_other_classes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = type("Config", (), {"__module__": "training"})
    module = types.ModuleType("training")
    module.Config = harmless  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "training", module)
    torch.save({"model": STATE, "config": harmless()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"refused: .*GLOBAL training\.Config") as caught:
        PickleFile(tmp_path / "x.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([STATE["head"]], "not a state dict (a plain dictionary of dense tensors)"),
        (STATE["head"], "not a state dict (a plain dictionary of dense tensors)"),
        ({**STATE, "step": 3}, "not a state dict (a plain dictionary of dense tensors)"),
        ({**STATE, "s": torch.eye(3).to_sparse()}, "not a state dict (a plain dictionary of dense tensors)"),
        ({**STATE, "m": torch.empty(2, device="meta")}, "not a state dict (a plain dictionary of dense tensors)"),
        ({0: STATE["head"]}, "not a state dict (it has keys that are no tensor names)"),
        ({"\x1b[2J": STATE["head"]}, "not a state dict (it has keys that are no tensor names)"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, state: object, message: str) -> None:
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        PickleFile(tmp_path / "x.pt")
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_unsupported_dtypes_are_named_when_read(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"ok": STATE["head"], "a.weight": torch.ones(2, 2).to(dtype)}, tmp_path / "x.pt")
    store = PickleFile(tmp_path / "x.pt")
    assert store.read("ok", 0, 1).shape == (1, 2, 2)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointError, match=rf"tensor a\.weight has dtype {name}; supported are float32, float16, bfloat16\. Save"
    ):
        store.read("a.weight", 0, 1)
    store.close()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    for content in (b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30], b"PK\x03\x04" + bytes(500)):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"x\.pt: is the beginning of a zip file, .*: truncated: download it "
        ):
            PickleFile(path)
    path.write_bytes(b"\x80\x02" + whole[2:])
    with pytest.raises(CheckpointError, match=r"x\.pt: refused: .*\(it may hold code, or be damaged\): .+"):
        PickleFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    with pytest.raises(CheckpointError, match="is a zip archive: unpack it"):
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
    with pytest.raises(CheckpointError, match=r"cannot be opened \(Is a directory\)"):
        PickleFile(tmp_path)

    def denied(*_: object, **__: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "x.pt").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be opened \(Permission denied\)"):
        PickleFile(tmp_path / "x.pt")


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'torch'"), OSError("libtorch.so")])
def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def missing(name: str) -> Any:
        assert name == "torch"
        raise error

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(CheckpointError, match=r"needs PyTorch: pip install 'miso-gguf\[reference\]', or pass the"):
        PickleFile(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("version", "trusted"), [("2.5.1+cpu", False), ("1.13", False), ("2.6.0", True), ("3.0", True)]
)
def test_a_torch_whose_protection_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, trusted: bool
) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", version)
    if trusted:
        PickleFile(tmp_path / "x.pt").close()
        return
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(CheckpointError, match=r"cannot be trusted with a \.pt file .* upgrade it to 2\.6 or later"):
        PickleFile(tmp_path / "x.pt")
