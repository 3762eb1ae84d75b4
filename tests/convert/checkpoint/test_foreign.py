"""What is recognised by which sign, beside the cases of `test_inputs.py`; and that nothing that is meant is refused."""

import errno
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import MICRO, Built
from miso_gguf.convert.checkpoint.foreign import (
    CHECKPOINT,
    CODEC,
    CONFIG,
    IMATRIX,
    INDEX,
    TOKENIZER,
    refuse_directory,
    refuse_file,
    refuse_tensors,
)
from miso_gguf.convert.checkpoint.hf_layout import hf_sources
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.mimi import MIMI, mimi_shapes
from miso_gguf.models.tensors import checkpoint_shapes


def said(check: Callable[..., None], *arguments: Any) -> str:
    try:
        check(*arguments)
    except CheckpointError as error:
        return str(error)
    return ""


def nothing(_name: str) -> None:
    return None


@pytest.mark.parametrize("flavor", FLAVORS)
def test_names_that_are_meant(flavor: str) -> None:
    spec = FLAVORS[flavor]
    for names in (checkpoint_shapes(spec), [source.name for source in hf_sources(spec).values()]):
        refuse_tensors(list(names), "x")
        refuse_tensors([*names, *(f"codec_model.{name}" for name in mimi_shapes(MIMI))], "x")
    refuse_tensors(list(mimi_shapes(MIMI)), "x", CODEC)


def test_files_that_are_meant(built: Built, tmp_path: Path) -> None:
    inputs = built.inputs(MICRO)
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "zip")
    torch.save({"a": torch.ones(2)}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {"a": torch.ones(2)}, "optimizer": {"param_groups": []}}, tmp_path / "trainer.ckpt")
    for path in (inputs.checkpoint, tmp_path / "zip", tmp_path / "legacy", tmp_path / "trainer.ckpt"):
        refuse_file(path)
        refuse_file(path, CODEC)
    refuse_file(inputs.tokenizer, TOKENIZER)
    refuse_file(inputs.config, CONFIG)
    (tmp_path / "x").write_bytes(b"GGUF\3\0\0\0")
    refuse_file(tmp_path / "x", IMATRIX)


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors", "config.json", "tokenizer.json", "README.md"],
        ["model.safetensors", "adapter_config.json", "model-Q4_K_M.gguf", "model.onnx", ".metadata"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ["ckpt.pt", "optimizer.pt", "onnx/model.onnx", "checkpoint-5/model.safetensors"],
        ["pytorch_model.bin", "training_args.bin"],
        ["README.md"],
        [],
    ],
)
def test_folders_that_hold_weights_or_nothing_known(names: list[str]) -> None:
    refuse_directory(names, nothing, "x")


@pytest.mark.parametrize(
    "config", [b"{}", b"", b"[", b"[]", b"null", b'{"quantization_config": null}', b"\xff", b"[" * 99_999]
)
def test_configs_that_say_nothing_of_quantising(config: bytes) -> None:
    refuse_directory(["model.safetensors"], lambda _: config, "x")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["adapter_model.bin", "README.md"], "holds a LoRA adapter"),
        (["a/b.gguf"], ""),
        (["optimizer.pt", "scheduler.pt"], "holds the state of an optimizer or trainer"),
        (["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "holds a DeepSpeed ZeRO"),
        (["gptq_model-4bit-128g.safetensors", "quantize_config.json"], "is quantised by GPTQ"),
        (["qmodel.pt", "config.json"], "is quantised by HQQ"),
        (["weights.00.npz", "config.json"], "holds an MLX model"),
        (["checkpoint-5/model.safetensors"], "holds the output of a trainer"),
        (["saved_model.pb", "variables"], "holds a TensorFlow or Keras model"),
        (["openvino_model.xml", "openvino_model.bin"], "holds an OpenVINO model"),
        (["latest_checkpointed_iteration.txt"], "holds a Megatron checkpoint"),
        (["Unconfirmed 1234.crdownload"], "holds a download that is not finished"),
    ],
)
def test_folders_that_hold_something_else(names: list[str], words: str) -> None:
    assert said(refuse_directory, names, nothing, "x").startswith(f"x: {words}" if words else "")


