"""Mimi weights under whatever names a checkpoint has, brought to Kyutai's file layout and checked.

Three schemes are read: Kyutai's file, the moshi package's in-memory names (`in_projs.0.weight`), and Hugging Face's
`MimiModel`, alone or inside a CSM checkpoint as `codec_model.*`. Everything behind this module sees the first only.
It knows nothing of files: a mapping from name to array (it may be lazy) comes in.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import CheckpointError
from ...models.mimi import MimiSpec, mimi_shapes, recognise_mimi
from ...models.tensors import Shape
from ..checkpoint.hf_layout import unpermute_rows
from ..checkpoint.layouts import codec_prefix

Weights = dict[str, NDArray[np.float32]]

_HF_ANCHORS = (
    "encoder.layers.0.conv.weight",
    "decoder.layers.0.conv.weight",
    "upsample.conv.weight",
    "quantizer.semantic_residual_vector_quantizer.input_proj.weight",
    "quantizer.acoustic_residual_vector_quantizer.input_proj.weight",
)
ANCHORS = (
    (
        "encoder.model.0.conv.conv.weight",
        "decoder.model.0.conv.conv.weight",
        "upsample.convtr.convtr.convtr.weight",
        "quantizer.rvq_first.input_proj.weight",
        "quantizer.rvq_rest.input_proj.weight",
    ),
    _HF_ANCHORS,
    tuple(f"codec_model.{name}" for name in _HF_ANCHORS),
)
"""Of each scheme some names, by which a codec is found where it lies under a prefix."""

_ACOUSTIC_CODEBOOK = re.compile(r"quantizer\.rvq_rest\.vq\.layers\.(\d+)\._codebook\.(embedding_sum|cluster_usage)$")
_IGNORED = re.compile(r".*\._?(initialized|inited)$")

_MOSHI = (
    (re.compile(r"(.*\.self_attn\.)in_projs?(?:\.0)?\.weight$"), r"\1in_proj_weight"),
    (re.compile(r"(.*\.self_attn\.)out_projs\.0\.weight$"), r"\1out_proj.weight"),
)
_HF = (
    (re.compile(r"((?:en|de)coder)\.layers\.(\d+)\.block\.(\d)\.conv\.(.*)"), r"\1.model.\2.block.\3.conv.conv.\4"),
    (re.compile(r"((?:en|de)coder)\.layers\.(\d+)\.conv\.(.*)"), r"\1.model.\2.conv.conv.\3"),
    (re.compile(r"downsample\.conv\.weight$"), "downsample.conv.conv.conv.weight"),
    (re.compile(r"upsample\.conv\.weight$"), "upsample.convtr.convtr.convtr.weight"),
    (re.compile(r"quantizer\.semantic_residual_vector_quantizer\.layers\.(\d+)\.codebook\."),
     r"quantizer.rvq_first.vq.layers.\1._codebook."),
    (re.compile(r"quantizer\.acoustic_residual_vector_quantizer\.layers\.(\d+)\.codebook\."),
     r"quantizer.rvq_rest.vq.layers.\1._codebook."),
    (re.compile(r"quantizer\.semantic_residual_vector_quantizer\."), "quantizer.rvq_first."),
    (re.compile(r"quantizer\.acoustic_residual_vector_quantizer\."), "quantizer.rvq_rest."),
    (re.compile(r"\._codebook\.(?:embed_sum|embed)$"), "._codebook.embedding_sum"),
    (re.compile(r"^((?:en|de)coder_transformer)\.layers\."), r"\1.transformer.layers."),
    (re.compile(r"\.self_attn\.o_proj\.weight$"), ".self_attn.out_proj.weight"),
    (re.compile(r"\.input_layernorm\."), ".norm1."),
    (re.compile(r"\.post_attention_layernorm\."), ".norm2."),
    (re.compile(r"\.mlp\.fc([12])\."), r".linear\1."),
    (re.compile(r"\.self_attn_layer_scale\."), ".layer_scale_1."),
    (re.compile(r"\.mlp_layer_scale\."), ".layer_scale_2."),
)  # fmt: skip
_HF_LOADED = (
    (re.compile(r"^(en|de)coder\.\1coder_seanet\."), r"\1coder."),
    (re.compile(r"^(?:en|de)coder\.((?:en|de)coder_transformer|downsample|upsample)\."), r"\1."),
)
"""What newer versions of transformers call the parts of a loaded model, which torch.save writes, and they do not."""
_HF_QKV = re.compile(r"(.*\.self_attn\.)([qkv])_proj\.weight$")
_HF_DECODER_MODULE = re.compile(r"decoder\.layers\.(\d+)\.")
_HF_DECODER_CONV = re.compile(r"decoder\.model\.(\d+)\.conv\.conv\.(weight|bias)$")


@dataclass(frozen=True)
class _Split:
    """The three tensors that make up one `in_proj_weight`; q and k have their rows in half-split order."""

    q: str
    k: str
    v: str

    @property
    def names(self) -> tuple[str, str, str]:
        """In the order in which they are stacked."""
        return self.q, self.k, self.v


@dataclass
class _Names:
    """Where each tensor comes from in one checkpoint, by Kyutai's name."""

    origins: dict[str, str | _Split]
    lacking: dict[str, list[str]]
    """For a tensor of which only some parts are there: the parts that are not."""
    twice: list[str]
    """Tensors under a second name: which of the two is meant cannot be known."""

    def add(self, kyutai: str, origin: "str | _Split") -> None:
        if kyutai in self.origins:
            self.twice += [origin] if isinstance(origin, str) else origin.names
        self.origins[kyutai] = origin


