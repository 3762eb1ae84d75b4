"""Zeroed weights: which rows count, what is refused, and that a plan finds what the pass would."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from builders import MICRO, Built
from miso_gguf.convert.checkpoint import zeros as module
from miso_gguf.convert.checkpoint.hf_layout import hf_sources
from miso_gguf.convert.checkpoint.open import Checkpoint, open_checkpoint
from miso_gguf.convert.checkpoint.zeros import ZeroRows, is_refused, refuse_arrays, refuse_sampled, zero_rows
from miso_gguf.convert.rows import RowReader
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.mimi import TINY_MIMI, codebook_names
from miso_gguf.models.tensors import gguf_tensors

F32Array = NDArray[np.float32]
Weights = dict[str, F32Array]
TEXT = "text_embeddings.weight"


@pytest.fixture
def weights(built: Built) -> Weights:
    found: Weights = load_file(built.inputs(MICRO).checkpoint)
    return found


@pytest.fixture
def codec(built: Built) -> Weights:
    found: Weights = load_file(built.inputs(MICRO).mimi)
    return found


def opened(weights: Weights, directory: Path) -> Checkpoint:
    save_file(weights, directory / "model.safetensors")
    (directory / "spec.json").write_text(json.dumps(asdict(MICRO)))
    return open_checkpoint(directory / "model.safetensors", directory / "spec.json")


def read_all(checkpoint: Checkpoint) -> str:
    """What a whole pass says."""
    reader = RowReader(checkpoint)
    for tensor in gguf_tensors(checkpoint.spec):
        for start, stop in reader.chunks(tensor):
            reader.read(tensor, start, stop)
    return said(reader.refuse_zeros)


def said(check: object, *arguments: object) -> str:
    assert callable(check)
    try:
        check(*arguments)
    except CheckpointError as error:
        return str(error)
    return ""


@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.sampled_from([0.0, -0.0, 1.0, np.nan])
    )
)
def test_zero_rows_are_those_without_another_value(array: F32Array) -> None:
    expected = [i for i, row in enumerate(array.tolist()) if all(value == 0 for value in row)]
    assert zero_rows(array, array.shape).tolist() == expected
    assert zero_rows(array[None], (1, *array.shape)).tolist() == expected
    vector = array.reshape(-1)
    assert zero_rows(vector, vector.shape).tolist() == ([0] if all(value == 0 for value in vector.tolist()) else [])


@pytest.mark.parametrize(
    ("zero", "rows", "refused"),
    [
        (0, 1, False), (1, 1, True), (1, 2, False), (15, 20, False), (16, 20, True), (20, 20, True), (15, 15, True),
        (16, 1600, False), (17, 1600, True), (256, 128256, False), (1282, 128256, False), (1283, 128256, True),
    ],
)  # fmt: skip
def test_how_much_is_too_much(zero: int, rows: int, refused: bool) -> None:
    assert is_refused(zero, rows) == refused


def test_whole_weights_are_not_refused(weights: Weights, tmp_path: Path) -> None:
    with opened(weights, tmp_path) as checkpoint:
        refuse_sampled(checkpoint)
        assert read_all(checkpoint) == ""


def test_a_hole_that_begins_inside_the_tensor_before(weights: Weights, tmp_path: Path) -> None:
    """One of 33 sampled rows of a table is nothing to wonder at, beside a tensor that is all zero it is."""
    with opened(weights, tmp_path) as checkpoint:
        names = sorted(checkpoint.shapes, key=checkpoint.position)
    behind = names[names.index(TEXT) - 1]
    weights[TEXT][:20] = 0
    weights[behind][:] = 0
    with opened(weights, tmp_path) as checkpoint:
        message = said(refuse_sampled, checkpoint)
    assert f"{behind}: all zero" in message
    assert f"{TEXT}: rows 0..19 (1.95 %) are zero" in message


@pytest.mark.parametrize(
    ("name", "rows", "line"),
    [
        (TEXT, [slice(None)], f"{TEXT}: all zero"),
        (TEXT, [slice(512, None)], f"{TEXT}: rows 512..1023 (50 %) are zero"),
        ("audio_embeddings.weight", [slice(2000, 3000)], "audio_embeddings.weight: rows 2000..2999 (24.3 %) are zero"),
        ("audio_head", [slice(3, 5)], "audio_head: rows 96..159 (28.6 %) are zero"),
        ("projection.weight", [slice(None)], "projection.weight: all zero"),
        ("backbone.norm.scale", [slice(None)], "backbone.norm.scale: all zero"),
        ("backbone.layers.0.attn.q_proj.weight", [slice(32, None)], "q_proj.weight: rows 32..63 (50 %) are zero"),
    ],
)  # fmt: skip
def test_plan_and_pass_say_the_same(
    weights: Weights, tmp_path: Path, name: str, rows: Iterable[slice], line: str
) -> None:
    for part in rows:
        weights[name][part] = -0.0
    with opened(weights, tmp_path) as checkpoint:
        found = said(refuse_sampled, checkpoint)
        assert len(found.splitlines()) == 2
        assert found.endswith(line)
        assert found.startswith(f"{tmp_path / 'model.safetensors'}: 1 tensor is zero, wholly or in bulk")
        assert "--allow-zero" in found.splitlines()[0]
        assert read_all(checkpoint) == found


def test_what_a_plan_overlooks_the_pass_finds(weights: Weights, tmp_path: Path) -> None:
    for start in (100, 200, 300, 400):
        weights[TEXT][start : start + 5] = 0
    weights[TEXT][7] = 0
    with opened(weights, tmp_path) as checkpoint:
        refuse_sampled(checkpoint)
        line = f"  {TEXT}: rows 7, 100..104, 200..204, ... (2.05 %) are zero"
        assert read_all(checkpoint).splitlines()[1:] == [line]
        assert said(RowReader(checkpoint, allow_zero=True).refuse_zeros) == ""


def test_rows_in_anothers_layout(weights: Weights, tmp_path: Path) -> None:
    """Whole heads are read there; tensors have their upstream names in messages, as they have elsewhere."""
    weights["backbone.layers.1.attn.k_proj.weight"][:] = 0
    saved = {source.name: weights[name] for name, source in hf_sources(MICRO).items()}
    with opened(saved, tmp_path) as checkpoint:
        found = said(refuse_sampled, checkpoint)
        assert found.splitlines()[1:] == ["  backbone.layers.1.attn.k_proj.weight: all zero"]
        assert read_all(checkpoint) == found


def test_all_are_named_and_the_borders_of_a_hole_counted(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the file: `audio_head` lies behind `audio_embeddings`, both before the backbone."""
    weights["audio_head"][:] = 0
    weights["audio_embeddings.weight"][-50:] = 0
    weights["backbone.layers.0.attn.k_proj.weight"][:16] = 0
    monkeypatch.setattr(module, "_TABLE_SAMPLES", 3)
    with opened(weights, tmp_path) as checkpoint:
        assert said(refuse_sampled, checkpoint).splitlines()[1:] == [
            "  audio_embeddings.weight: rows 4070..4119 (1.21 %) are zero",
            "  audio_head: all zero",
            "  backbone.layers.0.attn.k_proj.weight: rows 0..15 (50 %) are zero",
        ]


