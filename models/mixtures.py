"""The mixtures of tensor types, as data: which type a matrix gets at a level, by its kind and its layer.

They are llama.cpp's own for its `llama` arch, rule by rule. `convert/mixture.py` applies them to a model's tensors.
Source: `llama_tensor_get_type_impl` in llama.cpp's llama-quant.cpp.
"""

from collections.abc import Callable
from dataclasses import dataclass

Layers = Callable[[int, int], bool]
"""Of (layer, number of layers): whether a rule is for it."""


def every(_layer: int, _layers: int) -> bool:
    """All layers."""
    return True


def first_two(layer: int, _layers: int) -> bool:
    """Layers 0 and 1."""
    return layer < 2


def first_four(layer: int, _layers: int) -> bool:
    """Layers 0 to 3."""
    return layer < 4


def first_sixteenth(layer: int, layers: int) -> bool:
    """The first `layers // 16`."""
    return layer < layers // 16


def first_eighth(layer: int, layers: int) -> bool:
    """The first `layers // 8`."""
    return layer < layers // 8


def middle(layer: int, layers: int) -> bool:
    """All but the first eighth and the last."""
    return layers // 8 <= layer < 7 * layers // 8


def sensitive(layer: int, layers: int) -> bool:
    """The first eighth, the last, and every third between them: llama.cpp's "use more bits"."""
    return not middle(layer, layers) or (layer - layers // 8) % 3 == 2


@dataclass(frozen=True)
class Rule:
    """Another type than the mixture's base for some matrices of the layers."""

    kinds: tuple[str, ...]
    """As in the tensors' names: "attn_v", "ffn_down"."""
    type: str
    layers: Layers = every
    imatrix: bool | None = None
    """Only with an importance matrix, or only without one; None: either way."""
    grouped: bool = False
    """Only where at least four query heads share a key and a value head: then these matrices are small."""

    def takes(self, kind: str, layer: int, layers: int, *, imatrix: bool, grouped: bool) -> bool:
        """Whether it is for a matrix of `kind` in a layer."""
        return (
            kind in self.kinds
            and self.layers(layer, layers)
            and self.imatrix in (None, imatrix)
            and (grouped or not self.grouped)
        )


@dataclass(frozen=True)
class Mixture:
    """Which of ggml's types the tensors of a file get, by their names."""

    base: str
    """Of most tensors."""
    rules: tuple[Rule, ...] = ()
    """For matrices of the layers; the first that takes a matrix counts."""
    output: str = "Q6_K"
    """Of the output matrix, where its columns are whole blocks of `base`; else that is Q8_0."""
    tables: str | None = None
    """Of `token_embd` instead of `base`. (The depth decoder's has a type of its own.)"""

    @property
    def quantises(self) -> bool:
        """Whether weights lose more than a float's last bits. Then tables have types of their own."""
        return self.base not in _FLOATS

    @property
    def weighs_columns(self) -> bool:
        """Whether an importance matrix changes a bit of it: floats are rounded, and so is Q8_0, whatever it says."""
        return self.base not in (*_FLOATS, "Q8_0")


_FLOATS = ("F32", "BF16", "F16")

_VALUE, _DOWN, _ATTENTION_OUTPUT = ("attn_v",), ("ffn_down",), ("attn_output",)
_QUERY_KEY, _GATE_UP = ("attn_q", "attn_k"), ("ffn_gate", "ffn_up")


def _more_bits(base: str) -> Mixture:
    return Mixture(base, (Rule((*_VALUE, *_DOWN), "Q6_K", sensitive),))


def _four_bits(base: str) -> Mixture:
    """Of the types with a table of levels."""
    value = Rule(_VALUE, "Q5_K", grouped=True)
    return Mixture(base, (value, Rule(_DOWN, "Q5_K", first_eighth, imatrix=False)))


F32 = Mixture("F32", output="F32")
F16 = Mixture("F16", output="F16")
BF16 = Mixture("BF16", output="BF16")
Q8_0 = Mixture("Q8_0", output="Q8_0")
Q6_K = Mixture("Q6_K")
Q5_1 = Mixture("Q5_1")
Q5_0 = Mixture("Q5_0", (Rule(_DOWN, "Q5_1", first_eighth, imatrix=True),))
Q5_K_M = _more_bits("Q5_K")
Q5_K_S = Mixture("Q5_K")
Q4_1 = Mixture("Q4_1")
Q4_0 = Mixture("Q4_0", (Rule(_DOWN, "Q4_1", first_eighth, imatrix=True),))
Q4_K_M = _more_bits("Q4_K")
Q4_K_S = Mixture("Q4_K", (Rule(_VALUE, "Q5_K", first_four), Rule(_DOWN, "Q5_K", first_eighth)))
IQ4_NL = _four_bits("IQ4_NL")
IQ4_XS = _four_bits("IQ4_XS")
Q3_K_L = Mixture("Q3_K", (Rule((*_VALUE, *_DOWN, *_ATTENTION_OUTPUT), "Q5_K"),))
Q3_K_M = Mixture(
    "Q3_K",
    (
        Rule(_VALUE, "Q5_K", first_two),
        Rule(_DOWN, "Q5_K", first_sixteenth),
        Rule((*_VALUE, *_DOWN, *_ATTENTION_OUTPUT), "Q4_K"),
    ),
)
Q3_K_S = Mixture("Q3_K")
Q2_K = Mixture("Q2_K", (Rule(_VALUE, "Q4_K", grouped=True), Rule((*_VALUE, *_DOWN, *_ATTENTION_OUTPUT), "Q3_K")))
IQ3_M = Mixture("IQ3_S", (Rule((*_VALUE, *_ATTENTION_OUTPUT), "Q4_K"), Rule(_DOWN, "Q4_K", first_eighth)))
IQ3_S = Mixture("IQ3_S", (Rule(_VALUE, "Q4_K", grouped=True),))
IQ3_XS = Mixture(
    "IQ3_S",
    (Rule(_VALUE, "Q4_K", grouped=True), Rule(_QUERY_KEY, "IQ3_XXS"), Rule(_GATE_UP, "IQ3_XXS", middle)),
)
IQ3_XXS = Mixture(
    "IQ3_XXS",
    (Rule(_VALUE, "Q4_K", grouped=True), Rule(_QUERY_KEY, "IQ2_S"), Rule(_ATTENTION_OUTPUT, "IQ3_S")),
    output="Q5_K",
    tables="IQ3_S",
)
