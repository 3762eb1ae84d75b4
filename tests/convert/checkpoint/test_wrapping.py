"""Weights under whatever trainers and libraries put around them: the same tensors, or a question."""

import argparse
import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from builders import MICRO, Inputs, make_inputs
from miso_gguf.convert.checkpoint.layouts import HUGGING_FACE, UPSTREAM, anchors
from miso_gguf.convert.checkpoint.open import open_checkpoint, open_store
from miso_gguf.convert.checkpoint.wrapping import is_buffer, unwrap
from miso_gguf.convert.codec import Codec
from miso_gguf.convert.mimi.weights import ANCHORS
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.mimi import MIMI, mimi_shapes
from miso_gguf.models.tensors import checkpoint_shapes

State = dict[str, Any]
rng = np.random.default_rng(5)
WEIGHTS: Mapping[str, NDArray[np.float32]] = {
    name: rng.standard_normal(shape, np.float32) for name, shape in checkpoint_shapes(MICRO).items()
}
STATE: State = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
EMA: State = {name: tensor * 2 for name, tensor in STATE.items()}


def prefixed(prefix: str, state: State = STATE) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


OPTIMIZER = {
    "state": {i: {"exp_avg": tensor, "step": torch.tensor(3.0)} for i, tensor in enumerate(STATE.values())},
    "param_groups": [{"lr": 1e-4, "params": [0, 1]}],
}
BY_NAME = {"exp_avg": dict(STATE), "exp_avg_sq": dict(STATE)}
ARGS = argparse.Namespace(lr=1e-4, out=Path("runs"), model=argparse.Namespace(flavor="miso"))

