"""The reference's distributions on disk: the same bits back, and nothing but what was asked for."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import COMMON, MICRO, Built
from miso_gguf.core.errors import MisoError
from miso_gguf.models.flavors import MISO_8B
from miso_gguf.quant_eval.metrics.divergence import divergence
from miso_gguf.quant_eval.run.reference_logits import ReferenceClip, ReferenceLogits, clip_bytes, clip_key
from miso_gguf.quant_eval.run.teacher_forcing import Replayed
from miso_gguf.runtime.bundle import OpenLevel, open_level
from miso_gguf.runtime.lm.prompt import Block

SETTINGS: dict[str, Any] = {"kv_type": "f16", "exact": False, "versions": "1.2"}


@pytest.fixture(scope="module")
def levels(built: Built) -> list[OpenLevel]:
    bundle = built.bundle(COMMON, MICRO)
    return [open_level(bundle, level) for level in ("fp16", "q8_0")]


def codes(frames: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, MICRO.audio_vocab, (frames, MICRO.codebooks))


def blocks(*lengths: int) -> list[Block]:
    rows = np.arange(sum(lengths) * (MICRO.codebooks + 1)).reshape(-1, MICRO.codebooks + 1)
    ends = np.cumsum(lengths)
    return [Block(rows[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


def clip(frames: int = 3, seed: int = 0) -> ReferenceClip:
    rng = np.random.default_rng((frames, seed))

    def random(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    hidden, logits0 = random(frames + 1, MICRO.backbone.embed_dim), random(frames + 1, MICRO.audio_vocab)
    depth = random(frames, MICRO.codebooks - 1, MICRO.audio_vocab)
    return ReferenceClip(Replayed(codes(frames, seed), hidden, logits0), depth)


def assert_same(found: ReferenceClip, expected: ReferenceClip) -> None:
    for name in ("codes", "hidden", "logits0"):
        np.testing.assert_array_equal(getattr(found.replayed, name), getattr(expected.replayed, name), strict=True)
    np.testing.assert_array_equal(found.depth_logits, expected.depth_logits, strict=True)


def never() -> ReferenceClip:
    raise AssertionError("computed again")


@pytest.mark.parametrize("frames", [0, 1, 5])
def test_the_same_bits_come_back(tmp_path: Path, frames: int) -> None:
    expected = clip(frames)
    first = ReferenceLogits(tmp_path / "a" / "b", MICRO)
    assert first.obtain("key", lambda: expected) is expected
    found = ReferenceLogits(tmp_path / "a" / "b", MICRO).obtain("key", never)
    assert_same(found, expected)
    assert found.logits.shape == (frames, MICRO.codebooks, MICRO.audio_vocab)
    assert not divergence(expected.logits, found.logits, temperature=0.9, top_k=50).kld.any()
    assert [path.suffix for path in (tmp_path / "a" / "b").iterdir()] == [".npz"]


def test_what_it_costs(tmp_path: Path) -> None:
    store = ReferenceLogits(tmp_path, MICRO)
    store.write("key", clip(5))
    assert 0 < store.path("key").stat().st_size - clip_bytes(MICRO, 5) < 2500, "the headers"
    assert clip_bytes(MISO_8B, 60) == pytest.approx(16.8e6, rel=0.01)


def test_a_key_for_all_that_matters(levels: list[OpenLevel]) -> None:
    fine, coarse = levels
    variants: list[tuple[OpenLevel, Any, Any, dict[str, Any]]] = [
        (fine, blocks(2, 3), codes(), SETTINGS),
        (coarse, blocks(2, 3), codes(), SETTINGS),
        (fine, blocks(3, 2), codes(), SETTINGS),
        (fine, blocks(5), codes(), SETTINGS),
        (fine, blocks(2, 4), codes(), SETTINGS),
        (fine, blocks(2, 3), codes(seed=1), SETTINGS),
        (fine, blocks(2, 3), codes(2), SETTINGS),
        (fine, blocks(2, 3), codes(), {**SETTINGS, "exact": True}),
        (fine, blocks(2, 3), codes(), {**SETTINGS, "gpu": None}),
    ]
    keys = [clip_key(*variant) for variant in variants]
    assert len(set(keys)) == len(keys)
    again = clip_key(fine, blocks(2, 3), codes().copy(order="F"), {name: SETTINGS[name] for name in reversed(SETTINGS)})
    assert again == keys[0], "neither the order of settings nor that of memory"
    assert fine.manifest.files[fine.backbone.name].sha256 in keys[0]


def written(tmp_path: Path) -> tuple[ReferenceLogits, Path]:
    store = ReferenceLogits(tmp_path, MICRO)
    store.write("key", clip())
    return store, store.path("key")


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an archive\n" * 50)
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "hello")
    elif kind == "pickle":
        np.savez(path, key=np.array("key"), codes=np.array([{"a": 1}], object))


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "array", "archive", "pickle"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    store, path = written(tmp_path)
    damage(path, kind)
    with pytest.raises(MisoError, match=r"\.npz: not whole, or not written by miso-eval .*: delete it"):
        store.read("key")
    with caplog.at_level(logging.WARNING):
        assert_same(store.obtain("key", clip), clip())
    assert "it is computed again" in caplog.text
    assert_same(store.obtain("key", never), clip())


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    """Wherever it is: either the file is refused or the byte was of no account (a time stamp)."""
    store, path = written(tmp_path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    # All of the first header, the directory at the end, and samples of what lies between.
    places = [*range(300), *range(len(content) - 600, len(content)), *rng.integers(0, len(content), 200)]
    refused = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            found = store.read("key")
        except MisoError:
            refused += 1
        else:
            assert_same(found, clip())
    assert refused > len(places) / 2


def test_another_clip_under_this_name(tmp_path: Path) -> None:
    store, path = written(tmp_path)
    path.rename(store.path("another"))
    with pytest.raises(MisoError, match="holds another clip than its name says: delete it"):
        store.read("another")
    with pytest.raises(FileNotFoundError):
        store.read("key")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", np.zeros((4, 63), np.float32)),
        ("logits0", np.zeros((3, MICRO.audio_vocab), np.float32)),
        ("depth_logits", np.zeros((3, MICRO.codebooks - 1, MICRO.audio_vocab), np.float64)),
        ("codes", np.zeros((3, MICRO.codebooks), np.int32)),
    ],
)
def test_arrays_of_another_model_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    store, path = written(tmp_path)
    with np.load(path) as arrays:
        content = {**arrays, name: value}
    np.savez(path, **content)
    with pytest.raises(MisoError, match=rf"{name} is \w+ \[[\d, ]+\], not \w+ \["):
        store.read("key")


def test_a_full_disk_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ReferenceLogits(tmp_path, MICRO)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with caplog.at_level(logging.WARNING):
        assert_same(store.obtain("key", clip), clip())
    assert "cannot be written" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir()), "nothing is left half written"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MisoError, match=r"cannot be made .*: choose another directory"):
        ReferenceLogits(tmp_path / "file" / "below", MICRO)
