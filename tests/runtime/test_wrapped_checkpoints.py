"""What trainers make of upstream's checkpoint, converted and spoken: all codes are the PyTorch reference's."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from speaking import Codes, load_engine, prompt_blocks, reference_codes, reference_prompt, say, text_ids

from builders import Inputs, make_bundle, tensor_bytes
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import F32
from miso_gguf.models.manifest import read_manifest
from miso_gguf.models.reference import Reference, prompt_rows
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.utterance import Utterance

TEXT = "One two three, said the tiny model."
FRAMES = 12
State = dict[str, torch.Tensor]


def _saved(make: Callable[[State], Any], name: str = "ckpt.pt") -> Callable[[State, Path], Path]:
    def write(state: State, directory: Path) -> Path:
        torch.save(make(state), directory / name)
        return directory / name

    return write


def _prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _bin_shards(state: State, directory: Path) -> Path:
    owner = {name: f"pytorch_model-{i % 3 + 1:05d}-of-00003.bin" for i, name in enumerate(state)}
    for shard in set(owner.values()):
        torch.save({name: state[name] for name in state if owner[name] == shard}, directory / shard)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": owner}))
    return directory


WRITERS: dict[str, Callable[[State, Path], Path]] = {
    "fine-tuning script": _saved(lambda state: {"model": state, "args": argparse.Namespace(lr=1e-4)}),
    "torch.save as safetensors": _saved(lambda state: {"model_state_dict": state}, "model.safetensors"),
    "compiled DDP": _saved(lambda state: _prefixed("module._orig_mod.", state)),
    "Lightning": _saved(
        lambda state: {"state_dict": _prefixed("model.", state), "optimizer_states": [state]}, "last.ckpt"
    ),
    "after setup_caches": _saved(
        lambda state: {**state, "backbone_causal_mask": torch.ones(4, 4), "decoder_causal_mask": torch.ones(4, 4)}
    ),
    "a .bin in shards": _bin_shards,
}


QUICK = ("fine-tuning script", "a .bin in shards")


@pytest.fixture(scope="module")
def expected(engine: Engine, reference: Reference) -> Codes:
    """What the reference says, with the weights as they were before anybody wrapped them."""
    codes = reference_codes(reference, reference_prompt(engine, TEXT), FRAMES, temperature=0)
    assert len(np.unique(codes, axis=0)) > FRAMES / 2, "a model that repeats itself proves little"
    return codes


@pytest.mark.parametrize("how", [how if how in QUICK else pytest.param(how, marks=pytest.mark.long) for how in WRITERS])
def test_wrapped_weights_say_the_same(
    inputs: Inputs, bundle: Path, weights: State, expected: Codes, tmp_path: Path, how: str
) -> None:
    checkpoint = WRITERS[how](weights, tmp_path)
    made = make_bundle(replace(inputs, checkpoint=checkpoint), tmp_path / "bundle", [F32], threads=1)
    assert made.fingerprint == read_manifest(bundle).fingerprint
    for name in (name for name in made.files if name.endswith(".gguf")):
        assert tensor_bytes(tmp_path / "bundle" / name) == tensor_bytes(bundle / name)
    with load_engine(tmp_path / "bundle", exact=True) as engine:
        (found,) = say(engine, Utterance(prompt_blocks(engine.prompts, TEXT), FRAMES, temperature=0))
    np.testing.assert_array_equal(found, expected)


def test_an_added_token(inputs: Inputs, weights: State, tmp_path: Path) -> None:
    """Two more rows of text embeddings, one of them a token: no config is needed, and the token is spoken."""
    more = 2
    rows = torch.from_numpy(np.random.default_rng(1).standard_normal((more, TINY.backbone.embed_dim), np.float32))
    state = {**weights, "text_embeddings.weight": torch.cat([weights["text_embeddings.weight"], 0.5 * rows])}
    torch.save({"model": state}, tmp_path / "ckpt.pt")
    tokenizer = json.loads(inputs.tokenizer.read_text("utf-8"))
    size = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    assert size == TINY.text_vocab
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": size, "content": "<laugh>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    changed = Inputs(tmp_path / "ckpt.pt", inputs.mimi, tmp_path / "tokenizer.json", None)  # type: ignore[arg-type]
    spec = replace(TINY, text_vocab=TINY.text_vocab + more)
    assert make_bundle(changed, tmp_path / "bundle", [F32], threads=1).model_spec == spec
    with load_engine(tmp_path / "bundle", exact=True) as engine:
        # The same text with the token in it, whatever the tokenizer makes of its name.
        ids = text_ids(engine.prompts.text(TEXT, 0))
        ids.insert(3, size)
        rows_of_ids = np.full((len(ids), TINY.codebooks + 1), -1, np.int64)
        rows_of_ids[:, -1] = ids
        (found,) = say(engine, Utterance([Block(rows_of_ids)], FRAMES, temperature=0))
    reference = Reference(spec, state.__getitem__)
    np.testing.assert_array_equal(found, reference_codes(reference, prompt_rows(spec, [], ids), FRAMES, temperature=0))
