"""Whole checkpoints: every layout gives the same model, and everything that does not fit is said at once."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from builders import MICRO, make_inputs
from miso_gguf.convert.checkpoint import open as module
from miso_gguf.convert.checkpoint.hf_layout import hf_sources
from miso_gguf.convert.checkpoint.layouts import HUGGING_FACE, UPSTREAM
from miso_gguf.convert.checkpoint.open import Checkpoint, open_checkpoint, open_store
from miso_gguf.convert.checkpoint.pickle import PickleFile
from miso_gguf.convert.checkpoint.safetensors import SafetensorsFile
from miso_gguf.convert.checkpoint.sharded import ShardedFiles
from miso_gguf.convert.checkpoint.tokenizer import read_tokenizer
from miso_gguf.convert.imatrix import read_imatrix
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.flavors import CSM_1B, MISO_8B, TINY
from miso_gguf.models.spec import ModelSpec, TransformerSpec
from miso_gguf.models.tensors import checkpoint_shapes

F32Array = NDArray[np.float32]
Weights = dict[str, F32Array]

SPEC = replace(
    MICRO, decoder=TransformerSpec(layers=2, embed_dim=32, heads=4, kv_heads=2, head_dim=16, ffn_dim=64), text_vocab=20
)
INDEX = "model.safetensors.index.json"


def random_weights(spec: ModelSpec = SPEC) -> Weights:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in checkpoint_shapes(spec).items()}


WEIGHTS = random_weights()


def write_spec(directory: Path, spec: ModelSpec = SPEC) -> Path:
    path = directory / "spec.json"
    path.write_text(json.dumps(asdict(spec)))
    return path


def hf_config(spec: ModelSpec = SPEC) -> dict[str, Any]:
    def section(t: TransformerSpec) -> dict[str, Any]:
        rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
        return {
            "num_codebooks": spec.codebooks, "vocab_size": spec.audio_vocab, "hidden_size": t.embed_dim,
            "intermediate_size": t.ffn_dim, "num_hidden_layers": t.layers, "num_attention_heads": t.heads,
            "num_key_value_heads": t.kv_heads, "head_dim": t.head_dim,
            "rope_parameters": {**rope, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        }  # fmt: skip

    depth = {**section(spec.decoder), "backbone_hidden_size": spec.backbone.embed_dim}
    return {
        **section(spec.backbone), "model_type": "csm", "text_vocab_size": spec.text_vocab,
        "depth_decoder_config": depth,
    }  # fmt: skip


def hf_weights(weights: Mapping[str, F32Array] = WEIGHTS, spec: ModelSpec = SPEC) -> Weights:
    """The weights under Hugging Face names, queries and keys permuted as CSM's published conversion does it."""
    result = {}
    for name, source in hf_sources(spec).items():
        array = weights[name]
        if name.endswith(("attn.q_proj.weight", "attn.k_proj.weight")):
            head_dim = (spec.backbone if name.startswith("backbone") else spec.decoder).head_dim
            array = array.reshape(-1, head_dim // 2, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        result[source.name] = np.ascontiguousarray(array)
    return result


def write_sharded(directory: Path, weights: Weights) -> Path:
    owner = {name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(weights)}
    for shard in set(owner.values()):
        save_file({name: weights[name] for name in weights if owner[name] == shard}, directory / shard)
    (directory / INDEX).write_text(json.dumps({"weight_map": owner}))
    return directory / INDEX


def write_file(directory: Path, weights: Weights) -> Path:
    save_file(weights, directory / "model.safetensors")
    return directory / "model.safetensors"


def write_pt(directory: Path, weights: Weights) -> Path:
    torch.save({"model": {name: torch.from_numpy(array) for name, array in weights.items()}}, directory / "ckpt.pt")
    return directory / "ckpt.pt"


def write_hf(directory: Path, weights: Weights) -> Path:
    (directory / "config.json").write_text(json.dumps(hf_config()))
    codec = {"codec_model.decoder.weight": np.ones((2, 2), np.float32)}
    return write_file(directory, {**hf_weights(weights), **codec})


def write_hf_sharded(directory: Path, weights: Weights) -> Path:
    (directory / "config.json").write_text(json.dumps(hf_config()))
    return write_sharded(directory, hf_weights(weights))


Write = Callable[[Path, Weights], Path]
LAYOUTS: dict[str, Write] = {
    "file": write_file, "sharded": write_sharded, "pt": write_pt, "hf": write_hf, "hf sharded": write_hf_sharded,
}  # fmt: skip


@pytest.fixture(params=[*LAYOUTS.values()], ids=[*LAYOUTS])
def write(request: pytest.FixtureRequest) -> Write:
    layout: Write = request.param
    return layout


def fingerprint(path: Path, config: Path) -> str:
    with open_checkpoint(path, config) as checkpoint:
        return checkpoint.fingerprint()


@pytest.fixture(scope="module")
def expected_fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("plain")
    return fingerprint(write_file(directory, WEIGHTS), write_spec(directory))


def test_every_layout_holds_the_same_rows(tmp_path: Path, write: Write, expected_fingerprint: str) -> None:
    config = write_spec(tmp_path)
    path = write(tmp_path, WEIGHTS)
    for place in (path, tmp_path):
        with open_checkpoint(place, config) as checkpoint:
            assert checkpoint.spec == SPEC
            assert checkpoint.shapes == {name: array.shape for name, array in WEIGHTS.items()}
            assert checkpoint.fingerprint() == expected_fingerprint
            for name, array in WEIGHTS.items():
                step = checkpoint.row_step(name)
                np.testing.assert_array_equal(checkpoint.read(name, 0, len(array)), array)
                for start in range(0, len(array), 3 * step):
                    stop = min(start + 2 * step, len(array))
                    np.testing.assert_array_equal(checkpoint.read(name, start, stop), array[start:stop])
    if write in (write_hf, write_hf_sharded):
        assert checkpoint.layout is HUGGING_FACE
        assert checkpoint.row_step("backbone.layers.0.attn.q_proj.weight") == 32
        assert checkpoint.row_step("decoder.layers.0.attn.k_proj.weight") == 16
        assert checkpoint.row_step("decoder.layers.0.attn.v_proj.weight") == 1


def test_huggingface_needs_no_config_option(tmp_path: Path, expected_fingerprint: str) -> None:
    path = write_hf(tmp_path, WEIGHTS)
    for place in (path, tmp_path):
        with open_checkpoint(place) as checkpoint:
            assert checkpoint.spec == replace(SPEC, name="CSM", prompt="[{speaker}]{text}")
            assert checkpoint.fingerprint() == expected_fingerprint
            assert checkpoint.codec_shapes == {"codec_model.decoder.weight": (2, 2)}


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "state_dict.csm._orig_mod."])
def test_huggingface_under_a_prefix_brings_its_codec(tmp_path: Path, expected_fingerprint: str, prefix: str) -> None:
    write_hf(tmp_path, WEIGHTS)
    whole = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({f"{prefix}{name}": tensor for name, tensor in whole.items()}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.layout is HUGGING_FACE
        assert checkpoint.fingerprint() == expected_fingerprint
        assert checkpoint.codec_shapes == {"codec_model.decoder.weight": (2, 2)}


def test_a_config_of_huggingface_serves_upstream_names_too(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(hf_config()))
    with open_checkpoint(write_file(tmp_path, WEIGHTS), tmp_path / "other.json") as checkpoint:
        assert (checkpoint.spec.name, checkpoint.layout, checkpoint.codec_shapes) == ("CSM", UPSTREAM, {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    rounded = {name: torch.from_numpy(array).to(dtype) for name, array in WEIGHTS.items()}
    wide = {name: tensor.float().numpy() for name, tensor in rounded.items()}
    config = write_spec(tmp_path)
    safetensors.torch.save_file(rounded, tmp_path / "half.safetensors")
    torch.save(rounded, tmp_path / "half.pt")
    save_file(wide, tmp_path / "wide.safetensors")
    for name in ("half.safetensors", "half.pt"):
        with open_checkpoint(tmp_path / name, config) as checkpoint:
            for tensor, array in wide.items():
                np.testing.assert_array_equal(checkpoint.read(tensor, 0, len(array)), array)
        # The same values are the same weights, however they are stored.
        assert fingerprint(tmp_path / name, config) == fingerprint(tmp_path / "wide.safetensors", config)


@pytest.mark.parametrize("end", [0, -1])
def test_the_fingerprint_covers_first_and_last_rows(tmp_path: Path, end: int, expected_fingerprint: str) -> None:
    config, path = write_spec(tmp_path), write_file(tmp_path, WEIGHTS)
    whole = bytearray(path.read_bytes())
    seen = {expected_fingerprint}
    with open_checkpoint(path, config) as checkpoint:
        places = {
            name: checkpoint.position(name, shape[0] - 1 if end else 0)[1] for name, shape in checkpoint.shapes.items()
        }
    for place in places.values():
        changed = whole.copy()
        changed[place] ^= 1  # the lowest bit of one number
        path.write_bytes(changed)
        seen.add(fingerprint(path, config))
    assert len(seen) == len(WEIGHTS) + 1


def test_the_fingerprint_does_not_cover_what_lies_between(tmp_path: Path, expected_fingerprint: str) -> None:
    """Nor the rows of a head that must be read along with the first."""
    name = "backbone.layers.0.attn.q_proj.weight"
    for row, same in ((0, False), (1, True), (31, True), (32, True), (62, True), (63, False)):
        weights = {**WEIGHTS, name: WEIGHTS[name].copy()}
        weights[name][row, 5] += 1
        for layout in ("file", "hf"):
            path = LAYOUTS[layout](tmp_path, weights)
            assert (fingerprint(path, write_spec(tmp_path)) == expected_fingerprint) == same, (row, layout)


class Shapes:
    """A store of shapes without data."""

    files = ()
    left_out = ()

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.closed = False

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        raise NotImplementedError

    def read(self, name: str, start: int, stop: int) -> F32Array:
        raise NotImplementedError

    def check_dtype(self, name: str) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def open_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Checkpoint]]:
    """`open_checkpoint` on tensors of these shapes. Afterwards all stores must be closed."""
    stores: list[Shapes] = []

    def open_shapes(shapes: Mapping[str, tuple[int, ...]], config: Path | None = None) -> Checkpoint:
        stores.append(Shapes(shapes))
        monkeypatch.setattr(module, "open_store", lambda _: stores[-1])
        with open_checkpoint(tmp_path / "model.safetensors", config) as checkpoint:
            return checkpoint

    yield open_shapes
    assert all(store.closed for store in stores)


FLAVORS = pytest.mark.parametrize("spec", [MISO_8B, CSM_1B, TINY], ids=lambda spec: spec.name)
RECOGNISED_BY = ("text_embeddings.weight", "audio_embeddings.weight", "projection.weight", "audio_head")


@FLAVORS
def test_known_models_are_recognised_from_shapes(open_shapes: Callable[..., Checkpoint], spec: ModelSpec) -> None:
    assert open_shapes(checkpoint_shapes(spec)).spec == spec
    assert open_shapes(dict(reversed(checkpoint_shapes(spec).items()))).spec == spec


@FLAVORS
@pytest.mark.parametrize("name", [*RECOGNISED_BY, "backbone.layers.0.attn.q_proj.weight", "decoder.norm.scale"])
def test_a_known_model_with_a_defect_is_recognised(
    open_shapes: Callable[..., Checkpoint], spec: ModelSpec, name: str
) -> None:
    shapes = checkpoint_shapes(spec)
    wanted = list(shapes[name])
    with pytest.raises(CheckpointError) as caught:
        open_shapes({key: shape for key, shape in shapes.items() if key != name})
    assert f"not a whole {spec.name} checkpoint (1 missing, 0 unknown, 0 mis-shaped tensors)" in str(caught.value)
    assert str(caught.value).splitlines()[1:] == [f"  missing   {name} {wanted}"]
    with pytest.raises(CheckpointError) as caught:
        open_shapes({**shapes, name: (3, 2**60)})
    assert f"not a whole {spec.name} checkpoint (0 missing, 0 unknown, 1 mis-shaped tensors)" in str(caught.value)
    assert str(caught.value).splitlines()[1:] == [f"  mis-shaped {name}: expected {wanted}, found [3, {2**60}]"]


@FLAVORS
def test_a_known_model_with_tokens_added_or_rows_padded(
    open_shapes: Callable[..., Checkpoint], spec: ModelSpec
) -> None:
    for rows in (spec.text_vocab + 1, spec.text_vocab - 3, (spec.text_vocab // 512 + 1) * 512):
        shapes = {**checkpoint_shapes(spec), "text_embeddings.weight": (rows, spec.backbone.embed_dim)}
        assert open_shapes(shapes).spec == replace(spec, text_vocab=rows)
    with pytest.raises(CheckpointError, match=r"mis-shaped text_embeddings\.weight"):
        open_shapes({**checkpoint_shapes(spec), "text_embeddings.weight": (0, spec.backbone.embed_dim)})


def test_an_unknown_model_asks_for_its_dimensions(open_shapes: Callable[..., Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_shapes(checkpoint_shapes(SPEC))
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path / 'model.safetensors'}: these tensor shapes are of no known model (MisoTTS-8B"
    )
    assert "found text_embeddings.weight [20, 64], audio_embeddings.weight [4120, 64]" in message
    assert message.endswith("pass its dimensions with --config FILE.")
    assert open_shapes(checkpoint_shapes(SPEC), write_spec(tmp_path)).spec == SPEC
    for shapes in ({}, {"backbone.norm.scale": (4096,), "decoder.norm.scale": (4096,)}):
        with pytest.raises(
            CheckpointError, match=r"no known model .*; found none of text_embeddings\.weight, audio_emb"
        ):
            open_shapes(shapes)


def test_all_problems_are_listed_at_once(open_shapes: Callable[..., Checkpoint], tmp_path: Path) -> None:
    shapes = checkpoint_shapes(TINY)
    for layer in (1, 2):
        del shapes[f"backbone.layers.{layer}.mlp.w1.weight"]
    shapes["backbone.layers.9.extra"] = (1, 2)
    shapes["decoder.norm.scale"] = (256, 1)
    shapes["audio_head"] = ()
    with pytest.raises(CheckpointError) as caught:
        open_shapes(shapes)
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'model.safetensors'}: not a whole Miso-Tiny checkpoint "
        "(2 missing, 1 unknown, 2 mis-shaped tensors):",
        "  missing   backbone.layers.1.mlp.w1.weight [768, 256]",
        "  missing   backbone.layers.2.mlp.w1.weight [768, 256]",
        "  unknown   backbone.layers.9.extra [1, 2]",
        "  mis-shaped decoder.norm.scale: expected [256], found [256, 1]",
        "  mis-shaped audio_head: expected [7, 256, 515], found []",
    ]


def test_long_lists_are_whole(open_shapes: Callable[..., Checkpoint]) -> None:
    shapes = {**checkpoint_shapes(TINY), **{f"extra.{i}": (1,) for i in range(100)}}
    del shapes["decoder.norm.scale"], shapes["backbone.norm.scale"]
    with pytest.raises(CheckpointError, match=r"\(2 missing, 100 unknown, 0 mis-shaped tensors\)") as caught:
        open_shapes(shapes)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 102
    assert lines[-1] == "  unknown   extra.99 [1]"


def test_huggingface_problems_have_huggingface_names(tmp_path: Path) -> None:
    weights = hf_weights()
    del weights["lm_head.weight"]
    weights["codec_model.x"] = weights["backbone_model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    weights["backbone_model.layers.7.mlp.up_proj.weight"] = np.ones((1, 1), np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf_config()))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}: not a whole CSM checkpoint (1 missing, 1 unknown, 0 mis-shaped tensors):",
        "  missing   lm_head.weight [515, 64]",
        "  unknown   backbone_model.layers.7.mlp.up_proj.weight [1, 1]",
    ]


def test_a_codec_among_upstream_names_is_unknown(open_shapes: Callable[..., Checkpoint]) -> None:
    with pytest.raises(
        CheckpointError, match=r"\(0 missing, 1 unknown, 0 mis-shaped tensors\):\n  unknown   codec_model.x"
    ):
        open_shapes({**checkpoint_shapes(TINY), "codec_model.x": (1,)})


def test_huggingface_without_its_config(tmp_path: Path) -> None:
    path = write_hf(tmp_path, WEIGHTS)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"config\.json: no such file: .* needs its config\.json beside it, or --co"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ('{"backbone": ' + "1" * 5000 + "}", "not readable JSON"),
        ("\ufeff{}", "not readable JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "model_type must be 'csm', not None"),
        ('{"backbone": 1}', "not a model spec"),
        ('{"backbone": {}, "decoder": {}}', "not a model spec"),
        (json.dumps({**asdict(SPEC), "colour": "red"}), "not a model spec"),
        (json.dumps({**asdict(SPEC), "codebooks": 1}), "needs at least 2 codebooks, not 1"),
        (json.dumps({**asdict(SPEC), "text_vocab": "many"}), "text_vocab must be a positive integer, not 'many'"),
        (json.dumps({**hf_config(), "max_position_embeddings": 10**400}), "int too large"),
        (
            json.dumps({**hf_config(), "num_hidden_layers": 10**9}),
            "layers must be at most 512, not 1000000000",
        ),
        (
            json.dumps({**asdict(SPEC), "backbone": {**asdict(SPEC.backbone), "layers": 999}}),
            "layers must be at most 512, not 999",
        ),
    ],
)
def test_bad_configs_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = write_file(tmp_path, WEIGHTS)
    config = tmp_path / "some.json"
    config.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, config)
    assert str(caught.value).startswith(f"{config}: ")
    assert message in str(caught.value)


