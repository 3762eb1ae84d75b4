"""Which tensor type each tensor gets at each level: llama.cpp's own mixtures for its `llama` arch.

Source: `llama_tensor_get_type` and `tensor_type_fallback` in llama.cpp's llama-quant.cpp. The tests hold this file
against `llama_model_quantize` itself.
"""

from collections.abc import Sequence

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Qtype

from ..models.levels import Level
from ..models.tensors import GgufTensor

_FALLBACK = {Qtype.Q4_K: Qtype.Q5_0, Qtype.Q6_K: Qtype.Q8_0}
_PLAIN = (Qtype.F32, Qtype.F16)


def tensor_types(level: Level, tensors: Sequence[GgufTensor], *, imatrix: bool = False) -> dict[str, Qtype]:
    """Types by name for all tensors of one GGUF part. `imatrix` says whether one is used: it changes Q4_0's mixture.

    Vectors stay F32. The decoder's `token_embd` is Q8_0 where the level quantises: it is looked up, not streamed.
    """
    base = Qtype[level.base_type]
    layers = sum(tensor.name.endswith(".ffn_down.weight") for tensor in tensors)
    types = {}
    for tensor in tensors:
        if len(tensor.shape) == 1:
            types[tensor.name] = Qtype.F32
        elif tensor.part == "embeddings":
            types[tensor.name] = _embeddings_type(base, tensor)
        elif base in _PLAIN:
            types[tensor.name] = base
        elif tensor.part == "decoder" and tensor.name == "token_embd.weight":
            types[tensor.name] = _fit(Qtype.Q8_0, tensor)
        else:
            types[tensor.name] = _fit(_mixture_type(base, tensor, layers, imatrix), tensor)
    return types


def _mixture_type(base: Qtype, tensor: GgufTensor, layers: int, imatrix: bool) -> Qtype:
    if tensor.name == "output.weight":
        if tensor.shape[-1] % GGML_QUANT_SIZES[base][0]:
            return Qtype.Q8_0
        return base if base == Qtype.Q8_0 else Qtype.Q6_K
    if tensor.name == "token_embd.weight":
        return base
    _, layer, kind, _ = tensor.name.split(".")
    if base == Qtype.Q4_K and kind in ("attn_v", "ffn_down") and _use_more_bits(int(layer), layers):
        return Qtype.Q6_K
    if base == Qtype.Q4_0 and kind == "ffn_down" and imatrix and int(layer) < layers // 8:
        return Qtype.Q4_1
    return base


def _use_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fit(qtype: Qtype, tensor: GgufTensor) -> Qtype:
    """The type itself, or llama.cpp's fallback where the columns are not a whole number of its blocks."""
    columns = tensor.shape[-1]
    if columns % GGML_QUANT_SIZES[qtype][0] == 0:
        return qtype
    smaller = _FALLBACK.get(qtype, qtype)
    return smaller if columns % GGML_QUANT_SIZES[smaller][0] == 0 else Qtype.F16


def _embeddings_type(base: Qtype, tensor: GgufTensor) -> Qtype:
    """Tables in the level's own type; the projection, which is applied to every frame, stays F16."""
    if tensor.name == "projection.weight" and base not in _PLAIN:
        return Qtype.F16
    return _fit(base, tensor)
