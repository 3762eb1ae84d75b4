"""What is no checkpoint says what it is: the other things that people pass, a row each, and what to do instead.

Only asked about what could not be read or does not fit: nothing that reads well is refused here.
"""

import json
import re
import reprlib
import stat
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NoReturn

from ...core.errors import CheckpointError
from .directory import may_be_checkpoint
from .tensor_store import SourcePath

CHECKPOINT = "the model's .safetensors or .pt checkpoint"
CODEC = "Kyutai's Mimi checkpoint"
TOKENIZER = "Llama 3.2's tokenizer.json"
CONFIG = "the model's config.json"
INDEX = "the index of the checkpoint's shards"
IMATRIX = "an imatrix in GGUF format (miso-recipe imatrix writes it)"
"""What a file may have been passed as: the end of a message."""

_AGAIN = "download it again"
_SIGNED_IN = f"{_AGAIN}, signed in if its repository is gated (hf auth login)"
_UNPACK = "unpack it and pass what is inside"
_OTHER_WEIGHTS = "pass the weights that it was made from"
_UNQUANTISED = "its numbers are rounded already and packed in its own way: convert the original weights"
_MERGE = (
    "merge it into its base first (peft: PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained(OUT)) "
    "and convert OUT"
)


@dataclass(frozen=True)
class _Kind:
    """One thing that is no checkpoint. Any of its signs is enough.

    `{said}` is how a file begins, `{wanted}` what it was passed as.
    """

    what: str
    instead: str = "pass {wanted}"
    head: bytes = b""
    """What a file begins with, a pattern."""
    name: str = ""
    """What a file of it is called, a pattern: the one that is passed, or one of a folder."""
    member: str = ""
    """What a file inside a zip file is called, a pattern."""
    tensor: str = ""
    """What is found in the names of its tensors, a pattern ..."""
    without: str = ""
    """... and what is not."""
    fine_as: Collection[str] = ()
    """Passed as one of these it is of the right kind, and its reader knows what is wrong with it."""


