"""What people bring to the converter, a case each: how it is made, and what comes of it; `docs/inputs.md` shows them.

Each runs through the command in this process (`outcome`). A case that only has to be planned is not converted.
"""

import argparse
import contextlib
import io
import json
import logging
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from builders import MICRO, Inputs, make_inputs
from miso_gguf.convert.checkpoint.hf_layout import hf_sources
from miso_gguf.convert.cli import convert
from miso_gguf.core.errors import MisoError

_DIR = ""
"""The place itself, as what is passed."""

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Kit:
    """What a case is made with: a place of its own, and the inputs of a model that converts."""

    place: Path
    inputs: Inputs

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The model's, fresh."""
        arrays: dict[str, NDArray[np.float32]] = load_file(self.inputs.checkpoint)
        return arrays

    @property
    def codec(self) -> dict[str, NDArray[np.float32]]:
        """The codec's, fresh."""
        arrays: dict[str, NDArray[np.float32]] = load_file(self.inputs.mimi)
        return arrays


Make = Callable[[Kit], object]


@dataclass(frozen=True)
class Case:
    """One thing that people have."""

    have: str
    make: Make
    said: str = ""
    """Words of what is said: of the refusal, or of a note."""
    accepted: bool = False
    checkpoint: str = "model.safetensors"
    """The name that is passed, in the case's place. "" is the place itself."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Other options; a value that is the name of a file there becomes its path."""
    runs: bool = False
    """Whether it takes the pass over the weights to see."""


def outcome(case: Case, kit: Kit) -> tuple[bool, str]:
    """(whether it is accepted, what is said: notes, or the refusal). Paths are names in the case's place."""
    case.make(kit)
    inputs = kit.inputs
    options = {"--mimi": str(inputs.mimi), "--tokenizer": str(inputs.tokenizer), "--config": str(inputs.config)}
    for option, value in case.options.items():
        options[option] = str(kit.place / value) if (kit.place / value).exists() and value else value
    arguments = [str(kit.place / case.checkpoint), "--quant", "q8_0", "--threads", "1", "--out", str(kit.place / "out")]
    arguments += [] if case.runs else ["--dry-run"]
    for option, value in options.items():
        arguments += {"yes": [option], "no": []}.get(value, [option, value])
    notes = _Notes()
    logging.getLogger().addHandler(notes)
    try:
        # How long it would take is not asked.
        with mock.patch("miso_gguf.convert.cli.estimate_seconds", return_value=1.0), _quiet():
            code = convert.main(args=arguments, prog_name="miso-convert", standalone_mode=False)
        accepted, said = code == 0, " ".join(notes.said)
    except (MisoError, ValueError) as error:
        accepted, said = False, str(error)
    finally:
        logging.getLogger().removeHandler(notes)
    for path in (kit.place, inputs.checkpoint.parent):
        said = said.replace(f"{path}/", "").replace(str(path), "FOLDER")
    return accepted, said


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("miso_gguf"):
            self.said.append(record.getMessage())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def base_inputs(directory: Path) -> Inputs:
    """The inputs of a kit: a small model of the right design."""
    return make_inputs(directory, MICRO)


def _file(content: bytes, name: str = "model.safetensors") -> Make:
    return lambda kit: (kit.place / name).write_bytes(content)


def _tensors(*names: str, whole: bool = False, name: str = "model.safetensors") -> Make:
    """A file with small tensors of these names; `whole`: beside those of the model."""

    def make(kit: Kit) -> None:
        small = dict.fromkeys(names, np.ones((2, 2), np.float32))
        save_file({**(kit.weights if whole else {}), **small}, kit.place / name)

    return make


def _changed(change: Callable[[dict[str, NDArray[np.float32]]], object]) -> Make:
    """The model's file with other weights."""

    def make(kit: Kit) -> None:
        weights = kit.weights
        change(weights)
        save_file(weights, kit.place / "model.safetensors")

    return make


def _changed_codec(change: Callable[[dict[str, NDArray[np.float32]]], object]) -> Make:
    def make(kit: Kit) -> None:
        codec = kit.codec
        change(codec)
        _link(kit)
        save_file(codec, kit.place / "codec.safetensors")

    return make


def _folder(*names: str, **files: str) -> Make:
    """A folder of files of these names, with these contents."""

    def make(kit: Kit) -> None:
        for name in names:
            (kit.place / name).parent.mkdir(exist_ok=True)
            (kit.place / name).write_bytes(b"\x01\x02")
        for name, content in files.items():
            (kit.place / f"{name}.json").write_text(content)

    return make


