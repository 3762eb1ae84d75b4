"""The table of levels: one row each, in one order."""

from collections import Counter

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from miso_gguf.convert.mixture import tensor_types
from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.levels import DEFAULT_LEVEL, LEVELS, Level, finest_first, halves, parse_level
from miso_gguf.models.tensor_types import TENSOR_TYPES
from miso_gguf.models.tensors import gguf_tensors


@pytest.mark.parametrize("level", LEVELS.values(), ids=lambda level: level.key)
def test_bits_are_those_of_the_8b_model(level: Level) -> None:
    bits: Counter[str] = Counter()
    for part in ("backbone", "decoder"):
        tensors = [tensor for tensor in gguf_tensors(MISO_8B) if tensor.part == part]
        types = tensor_types(level, tensors)
        for tensor in tensors:
            block, size = GGML_QUANT_SIZES[types[tensor.name]]
            bits["all"] += tensor.weights * size * 8 // block
            bits["weights"] += tensor.weights
    assert bits["all"] / bits["weights"] == pytest.approx(level.bits, abs=0.006)


def test_the_finest_first() -> None:
    bits = [level.bits for level in LEVELS.values()]
    assert bits == sorted(bits, reverse=True)
    assert len(set(bits)) == len(bits)
    assert finest_first(["q4_0", "q4_k_m+q8_0", "f32", "q4_k_m", "q8_0"]) == [
        "f32",
        "q8_0",
        "q4_k_m",
        "q4_k_m+q8_0",
        "q4_0",
    ]


def test_tables_are_as_exact_as_the_weights_or_shared() -> None:
    for level in LEVELS.values():
        assert level.embeddings.key == ("q8_0" if level.mixture.quantises else level.key)


def test_names_are_of_one_level_each() -> None:
    names = [name for level in LEVELS.values() for name in {level.key, level.label.lower(), *level.aliases}]
    assert len(set(names)) == len(names)
    assert all(parse_level(level.label) is level for level in LEVELS.values())
    assert len({level.ftype for level in LEVELS.values()}) == len(LEVELS)


def test_halves() -> None:
    assert halves(DEFAULT_LEVEL.key) == [DEFAULT_LEVEL]
    assert [half.key for half in halves("q4_k_m+q8_0")] == ["q4_k_m", "q8_0"]
    with pytest.raises(KeyError, match="q9"):
        halves("q8_0+q9")


def test_every_type_of_a_mixture_is_a_row() -> None:
    for level in LEVELS.values():
        mixture = level.mixture
        assert {mixture.base, mixture.output, mixture.more_bits or "F32", mixture.with_imatrix or "F32"} <= (
            TENSOR_TYPES.keys()
        )
        assert level.embeddings.embeddings is level.embeddings
    for name, row in TENSOR_TYPES.items():
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        smaller, _ = GGML_QUANT_SIZES[GGMLQuantizationType[row.fallback]]
        assert row.fallback in TENSOR_TYPES
        assert smaller < block or block == 1