_KINDS = (
    _Kind("weights in a safetensors file", head=rb"....[\0-\x01]\0\0\0\{", fine_as=(CHECKPOINT, CODEC)),
    # A file of nothing, or a server's answer instead of a file.
    _Kind("empty", _AGAIN, head=rb"\s*\Z"),
    _Kind("nothing but zeros where it begins", f"the download was never finished: {_AGAIN}", head=rb"\0{8,}\Z"),
    _Kind(
        "a Git LFS pointer, not the file itself", "run git lfs pull in its folder", head=rb"version https://(git-lfs|h)"
    ),
    _Kind("a Xet pointer, not the file itself", "fetch it with hf download", head=rb"# xet version"),
    _Kind(
        "a web page", f"the link was to a page about the file, or a login was needed: {_SIGNED_IN}",
        head=rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body|script|meta)\b",
    ),
    _Kind("a server's answer in XML ({said})", f"the link is refused or too old: {_AGAIN}", head=rb"\s*<\?xml|<Error"),
    _Kind(
        "a server's error message ({said})", _SIGNED_IN,
        head=rb'(?i)\s*(\{\s*"(error|errors|message|detail|code|status|statusCode|success|reason)"\s*:'
        rb"|(entry|file|page|repository|revision|404:?) not found|not found\s*\Z|access to model|access denied"
        rb"|invalid (username|credentials|rev)|unauthorized|forbidden|too many requests|rate limit|[45]\d\d[: ]"
        rb"|(internal server|bad gateway|gateway time|service unavail)|no ?such ?(key|bucket)|you (need|must|have) )",
    ),
    # Weights, made into something from which they cannot be had back, or by a framework that is not read.
    _Kind(
        "a bundle, converted already", "speak with it (miso-speak --model DIR) or check it (miso-convert verify DIR)",
        name=r"miso\.json",
    ),
    _Kind(
        "an imatrix.dat, llama.cpp's imatrix format before GGUF",
        "if it is this model's, llama-imatrix --in-file OLD.dat --output-format gguf -o NEW.gguf makes one that "
        "--imatrix-backbone and --imatrix-decoder take",
        head=rb"(?!\0\0\0\0)..[\0-\x10]\0[\x01-\xff]\0\0\0[\w.-]+(\.weight|\.bias|_exps|_embd|output)",
    ),
    _Kind(
        "a GGUF file, converted already", head=rb"GGUF|[tl]jgg|lmgg|fmgg", name=r".*\.(gguf|ggml)", fine_as=(IMATRIX,)
    ),
    _Kind("an imatrix of llama.cpp", name=r".*imatrix.*", fine_as=(IMATRIX,)),
    _Kind("a TensorRT engine", _OTHER_WEIGHTS, head=rb"[fp]trt", name=r".*\.(engine|plan|trt)"),
    _Kind("a Core ML model", _OTHER_WEIGHTS, name=r".*\.(mlmodelc?|mlpackage)|coremldata\.bin|Manifest\.json"),
    _Kind("an ONNX model", _OTHER_WEIGHTS, head=rb"\x08[\x03-\x1f][\x12\x1a\x3a\x42]", name=r".*\.(onnx|ort)(_data)?"),
    _Kind("an OpenVINO model", _OTHER_WEIGHTS, name=r"openvino_.*\.(xml|bin)"),
    _Kind("a model for TFLite or ExecuTorch", _OTHER_WEIGHTS, head=rb"....(TFL3|ET\d\d)", name=r".*\.(tflite|pte)"),
    _Kind("a Keras model", "pass the weights as PyTorch saves them", member=r"model\.weights\.h5", name=r".*\.keras"),
    _Kind(
        "a TensorFlow or Keras model", "pass the weights as PyTorch saves them",
        head=rb"\x89HDF\r\n", name=r".*\.(h5|hdf5)|saved_model\.pb|.*\.ckpt\.(index|meta|data-\d.*)",
    ),
    _Kind(
        "a Flax or JAX model", "pass the weights as PyTorch saves them", name=r".*\.msgpack|_CHECKPOINT_METADATA",
        head=rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9.|\xda..)[\w.]",
    ),
    _Kind(
        "an MLX model", "convert the weights that it was made from", name=r"weights(\.\d+)?\.npz",
        tensor=r"\.biases$",
    ),
    _Kind("a NumPy array or archive", head=rb"\x93NUMPY", member=r".*\.npy", name=r".*\.np[yz]"),
    _Kind(
        "a TorchScript program", "save its weights with torch.save(model.state_dict(), FILE)",
        member=r".*/code/.*|.*/constants\.pkl",
    ),
    _Kind(
        "a torch.export program", "save its weights with torch.save(program.state_dict, FILE)", name=r".*\.pt2",
        member=r"(.*/)?(archive_format|serialized_exported_program\.json)",
    ),
    _Kind("the parts of a diffusers pipeline, another kind of model", name=r"model_index\.json"),
    # Training state.
    _Kind(
        "a LoRA adapter, not a model", _MERGE, name=r"adapter_config\.json|adapter_(model|\d+)\.(safetensors|bin|pt)",
        tensor=r"(\b|_)(lora_(A|B|down|up|magnitude|embedding)|hada_w|lokr_w|(oft|boft|ia3|vera|vblora|randlora|fourierft|"
        r"shira|bone|road|c3a|hra)_|base_layer\b)",
    ),
    _Kind(
        "a DeepSpeed ZeRO checkpoint", "python zero_to_fp32.py DIR OUT (the script is in DIR) joins it: convert OUT",
        name=r"zero_to_fp32\.py|(.*_)?zero_pp_rank_\d.*|mp_rank_\d+_model_states\.pt",
    ),
    _Kind(
        "a torch.distributed checkpoint",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR ckpt.pt joins it: convert ckpt.pt",
        name=r"\.metadata|.*\.distcp",
    ),
    _Kind(
        "a Megatron checkpoint", "join and export it with Megatron's own tools first",
        name=r"latest_checkpointed_iteration\.txt|model_optim_rng\.pt",
    ),
    _Kind(
        "the state of an optimizer or trainer", "pass the model's weights, which are saved beside it",
        name=r"(optimizer|scheduler|scaler|rng_state.*|random_states.*|training_args)(_\d+)?\.(pt|pth|bin|pkl)",
        tensor=r"\b(exp_avg|exp_avg_sq|momentum_buffer)\b", without=r"^(?!.*(exp_avg|momentum|\bstep$)).*backbone",
    ),
    _Kind("the output of a trainer", "pass one of its checkpoint folders", name=r"checkpoint-\d+(/.*)?"),
    _Kind("a repository as the hub's cache keeps it", "pass a version in it, snapshots/COMMIT", name=r"snapshots"),
    # Quantised weights.
    _Kind("quantised by bitsandbytes to 4 bits", _UNQUANTISED, tensor=r"\.quant_state\.bitsandbytes__|\.absmax$"),
    _Kind("quantised by bitsandbytes to 8 bits", _UNQUANTISED, tensor=r"\.SCB$|\.weight_format$"),
    _Kind("quantised by EXL2 or EXL3", _UNQUANTISED, tensor=r"\.(q_weight|trellis)$", name=r"measurement\.json"),
    _Kind("quantised by GPTQ", _UNQUANTISED, tensor=r"\.g_idx$", name=r"quantize_config\.json|gptq_model.*"),
    _Kind("quantised by AWQ", _UNQUANTISED, tensor=r"\.(qweight|qzeros)$", name=r"quant_config\.json|awq_model.*"),
    _Kind("quantised by HQQ", _UNQUANTISED, tensor=r"\.W_q\b", name=r"qmodel\.pt"),
    _Kind("quantised by AQLM", _UNQUANTISED, tensor=r"\.codes$"),
    _Kind("quantised by VPTQ", _UNQUANTISED, tensor=r"\.centroids\b"),
    _Kind("quantised by quanto", _UNQUANTISED, tensor=r"weight\._(data|scale|shift|qtype)\b", name=r"quanto_.*\.json"),
    _Kind("quantised by torchao", _UNQUANTISED, tensor=r"_weight_(qdata|scale|zero_point)$|tensor_impl|:_data\b"),
    _Kind("quantised by EETQ", _UNQUANTISED, tensor=r"\.weight_scales$"),
    _Kind("quantised to FP8", _UNQUANTISED, tensor=r"\.weight_scale_inv$|\.scale_weight$|\bscaled_fp8$"),
    _Kind(
        "quantised in the way of compressed-tensors or ModelOpt", _UNQUANTISED,
        tensor=r"\.(weight_packed|weight_scale(_2)?|weight_zero_point|weight_shape|input_scale)$|weight_quantizer\b",
    ),
    # Weights that read well, of something else.
    _Kind(
        "Mimi, the codec, without the model", "pass it with --mimi, and the model as CHECKPOINT", fine_as=(CODEC,),
        tensor=r"^(quantizer|encoder_transformer|decoder_transformer)\.", without=r"^(backbone|dep)",
    ),
    _Kind(
        "the backbone alone", "pass the whole checkpoint: the depth decoder, decoder.*, is missing",
        tensor=r"^backbone(_model)?\.", without=r"^decoder\.|^depth_decoder\.",
    ),
    _Kind(
        "the depth decoder alone", "pass the whole checkpoint: the backbone, backbone.*, is missing",
        tensor=r"^decoder\.layers\.\d+\.(attn|mlp)\.|^depth_decoder\.", without=r"^backbone",
    ),
    _Kind(
        "a speech model, not the codec", f"pass it as CHECKPOINT, {CODEC} with --mimi", fine_as=(CHECKPOINT,),
        tensor=r"^(backbone\.|backbone_model\.|depth_decoder\.|text_embeddings\.|codebook0_head\.)",
    ),
    _Kind("Moshi, another model", tensor=r"^depformer"),
    _Kind("Whisper, another model", tensor=r"^(model\.)?encoder\.conv1\."),
    _Kind("a Qwen speech model, another model", tensor=r"^(talker|thinker)\."),
    _Kind("a diffusion model", tensor=r"diffusion_model\.|^(down|up)_blocks\."),
    _Kind("a language model, not of the CSM design", tensor=r"^(model\.|transformer\.)*(layers|h)\.\d+\."),
    # Files of other kinds, the least telling signs last.
    _Kind(
        "weights that PyTorch saved", fine_as=(CHECKPOINT, CODEC), head=rb"\x80[\x02-\x05]", member=r"(.*/)?data\.pkl"
    ),
    _Kind(
        "a download that is not finished", "let it finish",
        name=r".*\.(incomplete|part|partial|crdownload|opdownload|aria2|download|tmp)|\.cache",  # as `hf download` does
    ),
    _Kind("a tar archive", _UNPACK, head=rb"(?s).{257}ustar", name=r".*\.(tar(\..*)?|tgz|nemo)"),
    _Kind(
        "a compressed file (gzip, xz, bzip2, zstd or lz4)", _UNPACK, name=r".*\.(gz|xz|bz2|zst|lz4)",
        head=rb"\x1f\x8b|\xfd7zXZ|BZh[1-9]1AY|\x28\xb5\x2f\xfd|\x04\x22M\x18",
    ),
    _Kind("an archive (7z or rar)", _UNPACK, head=rb"7z\xbc\xaf|Rar!", name=r".*\.(7z|rar)(\.\d+)?"),
    _Kind("a zip archive", _UNPACK, head=rb"PK\x05\x06", member=r".+", name=r".*\.zip"),
    _Kind("sound", head=rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xf2\xf3\xfa\xfb]|FORM....AIF|....ftypM4A"),
    _Kind("a picture or film", head=rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....(WEBP|AVI )|....ftyp|\x1aE\xdf\xa3"),
    _Kind("a PDF", head=rb"%PDF-"),
    _Kind("a program or library", head=rb"\x7fELF|MZ.{58,}PE\0\0|\xcf\xfa\xed\xfe"),
    _Kind("a database", head=rb"SQLite format 3"),
    _Kind("a SentencePiece model", head=rb"\n.{0,3}\n.<unk>"),
    _Kind("a list of tokens for tiktoken", head=rb"[A-Za-z0-9+/]+={0,2} \d+\n[A-Za-z0-9+/]+={0,2} \d+\n"),
    _Kind("a JSON file", head=rb"(\xef\xbb\xbf)?\s*[{\[]", fine_as=(TOKENIZER, CONFIG, INDEX)),
    _Kind(
        "text ({said})", head=rb"([\t\n\r\f -~]|[\xc2-\xf4][\x80-\xbf]{1,3})+[\xc2-\xf4]?[\x80-\xbf]{0,2}\Z",
        fine_as=(TOKENIZER, CONFIG, INDEX),
    ),
)  # fmt: skip

