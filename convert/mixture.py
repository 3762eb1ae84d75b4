"""Which tensor type each tensor gets at each level: a level's mixture, applied to the tensors of a file.

The tests hold it against `llama_model_quantize` itself.
"""

from collections.abc import Sequence

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Qtype

from ..models.levels import Level, Mixture
from ..models.tensor_types import TENSOR_TYPES
from ..models.tensors import GgufTensor


def tensor_types(level: Level, tensors: Sequence[GgufTensor], *, imatrix: bool = False) -> dict[str, Qtype]:
    """Types by name for all tensors of one GGUF part. `imatrix` says whether one is used: it can change the mixture.

    Vectors stay F32. The decoder's `token_embd` is Q8_0 where the level quantises: it is looked up, not streamed.
    """
    layers = sum(tensor.name.endswith(".ffn_down.weight") for tensor in tensors)
    types = {}
    for tensor in tensors:
        if len(tensor.shape) == 1:
            types[tensor.name] = Qtype.F32
        else:
            types[tensor.name] = _fit(_wanted(level.mixture, tensor, layers, imatrix), tensor)
    return types


def _wanted(mixture: Mixture, tensor: GgufTensor, layers: int, imatrix: bool) -> str:
    if tensor.name.startswith("blk."):
        _, layer, kind, _ = tensor.name.split(".")
        return _in_layer(mixture, kind, int(layer), layers, imatrix)
    if tensor.name == "output.weight":
        return mixture.output
    if tensor.name == "projection.weight" and mixture.quantises:
        return "F16"  # of the embeddings: applied to every frame
    if tensor.part == "decoder" and tensor.name == "token_embd.weight" and mixture.quantises:
        return "Q8_0"
    return mixture.base


def _in_layer(mixture: Mixture, kind: str, layer: int, layers: int, imatrix: bool) -> str:
    if mixture.more_bits and kind in ("attn_v", "ffn_down") and _use_more_bits(layer, layers):
        return mixture.more_bits
    if mixture.with_imatrix and imatrix and kind == "ffn_down" and layer < layers // 8:
        return mixture.with_imatrix
    return mixture.base


def _use_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fit(name: str, tensor: GgufTensor) -> Qtype:
    """The type itself, or llama.cpp's fallback where the columns are not a whole number of its blocks."""
    for candidate in (name, TENSOR_TYPES[name].fallback):
        if tensor.shape[-1] % GGML_QUANT_SIZES[Qtype[candidate]][0] == 0:
            return Qtype[candidate]
    return Qtype.F16