def test_dimensions_beyond_any_machine(tmp_path: Path) -> None:
    """Only shapes are compared: nothing is allocated, nothing overflows."""
    path = write_file(tmp_path, WEIGHTS)
    most = 2**31 - 1
    config = write_spec(tmp_path, replace(SPEC, text_vocab=most, codebooks=most))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, config)
    assert f"text_embeddings.weight: expected [{most}, 64], found [20, 64]" in str(caught.value)
    assert f"audio_embeddings.weight: expected [{515 * most}, 64]" in str(caught.value)
    config.write_text(config.read_text().replace(str(most), str(2**60)))
    with pytest.raises(CheckpointError, match=rf"must be at most {most}, not {2**60}"):
        open_checkpoint(path, config)


@settings(max_examples=examples(80), deadline=None)
@given(st.data())
def test_configs_of_any_json(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.getbasetemp() / "configs"
    if not directory.exists():
        directory.mkdir()
        save_file({"lm_head.weight": np.ones((1, 1), np.float32)}, directory / "model.safetensors")
    config: Any = data.draw(st.sampled_from([hf_config(), json.loads(json.dumps(asdict(SPEC)))]))
    values: st.SearchStrategy[Any] = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
        | st.sampled_from([0, 1, 2, 64, 2**31, 2**60, 10**30, 10**320])
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        section = config
        key = data.draw(st.sampled_from(sorted(section)))
        while isinstance(section[key], dict) and section[key] and data.draw(st.booleans()):
            section = section[key]
            key = data.draw(st.sampled_from(sorted(section)))
        section[key] = data.draw(values)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        open_checkpoint(directory / "model.safetensors", directory / "config.json")


def test_what_is_found_in_a_directory(tmp_path: Path) -> None:
    """The best known name wins; one file of any name is enough; of several the user must choose."""

    def found(directory: Path) -> tuple[type, str]:
        with closing(open_store(directory)) as store:
            return type(store), store.files[0].name

    tensors = {"x": np.ones(2, np.float32)}
    directory = tmp_path / "growing"
    directory.mkdir()
    (directory / "README.md").write_text("text")
    with pytest.raises(CheckpointError, match=r"expected one checkpoint .*, found none\. Pass the file itself\."):
        open_store(directory)
    save_file(tensors, directory / "b.safetensors")
    assert found(directory) == (SafetensorsFile, "b.safetensors")
    torch.save({"x": torch.ones(2)}, directory / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"expected one checkpoint .*, found a\.pth, b\.safetensors\. Pass the file"
    ):
        open_store(directory)
    # As CSM-1B's transformers-00001-of-00002.safetensors are, were they alone.
    (directory / "transformers.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "b.safetensors"}}))
    assert found(directory) == (ShardedFiles, "b.safetensors")
    (directory / "again.safetensors.index.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"found again\.safetensors\.index\.json, transformers\.safetensors\.index"
    ):
        open_store(directory)
    torch.save({"x": torch.ones(2)}, directory / "ckpt.pt")
    assert found(directory) == (PickleFile, "ckpt.pt")
    save_file(tensors, directory / "model.safetensors")
    assert found(directory) == (SafetensorsFile, "model.safetensors")
    save_file(tensors, directory / "shard")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"x": "shard"}}))
    assert found(directory) == (ShardedFiles, "shard")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickles_go_by_their_suffix(tmp_path: Path, suffix: str) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / f"x{suffix}")
    with closing(open_store(tmp_path / f"x{suffix}")) as store:
        assert isinstance(store, PickleFile)