_OURS = re.compile(r"backbone|decoder|text_embeddings|audio_embeddings|codebook0_head|audio_head|quantizer")
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".opdownload", ".aria2", ".download", ".tmp")
_HEAD_BYTES, _MAX_BYTES, _SAID = 4096, 1 << 24, 100


def refuse_file(path: SourcePath, wanted: str = CHECKPOINT) -> None:
    """Say what a file is that could not be read as what is wanted.

    Raises:
        CheckpointError: In one line, with the remedy. Returns if it is nothing that is known, or of the kind that is
            wanted and damaged.
    """
    if unfinished := _unfinished(path):
        _refuse(path, f"is a download that is not finished ({unfinished})", "let it finish, or start it again")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait
            return
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            is_zip = head.startswith(b"PK\x03\x04")
            if is_zip and not zipfile.is_zipfile(file):
                _refuse(path, "is the beginning of a zip file, as torch.save writes them", f"truncated: {_AGAIN}")
            members, pickled = _unzipped(file) if is_zip else ([], head)
    except CheckpointError:
        raise
    except Exception:  # whoever could not read it has said why; zipfile and zlib raise a dozen kinds
        return
    if b"param_groups" in pickled and not re.search(rb"state_dict|model", pickled):
        _refuse(path, "is the state of an optimizer", "pass the model's weights, which are saved beside it")

    def is_it(kind: _Kind) -> bool:
        if _is_called(kind, path.name):
            return True
        if is_zip:
            return bool(kind.member) and any(re.fullmatch(kind.member, name) for name in members)
        return bool(kind.head) and re.match(kind.head, head, re.DOTALL) is not None

    _refuse_kind(path, is_it, wanted, head=head)