WRAPPED: dict[str, tuple[object, str]] = {
    "plain": (STATE, ""),
    "state_dict": ({"state_dict": STATE}, "state_dict"),
    "model_state_dict": ({"model_state_dict": STATE, "epoch": 3, "loss": torch.tensor(0.5)}, "model_state_dict"),
    "model": ({"model": STATE}, "model"),
    "fine-tuning script": ({"model": STATE, "args": ARGS}, "model"),
    "net": ({"net": STATE, "optimizer": OPTIMIZER}, "net"),
    "params": ({"params": STATE, "lr_scheduler": {"last_lr": [1.0]}}, "params"),
    "weights": ({"weights": STATE}, "weights"),
    "module": ({"module": STATE, "optimizer": OPTIMIZER, "dp_world_size": 1}, "module"),
    "two deep": ({"state_dict": {"model": STATE}}, "state_dict.model"),
    "three deep": ({"a": {"b": {"c": STATE}}}, "a.b.c"),
    "in a list": ([{"model": STATE}, 3], "0.model"),
    "in a tuple": ((STATE, {"epoch": 1}), "0"),
    "DDP": (prefixed("module."), "module"),
    "compiled": (prefixed("_orig_mod."), "_orig_mod"),
    "compiled DDP": (prefixed("module._orig_mod."), "module._orig_mod"),
    "compiled in a model": ({"model": prefixed("_orig_mod.")}, "model._orig_mod"),
    "FSDP": (
        {name.replace(".", "._fsdp_wrapped_module.", 1): tensor for name, tensor in prefixed("m.").items()},
        "m._fsdp_wrapped_module",
    ),
    "wrappers inside": (
        {name.replace(".layers.0.", ".layers.0._checkpoint_wrapped_module."): t for name, t in STATE.items()},
        "",
    ),
    "compiled parts": ({name.replace("backbone.", "backbone._orig_mod."): t for name, t in STATE.items()}, ""),
    "lightning": (
        {
            "pytorch-lightning_version": "2.4", "state_dict": prefixed("model."), "epoch": 1, "loops": {"x": 1},
            "optimizer_states": [OPTIMIZER], "lr_schedulers": [], "hyper_parameters": ARGS, "callbacks": {"a": 1},
        },
        "state_dict.model",
    ),
    "states by name": ({"model": STATE, "optimizer": BY_NAME}, "model"),
    "at the top beside states": ({**STATE, "optimizer": OPTIMIZER, "step": torch.tensor(3)}, ""),
    "the same twice": ({"model": STATE, "state_dict": STATE}, "model"),
    "averaged": ({"n_averaged": torch.tensor(7), **prefixed("module.")}, "module"),
    "with a part of another model": ({"model": STATE, "teacher": {"lm_head.weight": torch.ones(2)}}, "model"),
    "merged peft": (prefixed("base_model.model."), "base_model.model"),
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "spec.json"
    path.write_text(json.dumps(asdict(MICRO)))
    return path


def check_weights(path: Path, config: Path, key: str | None = None, factor: float = 1) -> None:
    with open_checkpoint(path, config, key) as checkpoint:
        assert checkpoint.spec == MICRO
        for name, array in WEIGHTS.items():
            np.testing.assert_array_equal(checkpoint.read(name, 0, len(array)), factor * array)


def save(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("how", WRAPPED)
def test_the_weights_inside(tmp_path: Path, config: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    state, prefix = WRAPPED[how]
    path = save(state, tmp_path / "x.pt")
    check_weights(path, config)
    records = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(records) <= 1
    assert (f"{path}: the weights are under '{prefix}'" in "".join(records)) == bool(prefix)


@pytest.mark.parametrize("state", ["optimizer.exp_avg", "optim_state", "momentum_buffer", "grads"])
def test_a_trainers_state_is_no_copy_of_the_weights(tmp_path: Path, config: Path, state: str) -> None:
    """Though it has their names, and other numbers."""
    flat = STATE | prefixed(f"{state}.", EMA)
    save_file(flat, tmp_path / "model.safetensors")
    check_weights(tmp_path / "model.safetensors", config)


def test_the_same_bytes_in_another_shape_are_another_tensor(tmp_path: Path) -> None:
    name = "backbone.layers.0.attn.q_proj.weight"
    state = STATE | {f"module.{name}": STATE[name].reshape(-1)}
    path = save(state, tmp_path / "ckpt.pt")
    with closing(open_store(path)) as store, pytest.raises(CheckpointError, match=f"{name} and module.{name} are both"):
        unwrap(store, path, anchors())


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.module.", "model.net.", "backbone.", "optimized_model."]
)
def test_prefixes_in_safetensors(tmp_path: Path, config: Path, prefix: str) -> None:
    save_file(prefixed(prefix), tmp_path / "model.safetensors")
    check_weights(tmp_path, config)


@pytest.mark.parametrize("name", ["model.safetensors", "x.pt", "x.bin", "x.ckpt", "x", "x.pth", "x.index"])
def test_the_type_is_what_the_first_bytes_say(tmp_path: Path, config: Path, name: str) -> None:
    path = tmp_path / name
    for _ in range(2):
        check_weights(save({"model": STATE}, path), config)
        save_file(STATE, path)
        check_weights(path, config)
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    check_weights(path, config)


def test_an_index_of_any_name(tmp_path: Path, config: Path) -> None:
    save_file(STATE, tmp_path / "all")
    index = tmp_path / "weights.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(STATE, "all")}, indent=2))
    check_weights(index, config)


TWO: dict[str, tuple[object, str, str]] = {
    "ema": ({"model": STATE, "ema": EMA}, "model", "ema"),
    "state_dict_ema": ({"state_dict": STATE, "state_dict_ema": EMA}, "state_dict", "state_dict_ema"),
    "lightning": ({"state_dict": {**prefixed("model."), **prefixed("ema_model.", EMA)}},
                  "state_dict.model", "state_dict.ema_model"),
    "flat": ({**prefixed("model."), **prefixed("model_ema.", EMA)}, "model", "model_ema"),
    "generator": ({"generator": STATE, "ema": {"module": EMA}}, "generator", "ema.module"),
    "deepspeed": ({"module": STATE, "ema": EMA}, "module", "ema"),
    "at the top": ({**STATE, **prefixed("ema_model.", EMA)}, ".", "ema_model"),
    "inside the other": ({"model": {**STATE, "ema": EMA}}, "model", "model.ema"),
    "callbacks": ({"state_dict": STATE, "callbacks": {"EMA": {"weights": EMA}}}, "state_dict", "callbacks.EMA.weights"),
}  # fmt: skip


@pytest.mark.parametrize("how", TWO)
def test_of_two_the_user_chooses(tmp_path: Path, config: Path, how: str) -> None:
    state, first, second = TWO[how]
    path = save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, config)
    assert str(caught.value) == (
        f"{path}: weights are in 2 places ({first}, {second}): say which is meant with --key NAME"
    )
    check_weights(path, config, first)
    check_weights(path, config, second, 2)
    if "." in second and first != "model":
        check_weights(path, config, second.split(".")[0] if how != "lightning" else second, 2)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, config, "other")
    assert str(caught.value) == f"{path}: --key other: weights are in: {first}, {second}"


def test_a_key_where_there_is_nothing_to_choose(tmp_path: Path, config: Path) -> None:
    path = save({"model": STATE}, tmp_path / "x.pt")
    for key in ("model", "model."):
        check_weights(path, config, key)
    for key, where in (("ema", "model"), (".", "model"), ("mod", "model")):
        with pytest.raises(CheckpointError, match=f"--key {key}: weights are in: {where}$"):
            open_checkpoint(path, config, key)
    check_weights(save(STATE, tmp_path / "y.pt"), config, ".")
    with pytest.raises(CheckpointError, match=r"z\.pt: is another model: its 1 tensors are called 'a'"):
        open_checkpoint(save({"a": torch.ones(2)}, tmp_path / "z.pt"), config, "x")


BUFFERS = """
backbone_causal_mask decoder_causal_mask causal_mask backbone.layers.0.attn.causal_mask backbone.pos_embeddings.theta
backbone.layers.1.attn.pos_embeddings.cache decoder.layers.0.attn.rope.theta decoder.rope.cache freqs_cis
backbone.rotary_emb.inv_freq backbone.layers.0.attn.kv_cache.k_cache decoder.layers.0.attn.kv_cache.v_cache
backbone.layers.0.attn.kv_cache.cache_pos backbone.layers.0.mlp._extra_state norm.num_batches_tracked position_ids
cos_cached sin_cached n_averaged backbone.freqs_cos
"""


