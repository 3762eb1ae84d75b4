"""The table of levels: one row each, in one order."""

from collections import Counter

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from miso_gguf.convert.mixture import tensor_types
from miso_gguf.models import mixtures
from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.levels import DEFAULT_LEVEL, LEVELS, Level, finest_first, halves, parse_level
from miso_gguf.models.tensor_types import TENSOR_TYPES
from miso_gguf.models.tensors import gguf_tensors


@pytest.mark.parametrize("level", LEVELS.values(), ids=lambda level: level.key)
def test_bits_are_those_of_the_8b_model(level: Level) -> None:
    bits: Counter[str] = Counter()
    for part in ("backbone", "decoder"):
        tensors = [tensor for tensor in gguf_tensors(MISO_8B) if tensor.part == part]
        types = tensor_types(level, tensors, imatrix=level.needs_imatrix)
        for tensor in tensors:
            block, size = GGML_QUANT_SIZES[types[tensor.name]]
            bits["all"] += tensor.weights * size * 8 // block
            bits["weights"] += tensor.weights
    assert bits["all"] / bits["weights"] == pytest.approx(level.bits, abs=0.006)


def test_the_finest_first() -> None:
    """By what they lose: the legacy types have more bits than K-quants that are as good or better."""
    order = list(LEVELS)
    better = [("fp16", "bf16"), ("q5_k_m", "q5_1"), ("q5_k_s", "q5_0"), ("q4_k_m", "q4_1"), ("q4_k_s", "q4_0")]
    better += [("iq3_s", "q3_k_s"), ("iq3_xxs", "q2_k")]
    assert all(order.index(one) < order.index(other) for one, other in better)
    last = [LEVELS[key].is_last_resort for key in order]
    assert last == sorted(last)
    assert order[last.index(True)] == "q4_1"
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
    assert [parse_level(name).key for name in ("Q3_K", "Q4_K", "Q5_K")] == ["q3_k_m", "q4_k_m", "q5_k_m"], "llama.cpp's"
    assert len({level.ftype for level in LEVELS.values()}) == len(LEVELS)


@pytest.mark.parametrize(
    ("slip", "meant"), [("q4_km", "q4_k_m"), ("q4km", "q4_k_m"), ("iq3m", "iq3_m"), ("q80", "q8_0")]
)
def test_a_slip_is_told_what_was_meant(slip: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown level '{slip}': did you mean {meant}\?"):
        parse_level(slip)
    with pytest.raises(ValueError, match=r"unknown level 'zzz'\. Known: f32"):
        parse_level("zzz")


def test_halves() -> None:
    assert halves(DEFAULT_LEVEL.key) == [DEFAULT_LEVEL]
    assert [half.key for half in halves("q4_k_m+q8_0")] == ["q4_k_m", "q8_0"]
    with pytest.raises(KeyError, match="q9"):
        halves("q8_0+q9")


def test_every_type_of_a_mixture_is_a_row() -> None:
    for level in LEVELS.values():
        mixture = level.mixture
        named = {mixture.base, mixture.output, mixture.tables or "F32", *(rule.type for rule in mixture.rules)}
        assert named <= TENSOR_TYPES.keys()
        assert level.embeddings.embeddings is level.embeddings
    for name, row in TENSOR_TYPES.items():
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        smaller, _ = GGML_QUANT_SIZES[GGMLQuantizationType[row.fallback]]
        assert row.fallback in TENSOR_TYPES
        assert smaller < block or block == 1


def test_layers_of_a_rule() -> None:
    def of_32(layers: mixtures.Layers) -> list[int]:
        return [layer for layer in range(32) if layers(layer, 32)]

    assert of_32(mixtures.every) == list(range(32))
    assert of_32(mixtures.first_two) == [0, 1]
    assert of_32(mixtures.first_four) == [0, 1, 2, 3]
    assert of_32(mixtures.first_sixteenth) == [0, 1]
    assert of_32(mixtures.first_eighth) == [0, 1, 2, 3]
    assert of_32(mixtures.middle) == list(range(4, 28))
    assert of_32(mixtures.sensitive) == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [layers(0, 7) for layers in (mixtures.first_sixteenth, mixtures.first_eighth)] == [False, False]


def test_what_an_importance_matrix_changes() -> None:
    untouched = {"f32", "bf16", "fp16", "q8_0"}
    assert {level.key for level in LEVELS.values() if not level.mixture.weighs_columns} == untouched
    assert {level.key for level in LEVELS.values() if level.needs_imatrix} == {"iq3_m", "iq3_s", "iq3_xs", "iq3_xxs"}
