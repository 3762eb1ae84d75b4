"""One entry of the table is all that a layout takes."""

import ast
import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from builders import MICRO
from miso_gguf.convert.checkpoint import layouts
from miso_gguf.convert.checkpoint.layouts import HUGGING_FACE, UPSTREAM, Layout, codec_prefix, layout_of
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.tensor_store import TensorSource
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.spec import ModelSpec
from miso_gguf.models.tensors import checkpoint_shapes

CONVERT = Path(__file__).parents[3] / "convert"
Q = "backbone.layers.0.attn.q_proj.weight"


def _sources(spec: ModelSpec, _names: Collection[str]) -> dict[str, TensorSource]:
    heads = {name: spec.backbone.head_dim for name in checkpoint_shapes(spec) if name == Q}
    return {name: TensorSource(f"theirs.{name}", heads.get(name)) for name in checkpoint_shapes(spec)}


def _upside_down(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    return rows.reshape(-1, head_dim, rows.shape[1])[:, ::-1].reshape(rows.shape)


THEIRS = Layout(
    name="their",
    has_tensors=lambda names: any(name.startswith("theirs.") for name in names),
    has_config=lambda config: "their_model" in config,
    spec_from_config=lambda config: ModelSpec.from_dict(config["their_model"]),
    sources=_sources,
    anchors=tuple(f"theirs.{name}" for name in UPSTREAM.anchors),
    config_name="theirs.json",
    unpermuted=_upside_down,
    is_ignored=lambda name: name == "optimiser.step" or name.startswith("ear."),
    codec_prefix="ear.",
)


@pytest.fixture
def weights() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in checkpoint_shapes(MICRO).items()}


@pytest.fixture
def checkpoint(weights: dict[str, NDArray[np.float32]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a layout that is new; its query projections lie upside down within each head."""
    monkeypatch.setattr(layouts, "LAYOUTS", (THEIRS, *layouts.LAYOUTS))
    saved = {f"theirs.{name}": array for name, array in weights.items()}
    saved[f"theirs.{Q}"] = np.ascontiguousarray(_upside_down(weights[Q], MICRO.backbone.head_dim))
    extra = {"ear.weight": np.zeros((2, 3), np.float32), "optimiser.step": np.zeros(1, np.float32)}
    save_file({**saved, **extra}, tmp_path / "model.safetensors")
    (tmp_path / "theirs.json").write_text(json.dumps({"their_model": asdict(MICRO)}))
    return tmp_path


def test_a_new_entry_is_read(checkpoint: Path, weights: dict[str, NDArray[np.float32]]) -> None:
    with open_checkpoint(checkpoint) as found:
        assert (found.layout, found.spec) == (THEIRS, MICRO)
        assert found.codec_shapes == {"ear.weight": (2, 3)}
        assert found.row_step(Q) == MICRO.backbone.head_dim
        for name, array in weights.items():
            np.testing.assert_array_equal(found.read(name, 0, len(array)), array)
    assert codec_prefix(["ear.weight"]) == "ear."


def test_what_it_does_not_know_is_named(checkpoint: Path) -> None:
    save_file(
        {"theirs.decoder.more": np.zeros((2, 3), np.float32), "optimiser.step": np.zeros(1, np.float32)},
        checkpoint / "b",
    )
    with pytest.raises(CheckpointError, match=r"missing   theirs\.text_embeddings\.weight") as caught:
        open_checkpoint(checkpoint / "b")
    assert "unknown   theirs.decoder.more [2, 3]" in str(caught.value)
    assert "step" not in str(caught.value)


def test_its_config_is_needed_and_works_beside_other_layouts(
    checkpoint: Path, weights: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    config = (checkpoint / "theirs.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(
        CheckpointError, match=r"theirs\.json: no such file: a checkpoint in their layout needs its theirs\.json beside"
    ):
        open_checkpoint(checkpoint)
    save_file(weights, tmp_path / "upstream.safetensors")
    with open_checkpoint(tmp_path / "upstream.safetensors", config) as found:
        assert (found.layout, found.spec) == (UPSTREAM, MICRO)


def test_the_two_that_there_are() -> None:
    upstream = checkpoint_shapes(MICRO)
    assert layout_of(upstream) is UPSTREAM
    assert layout_of(["lm_head.weight", "depth_decoder.model.norm.weight"]) is HUGGING_FACE
    assert codec_prefix(upstream) is None
    assert codec_prefix(["lm_head.weight", "codec_model.x"]) == "codec_model."


def test_nobody_else_asks_for_a_layout() -> None:
    """The codec has schemes of its own: Hugging Face's Mimi, alone or inside."""
    found = set()
    for path in CONVERT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = {alias.name for alias in node.names}
                if module.endswith("hf_layout") or "hf_layout" in names:
                    found |= {(path.relative_to(CONVERT).as_posix(), name) for name in names}
    assert found == {
        ("checkpoint/layouts.py", "hf_layout"),
        ("codec.py", "check_mimi_config"),
        ("mimi/weights.py", "unpermute_rows"),
    }