def refuse_directory(names: Collection[str], read: Callable[[str], bytes | None], place: object) -> None:
    """Say what a folder or repository holds that has no checkpoint, or one that its config says is quantised.

    Args:
        names: Of its files, and of its folders or of the files in them.
        read: Gives the content of a file of that name, None if there is none.
        place: The folder or repository, for the message.

    Raises:
        CheckpointError: In one line, with the remedy. Returns if it is nothing that is known.
    """
    if method := _quantised(read("config.json")):
        _refuse(place, f"is quantised by {method}, as its config.json says", _UNQUANTISED)
    kinds = [kind for kind in _KINDS if any(_is_called(kind, name) for name in names)]
    weights = [name for name in names if "/" not in name and may_be_checkpoint(name.removesuffix(".index.json"))]
    if all(any(_is_called(kind, name) for kind in kinds) for name in weights):
        _refuse_kind(place, kinds.__contains__, CHECKPOINT, is_folder=True)


def refuse_tensors(names: Collection[str], path: object, wanted: str = CHECKPOINT) -> None:
    """Say what a file is that reads well and whose tensors are not those of what is wanted.

    Raises:
        CheckpointError: In one line, with the remedy. Returns if the names are like those that are wanted.
    """
    lines = "\n".join(names)

    def found(pattern: str) -> bool:
        return bool(pattern) and re.search(pattern, lines, re.MULTILINE) is not None

    _refuse_kind(path, lambda kind: found(kind.tensor) and not found(kind.without), wanted)
    if names and wanted == CHECKPOINT and not _OURS.search(lines):
        shown = ", ".join(reprlib.repr(name) for name in islice(names, 3))
        _refuse(path, f"is another model: its {len(names)} tensors are called {shown}, ...", f"pass {wanted}")