def _also(make: Make, **files: str) -> Make:
    """The same with other files, of these names and contents, beside it."""

    def both(kit: Kit) -> None:
        make(kit)
        _folder(**files)(kit)

    return both


def _link(kit: Kit, name: str = "model.safetensors") -> None:
    (kit.place / name).symlink_to(kit.inputs.checkpoint)


def _with(make: Make) -> Make:
    """The model's file, and something beside it."""

    def both(kit: Kit) -> None:
        _link(kit)
        make(kit)

    return both


def _zip(name: str, *members: str) -> Make:
    def make(kit: Kit) -> None:
        with zipfile.ZipFile(kit.place / name, "w") as archive:
            for member in members:
                archive.writestr(member, b"\x80\x02}.")

    return make


def _save(state: Callable[[Kit], object], name: str = "ckpt.pt") -> Make:
    return lambda kit: torch.save(state(kit), kit.place / name)


def _torch(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _cut(name: str, keep: float) -> Make:
    """The first part of the model's file."""

    def make(kit: Kit) -> None:
        whole = kit.inputs.checkpoint.read_bytes()
        (kit.place / name).write_bytes(whole[: int(len(whole) * keep)])

    return make


def _half_of_pt(kit: Kit) -> None:
    path = kit.place / "ckpt.pt"
    torch.save(_torch(kit.weights), path)
    path.write_bytes(path.read_bytes()[:100_000])


def _half_of_shards(kit: Kit) -> None:
    _shards(kit)
    (kit.place / "model-00002-of-00002.safetensors").unlink()


def _zeroed(name: str, start: float, stop: float) -> Make:
    """The model's file with zeros instead of some of its bytes, behind a header that is right."""

    def make(kit: Kit) -> None:
        whole = bytearray(kit.inputs.checkpoint.read_bytes())
        header = 8 + int.from_bytes(whole[:8], "little")
        first, last = (header + int((len(whole) - header) * part) & ~3 for part in (start, stop))
        whole[first:last] = bytes(last - first)
        (kit.place / name).write_bytes(whole)

    return make


def _shards(kit: Kit, change: Callable[[dict[str, NDArray[np.float32]]], object] = lambda _: None) -> None:
    weights = kit.weights
    change(weights)
    owner = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for shard in sorted(set(owner.values())):
        save_file({name: array for name, array in weights.items() if owner[name] == shard}, kit.place / shard)
    (kit.place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owner}))


def _zero(name: str, *rows: slice) -> Callable[[dict[str, NDArray[np.float32]]], object]:
    def change(weights: dict[str, NDArray[np.float32]]) -> None:
        for part in rows or (slice(None),):
            weights[name][part] = -0.0

    return change


def _untrained(codec: dict[str, NDArray[np.float32]]) -> None:
    for name, array in codec.items():
        if name.endswith("embedding_sum"):
            array.fill(0)


def _only(prefix: str) -> Make:
    def change(weights: dict[str, NDArray[np.float32]]) -> None:
        for name in [name for name in weights if not name.startswith(prefix)]:
            del weights[name]

    return _changed(change)


def _hf_names(*suffixes: str) -> tuple[str, ...]:
    """Tensors beside a linear layer, as quantisers of transformers' models name them."""
    layer = "backbone_model.layers.0.self_attn.q_proj"
    return tuple(f"{layer}.{suffix}" for suffix in suffixes)


_HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 33\n"
_DAT = struct.pack("<ii", 2, 19) + b"blk.0.attn_q.weight" + struct.pack("<ii", 3, 4) + bytes(16)
_TEXT = "text_embeddings.weight"


def _pt(wrap: Callable[[dict[str, torch.Tensor]], object], name: str = "ckpt.pt") -> Make:
    """What a trainer makes of the weights, saved."""
    return _save(lambda kit: wrap(_torch(kit.weights)), name)


def _under(prefix: str) -> Make:
    return _pt(lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()})


def _trainer(weights: dict[str, torch.Tensor]) -> object:
    moments = {0: {"exp_avg": torch.ones(2), "step": torch.tensor(7)}}
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "epoch": 3,
        "hyper_parameters": {"lr": 1e-4},
    }


def _with_ema(weights: dict[str, torch.Tensor]) -> object:
    return {"model": weights, "ema": {name: tensor + 1 for name, tensor in weights.items()}}


