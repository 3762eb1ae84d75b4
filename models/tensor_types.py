"""The types of ggml that our tensors can have, a row each: what stands in for one, and what one may cost.

What they are made of (blocks, scales) is ggml's own affair.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """One type."""

    max_group_error: float
    """RMS error that 256 neighbouring weights may have, over their largest magnitude.

    Relative to the largest and not to the RMS, because that is what a block's scale follows: the bounds hold for
    outliers too. They are the RMS of an error spread evenly over one quantisation step (Q8_0 1/127 and Q4_0 1/8 of the
    largest magnitude, ...) with room for rounded scales; F16 is half a unit in the last place, F32 leaves room for the
    projected table, a product whose last bits depend on the BLAS. A lost block of 32 Gaussian weights makes 0.12, a row
    in another's place 0.5.
    """
    largest_factor: int
    """Of a weight's F16 scale; 0 if there is none. On values too small for a scale it is off by half a subnormal step,
    and the weight by so many of them."""
    fallback: str = "F16"
    """What llama.cpp takes where a row is no whole number of blocks, and F16 where it is none of these either.

    Source: `tensor_type_fallback` in llama.cpp's llama-quant.cpp.
    """
    needs_imatrix: bool = False
    """Whether llama.cpp makes a matrix of it with an importance matrix only."""


TENSOR_TYPES: dict[str, TensorType] = {
    "F32": TensorType(1e-6, 0),
    "F16": TensorType(2**-11, 1),
    "Q8_0": TensorType(0.0045, 127),
    "Q6_K": TensorType(0.02, 32 * 127, fallback="Q8_0"),
    "Q5_K": TensorType(0.04, 63 * 31, fallback="Q5_1"),
    "Q5_1": TensorType(0.025, 32),
    "Q5_0": TensorType(0.03, 16),
    "Q4_K": TensorType(0.08, 63 * 15, fallback="Q5_0"),
    "Q4_1": TensorType(0.05, 16),
    "Q4_0": TensorType(0.06, 8),
    "IQ4_NL": TensorType(0.065, 127),
    "IQ4_XS": TensorType(0.065, 32 * 127, fallback="IQ4_NL"),
    "Q3_K": TensorType(0.1, 32 * 4, fallback="Q4_0"),
    "IQ3_S": TensorType(0.12, 31 * 15, fallback="IQ4_NL"),
    "IQ3_XXS": TensorType(0.16, 31 * 62 // 4, fallback="IQ4_NL", needs_imatrix=True),
    "IQ2_S": TensorType(0.2, 31 * 43 // 8, fallback="IQ4_NL", needs_imatrix=True),
    "Q2_K": TensorType(0.2, 15 * 3, fallback="Q4_0"),
    "BF16": TensorType(2**-8, 0),
}
"""By ggml's names."""
