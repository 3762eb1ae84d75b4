"""Which file of a directory is meant, by the names alone; and directories of real files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from miso_gguf.convert.checkpoint.directory import checkpoint_name, shards_of
from miso_gguf.convert.checkpoint.open import open_store
from miso_gguf.core.errors import CheckpointError

INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("model.safetensors", "model.safetensors"),
        ("model.safetensors config.json README.md", "model.safetensors"),
        (f"{INDEX} a.safetensors b.safetensors model.safetensors", INDEX),
        ("model.safetensors pytorch_model.bin ckpt.pt", "model.safetensors"),
        (f"{BIN_INDEX} pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin", BIN_INDEX),
        ("pytorch_model.bin training_args.bin optimizer.pt scheduler.pt rng_state.pth", "pytorch_model.bin"),
        ("model.safetensors mimi.safetensors optimizer.pt training_args.bin ema.pt", "model.safetensors"),
        (
            "model.safetensors optimizer.bin scheduler.bin random_states_0.pkl scaler.pt sampler.bin",
            "model.safetensors",
        ),
        ("finetune.pt", "finetune.pt"),
        ("finetune.pt mimi.safetensors tokenizer.json", "finetune.pt"),
        ("finetune.pt tokenizer-e351c8d8-checkpoint125.safetensors", "finetune.pt"),
        ("finetune.safetensors ema.safetensors", "finetune.safetensors"),
        ("finetune.safetensors finetune_ema.safetensors", "finetune.safetensors"),
        ("step100.ckpt", "step100.ckpt"),
        ("consolidated.00.pth params.json", "consolidated.00.pth"),
        ("ema.pt", "ema.pt"),
        ("ema.pt optimizer.pt", "ema.pt"),
        ("embedding_model.safetensors", "embedding_model.safetensors"),
        ("mimi_voice.pt", "mimi_voice.pt"),
        ("mp_rank_00_model_states.pt bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"),
        ("transformers.safetensors.index.json x.safetensors y.safetensors", "transformers.safetensors.index.json"),
        ("model-00001-of-00002.safetensors model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"),
        ("x-00001-of-00001.pt optimizer.pt", "x-00001-of-00001.pt"),
    ],
)
def test_the_one_that_is_meant(names: str, expected: str) -> None:
    assert checkpoint_name(names.split(), "here") == expected
    assert checkpoint_name(names.split()[::-1], "here") == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "found none. Pass the file itself."),
        ("README.md config.json", "found none."),
        ("optimizer.pt training_args.bin", "found none."),
        ("a.pt b.pt", "found a.pt, b.pt. Pass the file itself."),
        ("step100.ckpt step200.ckpt last.ckpt", "found last.ckpt, step100.ckpt, step200.ckpt."),
        ("a.safetensors.index.json b.bin.index.json", "found a.safetensors.index.json, b.bin.index.json."),
        ("consolidated.00.pth consolidated.01.pth", "found consolidated.00.pth, consolidated.01.pth."),
        ("a.pt x-00001-of-00002.pt x-00002-of-00002.pt", "found a.pt, x-00001-of-00002.pt."),
        (
            "model-00001-of-00003.safetensors model-00003-of-00003.safetensors",
            "1 of 3 shards are missing beside model-00001-of-00003.safetensors: model-00002-of-00003.safetensors. Down",
        ),
        (" ".join(f"{i}.pt" for i in range(20)), "found 0.pt, 1.pt, 10.pt, 11.pt, 12.pt, 13.pt, 14.pt, 15.pt, ...."),
    ],
)
def test_what_only_the_user_knows(names: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint_name(names.split(), "here")
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)


def test_shards_by_their_numbers() -> None:
    names = [f"m-{i:05d}-of-00003.bin" for i in (1, 2, 3)]
    assert [shards_of(name, names, "here") for name in names] == [names] * 3
    for name in ("m.bin", "m-1-of-3.bin", "m-00001-of-00000.bin", "m-00001-of-99999.bin", "m-00001-of-00002.txt"):
        assert shards_of(name, names, "here") == [name]


TENSORS = {name: torch.arange(6.0).reshape(2, 3) + i for i, name in enumerate("abc")}


def check_tensors(path: Path) -> None:
    store = open_store(path)
    assert set(store.shapes) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(store.read(name, 0, 2), tensor.numpy())
    store.close()


def write_shards(directory: Path) -> dict[str, str]:
    owner = {name: f"pytorch_model-{i + 1:05d}-of-00003.bin" for i, name in enumerate(TENSORS)}
    for name, shard in owner.items():
        torch.save({name: TENSORS[name]}, directory / shard)
    return owner


def test_pickled_shards(tmp_path: Path) -> None:
    owner = write_shards(tmp_path)
    check_tensors(tmp_path)
    check_tensors(tmp_path / owner["b"])
    (tmp_path / BIN_INDEX).write_text(json.dumps({"weight_map": owner}))
    check_tensors(tmp_path)
    check_tensors(tmp_path / BIN_INDEX)
    (tmp_path / owner["b"]).unlink()
    with pytest.raises(
        CheckpointError, match=r"1 of its 3 shards are missing beside it: pytorch_model-00002-of-00003\.bin"
    ):
        open_store(tmp_path)
    (tmp_path / BIN_INDEX).unlink()
    for place in (tmp_path, tmp_path / owner["c"]):
        with pytest.raises(
            CheckpointError, match=r"1 of 3 shards are missing beside .*: pytorch_model-00002-of-00003\.b"
        ):
            open_store(place)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    owner = write_shards(tmp_path)
    torch.save({"a": TENSORS["a"]}, tmp_path / owner["b"])
    with pytest.raises(
        CheckpointError, match=r"00002-of-00003\.bin: tensor a is in pytorch_model-00001-of-00003\.bin too"
    ):
        open_store(tmp_path)