def _bin_shards(kit: Kit, *, index: bool = True) -> None:
    weights = _torch(kit.weights)
    owner = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(weights)}
    for shard in sorted(set(owner.values())):
        torch.save({name: tensor for name, tensor in weights.items() if owner[name] == shard}, kit.place / shard)
    if index:
        (kit.place / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": owner}))


WRAPPED = (
    Case("the weights under `state_dict`", _pt(lambda w: {"state_dict": w}), "state_dict", True, "ckpt.pt"),
    Case("the weights under `model_state_dict`", _pt(lambda w: {"model_state_dict": w}), "model", True, "ckpt.pt"),
    Case(
        "the weights and the arguments of a fine-tuning script",
        _pt(lambda w: {"model": w, "args": argparse.Namespace(lr=1e-4, path=Path("data"))}),
        "model",
        True,
        "ckpt.pt",
    ),
    Case("names that begin with `module.`", _under("module."), "", True, "ckpt.pt"),
    Case("names that begin with `_orig_mod.`", _under("_orig_mod."), "", True, "ckpt.pt"),
    Case("a trainer's `.ckpt` with its optimizer", _pt(_trainer, "last.ckpt"), "state_dict.model", True, "last.ckpt"),
    Case("weights and their EMA copy", _pt(_with_ema), "--key", False, "ckpt.pt"),
    Case("the same with `--key ema`", _pt(_with_ema), "ema", True, "ckpt.pt", {"--key": "ema"}),
    Case("a `torch.save` called `model.safetensors`", _pt(lambda w: w, "model.safetensors"), "", True),
    Case(
        "upstream's masks and rotary tables saved along",
        _tensors(
            "backbone_causal_mask", "decoder_causal_mask", "backbone.layers.0.attn.pos_embeddings.cache", whole=True
        ),
        "backbone_causal_mask",
        True,
    ),
    Case("a folder with `pytorch_model.bin`", _pt(lambda w: w, "pytorch_model.bin"), "", True, _DIR),
    Case("a folder of `.bin` shards with their index", _bin_shards, "", True, _DIR),
    Case("a folder of `.bin` shards without an index", lambda kit: _bin_shards(kit, index=False), "", True, _DIR),
    Case(
        "a folder with the model and a trainer's state", _with(_folder("optimizer.pt", "rng_state.pth")), "", True, _DIR
    ),
    Case(
        "a folder with two models",
        lambda kit: list(map(partial(_link, kit), ("first.safetensors", "second.safetensors"))),
        "found first.safetensors, second.safetensors",
        checkpoint=_DIR,
    ),
)
"""Weights inside what trainers save, and folders of several files."""

ACCEPTED = (
    Case("a `.safetensors` file in upstream's layout", _link, accepted=True),
    Case(
        "the same under a name without a suffix", lambda kit: _link(kit, "weights"), accepted=True, checkpoint="weights"
    ),
    Case("a folder that holds it", _link, accepted=True, checkpoint=_DIR),
    Case(
        "a `.pt` file of `torch.save(state_dict)`",
        _save(lambda kit: _torch(kit.weights)),
        accepted=True,
        checkpoint="ckpt.pt",
    ),
    Case(
        "a `.pt` file with the weights under `model`",
        _save(lambda kit: {"model": _torch(kit.weights)}),
        accepted=True,
        checkpoint="ckpt.pt",
    ),
    Case(
        "a `.pt` file of the format before torch 1.6",
        lambda kit: torch.save(_torch(kit.weights), kit.place / "ckpt.pt", _use_new_zipfile_serialization=False),
        accepted=True,
        checkpoint="ckpt.pt",
    ),
    Case(
        "a file in Hugging Face's layout",
        _changed(lambda w: [w.update({hf.name: w.pop(name)}) for name, hf in hf_sources(MICRO).items()]),
        accepted=True,
    ),
    Case("shards with their index", _shards, accepted=True, checkpoint="model.safetensors.index.json"),
    Case("a folder of shards", _shards, accepted=True, checkpoint=_DIR),
    Case(
        "weights in bfloat16",
        _save(lambda kit: {k: v.bfloat16() for k, v in _torch(kit.weights).items()}),
        accepted=True,
        checkpoint="ckpt.pt",
    ),
    Case(
        "weights in float16",
        _changed(lambda w: w.update({k: v.astype(np.float16) for k, v in w.items()})),
        accepted=True,
    ),
    Case(
        "Kyutai's Mimi file as `--mimi`",
        _changed_codec(lambda _: None),
        accepted=True,
        options={"--mimi": "codec.safetensors"},
    ),
    Case(
        "a folder with the model, and a LoRA adapter that it was merged with",
        _with(_folder(adapter_config="{}")),
        accepted=True,
        checkpoint=_DIR,
    ),
    Case(
        "a folder with the model, and GGUF and ONNX files of it",
        _with(_folder("x.gguf", "x.onnx")),
        accepted=True,
        checkpoint=_DIR,
    ),
    Case(
        "a model whose table has 2 rows of zeros in 1024, as reserved tokens do",
        _changed(_zero(_TEXT, slice(1022, None))),
        accepted=True,
        runs=True,
    ),
    Case(
        "zeroed weights, with `--allow-zero`",
        _changed(_zero(_TEXT, slice(512, None))),
        accepted=True,
        options={"--allow-zero": "yes"},
    ),
)
"""What is converted."""

REFUSED = (
    Case("nothing of that name", lambda _: None, "no such file"),
    Case("an empty file", _file(b""), "is empty: download it again"),
    Case("a file of zeros", _file(bytes(9999)), "nothing but zeros"),
    Case("a Git LFS pointer", _file(_LFS), "run git lfs pull"),
    Case("a Xet pointer", _file(b"# xet version 0\nfilesize = 33\n"), "hf download"),
    Case("a web page", _file(_HTML), "is a web page"),
    Case("a web page called `ckpt.pt`", _file(_HTML, "ckpt.pt"), "is a web page", checkpoint="ckpt.pt"),
    Case(
        "a server's error in XML",
        _file(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
        "AccessDenied",
    ),
    Case(
        "a server's error in JSON",
        _file(b'{"error":"Invalid credentials in Authorization header"}'),
        "Invalid credentials",
    ),
    Case("a server's error in words", _file(b"Access to model MisoLabs/MisoTTS is restricted."), "is restricted"),
    Case("`Entry not found`", _file(b"Entry not found"), "Entry not found"),
    Case("the first half of a `.safetensors` file", _cut("model.safetensors", 0.5), "truncated"),
    Case(
        "the first half of a `.pt` file",
        _half_of_pt,
        "truncated: download it again",
        checkpoint="ckpt.pt",
    ),
    Case(
        "a browser's unfinished download",
        _cut("model.safetensors.crdownload", 0.5),
        "not finished",
        checkpoint="model.safetensors.crdownload",
    ),
    Case(
        "a folder with an unfinished download", _folder("model.safetensors.incomplete"), "not finished", checkpoint=_DIR
    ),
    Case(
        "an unfinished download with aria2's notes beside it",
        lambda kit: (_cut("model.safetensors", 0.5)(kit), _file(b"", "model.safetensors.aria2")(kit)),
        "aria2 lies beside it",
    ),
    Case("a name whose download is not finished", _file(b"", "model.safetensors.part"), "not finished"),
    Case(
        "an index without its shards",
        _half_of_shards,
        "Download them too",
        checkpoint="model.safetensors.index.json",
    ),
    Case(
        "a LoRA adapter's weights",
        _tensors("base_model.model.backbone.layers.0.attn.q_proj.lora_A.weight"),
        "merge it into its base",
    ),
    Case(
        "a LoRA adapter in kohya's names", _tensors("lora_unet_backbone_q.lora_down.weight"), "merge it into its base"
    ),
    Case(
        "a model with the adapter inside, not merged",
        _tensors("backbone.layers.0.attn.q_proj.base_layer.weight", whole=True),
        "merge it into its base",
    ),
    Case(
        "a LoRA adapter's folder",
        _folder("adapter_model.safetensors", adapter_config="{}"),
        "merge_and_unload",
        checkpoint=_DIR,
    ),
    Case(
        "a LoRA adapter's folder, with the codec and the tokenizer",
        _folder("adapter_model.safetensors", "mimi.safetensors", "tokenizer.json", adapter_config="{}"),
        "merge_and_unload",
        checkpoint=_DIR,
    ),
    Case(
        "the folder of an `hf download` that was cut off",
        _folder(".cache/x.incomplete", "README.md", config="{}"),
        "not finished",
        checkpoint=_DIR,
    ),
    Case(
        "bitsandbytes, 4 bits",
        _tensors(*_hf_names("weight.absmax", "weight.quant_state.bitsandbytes__nf4")),
        "bitsandbytes to 4",
    ),
    Case("bitsandbytes, 8 bits", _tensors(*_hf_names("SCB", "weight_format")), "bitsandbytes to 8"),
    Case("GPTQ", _tensors(*_hf_names("qweight", "qzeros", "scales", "g_idx")), "by GPTQ"),
    Case("AWQ", _tensors(*_hf_names("qweight", "qzeros", "scales")), "by AWQ"),
    Case("HQQ", _tensors(*_hf_names("W_q", "scale", "zero")), "by HQQ"),
    Case("AQLM", _tensors(*_hf_names("codes", "codebooks", "scales")), "by AQLM"),
    Case("quanto", _tensors(*_hf_names("weight._data", "weight._scale")), "by quanto"),
    Case("torchao", _tensors(*_hf_names("_weight_qdata", "_weight_scale")), "by torchao"),
    Case("EETQ", _tensors(*_hf_names("weight_scales")), "by EETQ"),
    Case("FP8 with scales", _tensors(*_hf_names("weight", "weight_scale_inv")), "to FP8"),
    Case("compressed-tensors", _tensors(*_hf_names("weight_packed", "weight_scale")), "compressed-tensors"),
    Case("EXL2", _tensors(*_hf_names("q_weight", "q_scale", "q_invperm")), "EXL2"),
    Case(
        "a folder that its `config.json` calls quantised",
        _also(_tensors(*_hf_names("weight")), config='{"quantization_config": {"quant_method": "exl3"}}'),
        "by 'exl3'",
        checkpoint=_DIR,
    ),
    Case(
        "an MLX folder",
        _also(_tensors(*_hf_names("weight")), config='{"quantization": {"group_size": 64, "bits": 4}}'),
        "by MLX",
        checkpoint=_DIR,
    ),
    Case("MLX weights", _tensors(*_hf_names("weight", "scales", "biases")), "is an MLX model"),
    Case("a GGUF file", _file(b"GGUF\3\0\0\0" + bytes(99), "x.gguf"), "converted already", checkpoint="x.gguf"),
    Case("a folder of GGUF files", _folder("model-Q4_K_M.gguf"), "converted already", checkpoint=_DIR),
    Case(
        "one of our bundles", _folder("MisoTTS-8B-backbone-Q8_0.gguf", miso="{}"), "miso-speak --model", checkpoint=_DIR
    ),
    Case("an ONNX file", _file(b"\x08\x08\x12\x07pytorch", "x.onnx"), "is an ONNX model", checkpoint="x.onnx"),
    Case("a Core ML package", _folder("Manifest.json"), "Core ML", checkpoint=_DIR),
    Case("a TensorRT engine", _file(b"ftrt" + bytes(40), "x.engine"), "TensorRT", checkpoint="x.engine"),
    Case("TensorFlow weights", _file(b"\x89HDF\r\n\x1a\n", "tf_model.h5"), "TensorFlow", checkpoint="tf_model.h5"),
    Case("Flax weights", _file(b"\x81\xa6params\x80", "flax_model.msgpack"), "Flax", checkpoint="flax_model.msgpack"),
    Case("a Keras archive", _zip("x.keras", "model.weights.h5", "config.json"), "Keras", checkpoint="x.keras"),
    Case(
        "a TorchScript program",
        _zip("x.pt", "x/code/a.py", "x/constants.pkl", "x/data.pkl"),
        "TorchScript",
        checkpoint="x.pt",
    ),
    Case(
        "a `torch.export` program", _zip("x.pt2", "x/archive_format", "x/data.pkl"), "torch.export", checkpoint="x.pt2"
    ),
    Case("a NumPy archive", _zip("x.npz", "a.npy"), "NumPy", checkpoint="x.npz"),
    Case("a zip file with the weights in it", _zip("x.zip", "model.safetensors"), "unpack it", checkpoint="x.zip"),
    Case("a gzip file", _file(b"\x1f\x8b\x08\0rest", "model.tar.gz"), "unpack it", checkpoint="model.tar.gz"),
    Case("a folder with an archive", _folder("model.tar.zst"), "unpack it", checkpoint=_DIR),
    Case("a diffusers folder", _folder(model_index="{}"), "diffusers", checkpoint=_DIR),
    Case("a DeepSpeed ZeRO folder", _folder("zero_to_fp32.py", "latest"), "zero_to_fp32.py DIR OUT", checkpoint=_DIR),
    Case("a `torch.distributed` folder", _folder(".metadata", "__0_0.distcp"), "dcp_to_torch", checkpoint=_DIR),
    Case(
        "an optimizer's state",
        _save(lambda _: {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "optim.pt"),
        "optimizer",
        checkpoint="optim.pt",
    ),
    Case(
        "a trainer's output folder",
        lambda kit: (kit.place / "checkpoint-500").mkdir(),
        "checkpoint folders",
        checkpoint=_DIR,
    ),
    Case(
        "a folder of the hub's cache",
        lambda kit: (kit.place / "snapshots").mkdir(),
        "snapshots/COMMIT",
        checkpoint=_DIR,
    ),
    Case(
        "Llama, or another language model",
        _tensors("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
        "is a language model",
    ),
    Case("Whisper", _tensors("model.encoder.conv1.weight"), "is Whisper"),
    Case("Qwen3-TTS", _tensors("talker.model.layers.0.mlp.up_proj.weight"), "Qwen"),
    Case("Moshi", _tensors("depformer.layers.0.gating.linear_in.weight"), "is Moshi"),
    Case(
        "another model of any kind",
        _tensors("net.conv.weight", "net.out.weight"),
        "'net.conv.weight', 'net.out.weight'",
    ),
    Case(
        "Mimi given as the model",
        lambda kit: (kit.place / "mimi.safetensors").symlink_to(kit.inputs.mimi),
        "pass it with --mimi",
        checkpoint="mimi.safetensors",
    ),
    Case("the backbone alone", _only("backbone."), "the backbone alone"),
    Case("the depth decoder alone", _only("decoder."), "the depth decoder alone"),
    Case(
        "the model without one of its tensors",
        _changed(lambda w: w.pop("backbone.norm.scale")),
        "missing   backbone.norm.scale",
    ),
    Case("the model with a tensor too many", _tensors("speaker.weight", whole=True), "unknown   speaker.weight"),
    Case("weights in int8", _changed(lambda w: w.update({"audio_head": w["audio_head"].astype(np.int8)})), "dtype I8"),
    Case("a `.wav` file", _file(b"RIFF\0\0\0\0WAVEfmt ", "voice.wav"), "is sound", checkpoint="voice.wav"),
    Case("a picture", _file(b"\x89PNG\r\n\x1a\n", "x.png"), "is a picture", checkpoint="x.png"),
    Case("a README", _file(b"# Miso TTS\n\nA model card.\n", "README.md"), "is text", checkpoint="README.md"),
    Case("a `config.json`", _file(b'{"model_type": "csm"}', "config.json"), "is a JSON file", checkpoint="config.json"),
    Case(
        "a `tokenizer.json` as the model",
        _file(b'{\n "version": "1.0"}', "tokenizer.json"),
        "is a JSON file",
        checkpoint="tokenizer.json",
    ),
    Case(
        "an `imatrix.dat` as the model", _file(_DAT, "imatrix.dat"), "llama-imatrix --in-file", checkpoint="imatrix.dat"
    ),
)
"""What is not, and could be taken for a checkpoint."""

OTHER_OPTIONS = (
    Case("the model as `--mimi`", _with(lambda kit: _link(kit, "x")), "a speech model", options={"--mimi": "x"}),
    Case("a Git LFS pointer as `--mimi`", _with(_file(_LFS, "x")), "git lfs pull", options={"--mimi": "x"}),
    Case(
        "a GGUF file as `--mimi`",
        _with(_file(b"GGUF\x03\0\0\0", "x")),
        "converted already: pass Kyutai's Mimi checkpoint",
        options={"--mimi": "x"},
    ),
    Case("a web page as `--mimi`", _with(_file(_HTML, "x")), "is a web page", options={"--mimi": "x"}),
    Case("an empty file as `--tokenizer`", _with(_file(b"", "x")), "is empty", options={"--tokenizer": "x"}),
    Case("a web page as `--tokenizer`", _with(_file(_HTML, "x")), "is a web page", options={"--tokenizer": "x"}),
    Case(
        "a GGUF file as `--tokenizer`",
        _with(_file(b"GGUF\3\0\0\0", "x")),
        "pass Llama 3.2's tokenizer.json",
        options={"--tokenizer": "x"},
    ),
    Case(
        "Meta's `tokenizer.model` as `--tokenizer`",
        _with(_file(b"IQ== 0\nIg== 1\nIw== 2\n", "x")),
        "tiktoken",
        options={"--tokenizer": "x"},
    ),
    Case(
        "a SentencePiece model as `--tokenizer`",
        _with(_file(b"\n\x0e\n\x05<unk>\x15\0\0\0\0", "x")),
        "SentencePiece",
        options={"--tokenizer": "x"},
    ),
    Case(
        "weights as `--tokenizer`",
        _with(lambda kit: _link(kit, "x")),
        "weights in a safetensors file",
        options={"--tokenizer": "x"},
    ),
    Case("a web page as `--config`", _with(_file(_HTML, "x")), "is a web page", options={"--config": "x"}),
    Case("an empty file as `--config`", _with(_file(b"", "x")), "is empty", options={"--config": "x"}),
    Case(
        "an old `imatrix.dat` as `--imatrix-backbone`",
        _with(_file(_DAT, "x")),
        "llama-imatrix --in-file",
        options={"--imatrix-backbone": "x"},
    ),
    Case(
        "an empty file as `--imatrix-decoder`", _with(_file(b"", "x")), "is empty", options={"--imatrix-decoder": "x"}
    ),
    Case(
        "a Git LFS pointer as `--imatrix-backbone`",
        _with(_file(_LFS, "x")),
        "git lfs pull",
        options={"--imatrix-backbone": "x"},
    ),
    Case(
        "a single file as `--imatrix`",
        _with(_file(b"GGUF", "x")),
        "takes a directory of miso-recipe imatrix",
        options={"--imatrix": "x"},
    ),
    Case(
        "a directory of something else as `--imatrix`",
        _with(lambda kit: (kit.place / "x").mkdir()),
        "has no backbone.imatrix.gguf and no decoder.imatrix.gguf",
        options={"--imatrix": "x"},
    ),
    Case("an IQ3 level and no `--imatrix`", _with(_file(b"", "x")), "pass --imatrix DIR", options={"--quant": "iq3_m"}),
)
"""What is passed beside the checkpoint."""

ZEROED = (
    Case(
        "a file whose last third is zeros", _zeroed("model.safetensors", 0.66, 1.0), "text_embeddings.weight: all zero"
    ),
    Case("a hole in the middle of the file", _zeroed("model.safetensors", 0.3, 0.5), "audio_head"),
    Case(
        "a small hole in a table", _changed(_zero(_TEXT, slice(100, 120))), "rows 100..119 (1.95 %) are zero", runs=True
    ),
    Case(
        "a table whose second half is zeros", _changed(_zero(_TEXT, slice(512, None))), "rows 512..1023 (50 %) are zero"
    ),
    Case(
        "one matrix of zeros",
        _changed(_zero("decoder.layers.0.mlp.w1.weight")),
        "decoder.layers.0.mlp.w1.weight: all zero",
    ),
    Case(
        "a norm of zeros, which silences its layer",
        _changed(_zero("backbone.layers.1.sa_norm.scale")),
        "sa_norm.scale: all zero",
    ),
    Case(
        "the same in a `.pt` file",
        _save(lambda kit: {**_torch(kit.weights), "audio_head": torch.zeros(kit.weights["audio_head"].shape)}),
        "audio_head: all zero",
        checkpoint="ckpt.pt",
    ),
    Case(
        "the same in shards",
        lambda kit: _shards(kit, _zero("codebook0_head.weight")),
        "of-00002.safetensors): all zero",
        checkpoint=_DIR,
    ),
    Case(
        "a codec whose codebooks were never trained",
        _changed_codec(_untrained),
        "was never trained",
        accepted=True,
        options={"--mimi": "codec.safetensors"},
        runs=True,
    ),
    Case(
        "a codec with a layer of zeros",
        _changed_codec(_zero("encoder.model.0.conv.conv.weight")),
        "encoder.model.0.conv.conv.weight: all zero",
        options={"--mimi": "codec.safetensors"},
        runs=True,
    ),
)
"""Weights that are zero in bulk, behind a header that is right."""

SECTIONS: Mapping[str, tuple[Case, ...]] = {
    "Checkpoints that are converted": ACCEPTED,
    "Weights inside something, and folders": WRAPPED,
    "What is no checkpoint of the model": REFUSED,
    "What is passed beside it": OTHER_OPTIONS,
    "Zeroed weights": ZEROED,
}