def _kyutai_name(name: str, last_decoder_module: int) -> str:
    for pattern, replacement in _MOSHI:
        name = pattern.sub(replacement, name)
    if last_decoder_module:
        for pattern, replacement in _HF:
            name = pattern.sub(replacement, name)
        # Hugging Face calls both kinds of convolution `conv`; between the first and the last only transposed ones lie.
        if (m := _HF_DECODER_CONV.match(name)) and 0 < int(m[1]) < last_decoder_module:
            name = f"decoder.model.{m[1]}.convtr.convtr.{m[2]}"
    return name


def _saved_name(name: str) -> str:
    for pattern, replacement in _HF_LOADED:
        name = pattern.sub(replacement, name)
    return name


def _read_names(names: Iterable[str]) -> _Names:
    names = list(names)
    prefix = codec_prefix(names) or ""
    plain = [
        (_saved_name(name.removeprefix(prefix)), name)
        for name in names
        if name.startswith(prefix) and not _IGNORED.match(name)
    ]
    last = max((int(m[1]) for short, _ in plain if (m := _HF_DECODER_MODULE.match(short))), default=0)
    result = _Names({}, {}, [])
    qkv: dict[str, dict[str, str]] = {}
    for short, name in plain:
        kyutai = _kyutai_name(short, last)
        if m := _HF_QKV.match(kyutai):
            qkv.setdefault(f"{m[1]}in_proj_weight", {})[m[2]] = name
        else:
            result.add(kyutai, name)
    for kyutai, parts in qkv.items():
        if len(parts) == 3:
            result.add(kyutai, _Split(**parts))
        else:
            known, path = next(iter(parts.items()))
            result.lacking[kyutai] = [path.replace(f"{known}_proj", f"{p}_proj") for p in "qkv" if p not in parts]
    return result


def kyutai_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of a checkpoint's codec tensors under Kyutai's names, for `recognise_mimi`."""
    result: dict[str, Shape] = {}
    for name, origin in _read_names(shapes).origins.items():
        if isinstance(origin, str):
            result[name] = tuple(shapes[origin])
        else:
            parts = [shapes[part] for part in origin.names]
            result[name] = (sum(part[0] for part in parts), *parts[0][1:])
    return result


def _problems(spec: MimiSpec, names: _Names, shapes: Mapping[str, Shape]) -> list[str]:
    """One line for each tensor that is missing, unknown or mis-shaped, by the checkpoint's own name if it has it."""
    missing: list[str] = []
    misshaped: list[str] = []
    expected = mimi_shapes(spec)
    for name, shape in expected.items():
        origin = names.origins.get(name)
        if origin is None:
            missing += names.lacking.get(name, [name])
            continue
        part_shape = shape if isinstance(origin, str) else (shape[0] // 3, *shape[1:])
        for part in (origin,) if isinstance(origin, str) else origin.names:
            if tuple(shapes[part]) != part_shape:
                misshaped.append(f"{part} has shape {list(shapes[part])}, expected {list(part_shape)}")
    acoustic = spec.codebooks - spec.semantic_codebooks
    unknown: list[str] = []
    for name, origin in names.origins.items():
        extra = (m := _ACOUSTIC_CODEBOOK.match(name)) and int(m[1]) >= acoustic
        if name not in expected and not extra:
            unknown += [origin] if isinstance(origin, str) else origin.names
    return [
        *(f"missing: {name}" for name in missing),
        *(f"unknown: {name}" for name in unknown),
        *(f"there under another name too: {name}" for name in names.twice),
        *(f"mis-shaped: {line}" for line in misshaped),
    ]


def _refuse(problems: list[str]) -> None:
    if problems:
        remedy = "pass Kyutai's Mimi file, or a Hugging Face Mimi or CSM checkpoint, complete and unmodified"
        raise CheckpointError("\n  ".join([f"the Mimi weights cannot be used: {remedy}:", *problems]))


def mimi_weights(tensors: Mapping[str, NDArray[Any]], spec: MimiSpec | None = None) -> tuple[MimiSpec, Weights]:
    """Read a codec out of a checkpoint.

    Args:
        tensors: Name to array, in any of the three naming schemes and any float dtype that numpy can cast. Tensors
            outside `codec_model.` are not looked at when there are any inside it.
        spec: The codec expected; it may use fewer codebooks than the checkpoint has. Recognised if not given.

    Returns:
        The spec, and its tensors as float32 under Kyutai's names (`mimi_shapes(spec)`).

    Raises:
        CheckpointError: It is not a Mimi codec; or it lists every missing, unknown and mis-shaped tensor, or every
            tensor with a value that is not finite.
    """
    shapes: dict[str, Shape] = {name: tuple(array.shape) for name, array in tensors.items()}
    spec = spec or recognise_mimi(kyutai_shapes(shapes))
    names = _read_names(shapes)
    _refuse(_problems(spec, names, shapes))
    weights: Weights = {}
    for name in mimi_shapes(spec):
        origin = names.origins[name]
        if isinstance(origin, str):
            weights[name] = np.asarray(tensors[origin], np.float32)
        else:
            q, k, v = (np.asarray(tensors[part], np.float32) for part in origin.names)
            weights[name] = np.concatenate([*(unpermute_rows(rows, len(rows) // spec.heads) for rows in (q, k)), v])
    _refuse([f"not finite: {name}" for name, array in weights.items() if not np.isfinite(array).all()])
    return spec, weights
