"""Which tensor type each tensor gets at each level: a level's mixture, applied to the tensors of a file.

The tests hold it against `llama_model_quantize` itself.
"""

from collections.abc import Sequence

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Qtype

from ..models.levels import Level
from ..models.mixtures import Mixture
from ..models.tensor_types import TENSOR_TYPES
from ..models.tensors import GgufTensor

_GROUPED = 4
"""Query heads to a key and value head, from which on `attn_v` is small enough for more bits."""
_LAYERS_OF_70B = 80
"""llama.cpp takes a `llama` model of so many layers and grouped heads for Llama 2's largest, and raises its `attn_v`.

Source: `load_arch_hparams` in llama.cpp's models/llama.cpp.
"""
_RAISED = {"Q3_K": "Q5_K", "Q4_K": "Q5_K"}
"""To which types, whatever a rule has chosen before."""


def tensor_types(level: Level, tensors: Sequence[GgufTensor], *, imatrix: bool = False) -> dict[str, Qtype]:
    """Types by name for all tensors of one GGUF part. `imatrix` says whether one is used: it can change the mixture.

    Vectors stay F32. The decoder's `token_embd` is Q8_0 where the level quantises: it is looked up, not streamed.
    """
    choice = _Choice(level.mixture, tensors, imatrix)
    types = {}
    for tensor in tensors:
        if len(tensor.shape) == 1:
            types[tensor.name] = Qtype.F32
        else:
            types[tensor.name] = _fit(choice.wanted(tensor), tensor)
    return types


class _Choice:
    """The types that a mixture wants in one file, whatever the columns."""

    def __init__(self, mixture: Mixture, tensors: Sequence[GgufTensor], imatrix: bool) -> None:
        self._mixture, self._imatrix = mixture, imatrix
        self._layers = sum(tensor.name.endswith(".ffn_down.weight") for tensor in tensors)
        rows = {tensor.name: tensor.shape[0] for tensor in tensors}
        self._heads_a_group = rows.get("blk.0.attn_q.weight", 0) // rows.get("blk.0.attn_k.weight", 1)

    def wanted(self, tensor: GgufTensor) -> str:
        mixture = self._mixture
        if tensor.name.startswith("blk."):
            _, layer, kind, _ = tensor.name.split(".")
            return self._in_layer(kind, int(layer))
        if tensor.name == "output.weight":
            is_whole = _is_whole(mixture.base, tensor)
            return mixture.output if is_whole or not mixture.quantises else "Q8_0"
        if tensor.name == "projection.weight" and mixture.quantises:
            return "F16"  # of the embeddings: applied to every frame
        if tensor.part == "decoder" and tensor.name == "token_embd.weight" and mixture.quantises:
            return "Q8_0"
        if tensor.name == "token_embd.weight":
            return mixture.tables or mixture.base
        return mixture.base

    def _in_layer(self, kind: str, layer: int) -> str:
        mixture, grouped = self._mixture, self._heads_a_group >= _GROUPED
        found = mixture.base
        for rule in mixture.rules:
            if rule.takes(kind, layer, self._layers, imatrix=self._imatrix, grouped=grouped):
                found = rule.type
                break
        if kind == "attn_v" and self._layers == _LAYERS_OF_70B and self._heads_a_group > 1:
            return _RAISED.get(found, found)
        return found


def _fit(name: str, tensor: GgufTensor) -> Qtype:
    """The type itself, or llama.cpp's fallback where the columns are not a whole number of its blocks."""
    for candidate in (name, TENSOR_TYPES[name].fallback):
        if _is_whole(candidate, tensor):
            return Qtype[candidate]
    return Qtype.F16


def _is_whole(name: str, tensor: GgufTensor) -> bool:
    return tensor.shape[-1] % GGML_QUANT_SIZES[Qtype[name]][0] == 0