def test_paths_that_hold_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file"):
        open_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="empty: is empty: download it again"):
        open_checkpoint(tmp_path / "empty")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a regular file"):
        open_checkpoint(tmp_path)

    def denied(_: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(CheckpointError, match=r"locked: cannot be listed \(Permission denied\)"):
        open_checkpoint(tmp_path / "locked")


def test_files_are_closed(tmp_path: Path) -> None:
    config, path = write_spec(tmp_path), write_file(tmp_path, WEIGHTS)
    with open_checkpoint(path, config) as checkpoint:
        pass
    with pytest.raises(ValueError, match="closed file"):
        checkpoint.read("audio_head", 0, 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_no_pipe_and_no_device_is_waited_for(tmp_path: Path) -> None:
    inputs, pipe = make_inputs(tmp_path, MICRO), tmp_path / "model.safetensors.index.json"
    os.mkfifo(pipe)
    reads: list[Callable[[Path], object]] = [
        open_checkpoint,
        lambda path: open_checkpoint(inputs.checkpoint, path),
        read_tokenizer,
        lambda path: read_imatrix(path, []),
    ]
    for read in reads:
        for path in (pipe, Path("/dev/zero")):
            with pytest.raises(CheckpointError, match="not a regular file"):
                read(path)
    with pytest.raises(CheckpointError, match="Is a directory"):
        open_checkpoint(inputs.checkpoint, tmp_path)