@pytest.mark.parametrize(
    ("head", "wanted", "words"),
    [
        (b"\xef\xbb\xbf\n <!-- x -->\n<HTML>", CHECKPOINT, "is a web page"),
        (b"404: Not Found", CHECKPOINT, "is a server's error message ('404: Not Found')"),
        (b'{"message":"Not Found","status":"404"}', TOKENIZER, "is a server's error message"),
        (b"Invalid username or password.", CODEC, "is a server's error message"),
        (b"<Error><Code>NoSuchKey", CHECKPOINT, "is a server's answer in XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", INDEX, "is a Git LFS pointer"),
        (b"7z\xbc\xaf\x27\x1c", CHECKPOINT, "is an archive"),
        (b"x" * 257 + b"ustar\0", CHECKPOINT, "is a tar archive"),
        (b"\x28\xb5\x2f\xfd", CHECKPOINT, "is a compressed file"),
        (b"PK\x05\x06" + bytes(18), CHECKPOINT, "is a zip archive"),
        (b"OggS\0\2", CHECKPOINT, "is sound"),
        (b"%PDF-1.7", CHECKPOINT, "is a PDF"),
        (b"\x7fELF\2", CHECKPOINT, "is a program or library"),
        (b"\x80\x04\x95", TOKENIZER, "is weights that PyTorch saved"),
        ("Привет".encode(), CHECKPOINT, "is text"),
        (b"\x93NUMPY\1\0", CHECKPOINT, "is a NumPy array"),
        (b"\x81\xa6params\x80", CHECKPOINT, "is a Flax or JAX model"),
        (b"\x1b[31mred", CHECKPOINT, ""),
        (b"\xff" * 9999, CHECKPOINT, ""),
        (b"{", CONFIG, ""),
    ],
)
def test_beginnings_of_files(tmp_path: Path, head: bytes, wanted: str, words: str) -> None:
    (tmp_path / "x").write_bytes(head)
    found = said(refuse_file, tmp_path / "x", wanted)
    assert found.startswith(f"{tmp_path / 'x'}: {words}") if words else not found
    assert found.isprintable()


@settings(max_examples=examples(200), deadline=None)
@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"PK\x03\x04", b"GGUF", b"{", b"\x80\x02", b"\0", b"<", b"\x08\x08\x12"]),
)
def test_any_beginning_gives_one_printable_line(
    tmp_path_factory: pytest.TempPathFactory, rest: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(head + rest)
    for wanted in (CHECKPOINT, CODEC, TOKENIZER, CONFIG, IMATRIX, INDEX):
        assert said(refuse_file, path, wanted).isprintable()


def test_zip_files_that_cannot_be_looked_into(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"param_groups" * 50)
    whole = content.getvalue()
    path = tmp_path / "x"
    path.write_bytes(whole)
    assert "is the state of an optimizer" in said(refuse_file, path)
    path.write_bytes(whole[:45] + b"\xff\xff\xff" + whole[48:])
    assert said(refuse_file, path) == ""
    path.write_bytes(whole[:-10])
    assert "truncated" in said(refuse_file, path)


def test_what_cannot_be_read_is_left_to_who_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_file(tmp_path / "none")
    refuse_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    refuse_file(tmp_path / "pipe")
    (tmp_path / "x").write_bytes(b"")

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refuse_file(tmp_path / "x")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["state.0.exp_avg", "state.0.step"], "is the state of an optimizer"),
        (["state.backbone.norm.scale.exp_avg", "state.backbone.norm.scale.step"], "is the state of an optimizer"),
        (["optimizer.0.exp_avg", "model.backbone.norm.scale", "ema.backbone.norm.scale"], ""),
        (["backbone.layers.0.attn.q_proj.lora_magnitude_vector.weight"], "is a LoRA adapter"),
        (["decoder.layers.0.conv.weight", "quantizer.semantic_residual_vector_quantizer.x"], "is Mimi, the codec"),
        (["x.qweight", "x.g_idx"], "is quantised by GPTQ"),
        (["x.weight", "x.scales", "x.biases"], "is an MLX model"),
        ([], ""),
    ],
)
def test_tensors_of_something_else(names: list[str], words: str) -> None:
    assert said(refuse_tensors, names, "x").startswith(f"x: {words}" if words else "")
    assert bool(said(refuse_tensors, names, "x")) == bool(words)


def test_many_names_take_no_time() -> None:
    """Whose patterns went back and forth would never end here."""
    names = [f"layers.{i}.scales" for i in range(100_000)] + ["backbone.x"]
    assert said(refuse_tensors, names, "x").startswith("x: is the backbone alone")


@pytest.mark.parametrize("name", ["vera_lambda_b", "boft_R", "vblora_logits_A", "randlora_A", "fourierft_spectrum"])
def test_newer_kinds_of_adapters(name: str) -> None:
    assert "LoRA adapter" in said(refuse_tensors, [f"base_model.model.backbone.layers.0.attn.q_proj.{name}"], "x")


def test_a_folder_with_numbered_adapters() -> None:
    assert "LoRA adapter" in said(refuse_directory, ["adapter_0.pt", "adapter_config.json"], nothing, "x")


def test_a_place_without_a_name_is_nothing_known() -> None:
    refuse_file(Path())