def _refuse_kind(
    place: object, is_it: Callable[[_Kind], bool], wanted: str, *, head: bytes = b"", is_folder: bool = False
) -> None:
    kind = next((kind for kind in _KINDS if is_it(kind)), None)
    if kind and wanted not in kind.fine_as:
        said = repr(" ".join(re.findall(r"[!-~]+", head.decode("latin-1")))[:_SAID])
        verb = "holds" if is_folder and not kind.what.startswith("quantised") else "is"
        _refuse(place, f"{verb} {kind.what.format(said=said)}", kind.instead.format(wanted=wanted))


def _refuse(place: object, what: str, instead: str) -> NoReturn:
    raise CheckpointError(f"{place}: {what}: {instead}")


def _is_called(kind: _Kind, name: str) -> bool:
    return bool(kind.name) and re.fullmatch(kind.name, name) is not None


def _unfinished(path: SourcePath) -> str | None:
    """What shows that a download is not finished: the name that programs give one, or what they keep beside it."""
    if path.suffix in _UNFINISHED:
        return path.name
    beside = [path.parent / f"{path.name}{suffix}" for suffix in _UNFINISHED] if isinstance(path, Path) else []
    return next((f"{file.name} lies beside it" for file in beside if file.exists()), None)


def _unzipped(file: BinaryIO) -> tuple[list[str], bytes]:
    """(names of the files in a zip file, the pickle among them as torch.save calls it: it is not run)."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickled = next((name for name in names if re.fullmatch(r"(.*/)?data\.pkl", name)), None)
        return names, archive.open(pickled).read(_MAX_BYTES) if pickled else b""


def _quantised(config: bytes | None) -> str | None:
    """By what a model was quantised, as its config.json says."""
    try:
        content = json.loads((config or b"{}")[:_MAX_BYTES])
        found, by_mlx = content.get("quantization_config"), content.get("quantization")
        if isinstance(by_mlx, dict) and "group_size" in by_mlx:
            return "MLX"
        return reprlib.repr(str(found.get("quant_method", "?"))) if isinstance(found, dict) and found else None
    except (ValueError, RecursionError, AttributeError):
        return None
