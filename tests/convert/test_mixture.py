"""Rules that models of a few layers never meet, without a weight: what `llama_model_quantize` does is in its source."""

from dataclasses import replace

import pytest
from gguf import GGMLQuantizationType as Qtype

from miso_gguf.convert.mixture import tensor_types
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import parse_level
from miso_gguf.models.spec import TransformerSpec
from miso_gguf.models.tensors import gguf_tensors


@pytest.mark.parametrize(
    ("layers", "heads", "kv_heads", "level", "value"),
    [
        (80, 4, 1, "q3_k_s", "Q5_K"),
        (80, 4, 2, "q3_k_s", "Q5_K"),
        (80, 4, 4, "q3_k_s", "Q3_K"),  # 65B: every head has a value of its own
        (79, 4, 1, "q3_k_s", "Q3_K"),
        (81, 4, 1, "q3_k_s", "Q3_K"),
        (80, 4, 1, "q2_k", "Q5_K"),  # Q4_K by its rule
        (80, 4, 4, "q2_k", "Q3_K"),
        (80, 4, 1, "iq3_s", "Q5_K"),
        (80, 4, 2, "iq3_s", "IQ3_S"),
        (80, 4, 1, "q4_0", "Q4_0"),
        # Of any other model what its rules say: more where at least four heads share a value.
        (2, 6, 2, "q2_k", "Q3_K"),
        *((2, 8, kv, "iq4_nl", name) for kv, name in ((8, "IQ4_NL"), (4, "IQ4_NL"), (2, "Q5_K"), (1, "Q5_K"))),
        *((2, 8, kv, "iq3_s", name) for kv, name in ((8, "IQ3_S"), (4, "IQ3_S"), (2, "Q4_K"), (1, "Q4_K"))),
        *((2, 8, kv, "q2_k", name) for kv, name in ((8, "Q3_K"), (4, "Q3_K"), (2, "Q4_K"), (1, "Q4_K"))),
    ],
)
def test_values_by_how_many_heads_share_one(layers: int, heads: int, kv_heads: int, level: str, value: str) -> None:
    """80 layers and shared values: llama.cpp takes that for Llama 2 70B."""
    spec = replace(TINY, backbone=TransformerSpec(layers, 256, heads, kv_heads, 64, 256))
    tensors = [tensor for tensor in gguf_tensors(spec) if tensor.part == "backbone"]
    types = tensor_types(parse_level(level), tensors, imatrix=True)
    assert {types[f"blk.{layer}.attn_v.weight"] for layer in range(layers)} == {Qtype[value]}
    assert types["blk.1.attn_k.weight"] == Qtype[parse_level(level).mixture.base]