@pytest.mark.parametrize("buffer", BUFFERS.split())
def test_buffers_are_left_out_with_a_note(
    tmp_path: Path, config: Path, caplog: pytest.LogCaptureFixture, buffer: str
) -> None:
    path = save({"model": {**STATE, buffer: torch.ones(3, 3)}}, tmp_path / "x.pt")
    check_weights(path, config)
    assert caplog.messages == [f"{path}: the weights are under 'model'; left out: {buffer}"]


def test_no_weight_is_a_buffer() -> None:
    for spec in FLAVORS.values():
        names = {source.name for layout in (UPSTREAM, HUGGING_FACE) for source in layout.sources(spec, ()).values()}
        assert not [name for name in (*names, *mimi_shapes(MIMI)) if is_buffer(name)]


@pytest.mark.parametrize(
    "name", ["backbone.layers.0.attn.q_proj.bias", "backbone.layers.0.attn.q_proj.lora_a", "extra.1"]
)
def test_what_is_really_unknown_stays_an_error(tmp_path: Path, config: Path, name: str) -> None:
    path = save({"model": {**STATE, name: torch.ones(2)}, "optimizer": OPTIMIZER}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=rf"\(0 missing, 1 unknown, 0 mis-shaped tensors\):\n  unknown   {name} \[2\]"
    ):
        open_checkpoint(path, config)


def test_what_is_missing_is_named_without_its_wrapping(tmp_path: Path, config: Path) -> None:
    some = {name: tensor for name, tensor in prefixed("module.").items() if not name.endswith("audio_head")}
    with pytest.raises(
        CheckpointError, match=r"\(1 missing, 0 unknown, 0 mis-shaped tensors\):\n  missing   audio_head"
    ):
        open_checkpoint(save(some, tmp_path / "x.pt"), config)


def test_two_names_for_one_tensor(tmp_path: Path, config: Path) -> None:
    head, there = "backbone.norm.scale", "backbone._orig_mod.norm.scale"
    path = save({**STATE, there: STATE[head] + 1}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"{head} and {there} are both {head}: remove the one that is not meant"):
        open_checkpoint(path, config)
    check_weights(save({**STATE, there: STATE[head]}, path), config)  # the same bytes


def test_every_layout_is_found_by_its_anchors() -> None:
    for layout in (UPSTREAM, HUGGING_FACE):
        assert set(layout.anchors) <= {source.name for source in layout.sources(MICRO, ()).values()}
    assert set(ANCHORS[0]) <= set(mimi_shapes(MIMI))
    assert anchors() == [HUGGING_FACE.anchors, UPSTREAM.anchors]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("micro"), MICRO)


@pytest.mark.parametrize("how", ["model", "best_state.model", "module", "codec._orig_mod"])
def test_a_codec_may_be_wrapped_as_well(
    tmp_path: Path, inputs: Inputs, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with closing(open_store(inputs.mimi)) as store:
        state = {name: torch.from_numpy(store.read(name, 0, shape[0])) for name, shape in store.shapes.items() if shape}
    path = save({f"{how}.{name}": tensor for name, tensor in state.items()}, tmp_path / "mimi.pt")
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        plain, codec = Codec(inputs.mimi, checkpoint), Codec(path, checkpoint)
        assert codec.spec == plain.spec
        found, expected = (one._weights(lambda _: True) for one in (codec, plain))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], array) for name, array in expected.items())
        assert caplog.messages == [f"{path}: the weights are under '{how}'"]
        with pytest.raises(
            CheckpointError, match=r"weights are in 2 places \(a, b\): save the one that is meant alone"
        ):
            Codec(save({"a": state, "b": {name: t + 1 for name, t in state.items()}}, path), checkpoint)


def test_many_copies_are_refused_in_no_time(tmp_path: Path) -> None:
    names = [f"{i}.{name}" for i in range(3000) for name in UPSTREAM.anchors]

    class Store:
        shapes = dict.fromkeys(names, (1,))
        left_out = ()

    with pytest.raises(CheckpointError, match=r"weights are in 3000 places \(0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\)"):
        unwrap(Store(), tmp_path, anchors())  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["a line\nand another", "a prompt " * 100, "\x1b[2J"], ids=["lines", "long", "control"])
def test_what_lies_beside_weights_may_have_any_keys(tmp_path: Path, key: str) -> None:
    cache = {key: STATE["projection.weight"], f"{key}!": STATE["projection.weight"]}
    torch.save({"model": STATE, "cache": cache}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt", make_inputs(tmp_path, MICRO).config) as checkpoint:
        assert set(checkpoint.store.shapes) == set(STATE)
    torch.save({"model": {**STATE, key: STATE["projection.weight"]}}, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="1 unknown") as caught:
        open_checkpoint(tmp_path / "y.pt", tmp_path / "spec.json")
    assert all(line.isprintable() for line in str(caught.value).splitlines())