def test_the_same_rows_twice_count_once(weights: Weights, tmp_path: Path) -> None:
    with opened(weights, tmp_path) as checkpoint:
        zeros = ZeroRows(checkpoint)
        for _ in range(4):
            zeros.look(TEXT, 1000, np.zeros((5, MICRO.backbone.embed_dim), np.float32))
        zeros.refuse()
        for start in range(5):
            zeros.look(TEXT, 10 + 5 * start, np.zeros((5, MICRO.backbone.embed_dim), np.float32))
        assert "rows 10..34, 1000..1004 (2.93 %) are zero" in said(zeros.refuse)


BOOKS = [f"{name}.embedding_sum" for name in codebook_names(TINY_MIMI)]
CONV, ADDED = "encoder.model.0.conv.conv.weight", "decoder.model.3.block.1.conv.conv.weight"


@pytest.mark.parametrize(
    ("zeroed", "line"),
    [
        ({CONV: slice(None)}, f"{CONV}: all zero"),
        ({CONV: slice(1, None)}, ""),
        ({CONV.replace("weight", "bias"): slice(None)}, ""),
        ({BOOKS[3]: slice(None)}, f"{BOOKS[3]}: all zero"),
        ({BOOKS[3]: slice(300)}, f"{BOOKS[3]}: rows 0..299 (58.6 %) are zero"),
        ({BOOKS[3]: slice(256)}, ""),
        ({ADDED: slice(None)}, f"{ADDED}: all zero"),
    ],
)
def test_a_codec(codec: Weights, zeroed: dict[str, slice], line: str) -> None:
    for name, part in zeroed.items():
        codec[name][part] = 0
    assert said(refuse_arrays, codec, BOOKS, "mimi").splitlines()[1:] == ([f"  {line}"] if line else [])


def test_a_codec_may_have_nothing_that_is_only_added(codec: Weights) -> None:
    """The tiny model's has: a sum with zeros is the signal."""
    for name, array in codec.items():
        if ".block." in name or "_transformer." in name:
            array[:] = 0
    refuse_arrays(codec, BOOKS, "mimi")


def test_a_codec_that_was_never_trained_is_said_to_be_silent(codec: Weights, caplog: pytest.LogCaptureFixture) -> None:
    for name in BOOKS:
        codec[name][:] = 0
    refuse_arrays(codec, BOOKS, "mimi")
    (line,) = caplog.messages
    assert line == "mimi: the codec was never trained, all of its codebooks are zero: nothing will be heard"
    # What broke off takes the counts along.
    codec[BOOKS[3].replace("embedding_sum", "cluster_usage")][5:] = 0
    assert len(said(refuse_arrays, codec, BOOKS, "mimi").splitlines()) == 1 + len(BOOKS)
