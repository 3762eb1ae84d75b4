"""Block quantisation by ggml itself, through ctypes.

llama.cpp quantises with the same `ggml_quantize_chunk`, which is why our bytes equal its. ctypes releases the GIL for
the call, so Python threads scale.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..core.arrays import F32Array, U8Array
from .libraries import ggml_base

_SEARCHED = {GGMLQuantizationType[name] for name in ("IQ3_S", "IQ3_XXS", "IQ2_S")}
"""Types whose blocks are points of a grid. Where a sum on the way to a point overflows, ggml ends the process."""
MOST_WEIGHT = 1e10
"""A weight's magnitude there: without importances ggml sums its cube. No scale of these types holds 1e8 either."""
_MOST_WEIGHED = 1e30
"""An importance there, by itself and times a weight's square: with the sums over a block far from float32's end."""


def row_bytes(qtype: GGMLQuantizationType, columns: int) -> int:
    """Bytes of one row. Raises `ValueError` if `columns` is not a whole number of blocks."""
    block, size = GGML_QUANT_SIZES[qtype]
    if columns % block:
        raise ValueError(f"{columns} columns are not a multiple of {qtype.name}'s block of {block}")
    return columns // block * size


def quantize(qtype: GGMLQuantizationType, rows: F32Array, imatrix: F32Array | None = None) -> U8Array:
    """Quantise float32 `rows` [n, columns] to bytes [n, row_bytes], as llama.cpp does.

    `imatrix` [columns] weighs the columns' errors. Raises `ValueError` on what ggml would end the process for.
    """
    if rows.ndim != 2 or rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise ValueError(f"rows must be a contiguous float32 matrix, not {rows.dtype} {rows.shape}")
    count, columns = rows.shape
    out = np.empty((count, row_bytes(qtype, columns)), np.uint8)
    if imatrix is not None and (imatrix.shape != (columns,) or imatrix.dtype != np.float32):
        raise ValueError(f"imatrix must be float32 [{columns}], not {imatrix.dtype} {imatrix.shape}")
    if qtype == GGMLQuantizationType.F32:
        return rows.view(np.uint8)
    if qtype in _SEARCHED:
        _check_searched(qtype, rows, imatrix)
    written = ggml_base().ggml_quantize_chunk(
        int(qtype),
        rows.ctypes.data,
        out.ctypes.data,
        0,
        count,
        columns,
        imatrix.ctypes.data if imatrix is not None else None,
    )
    assert written == out.nbytes, (qtype, rows.shape, written)
    return out


def _check_searched(qtype: GGMLQuantizationType, rows: F32Array, imatrix: F32Array | None) -> None:
    largest = float(np.abs(rows).max(initial=0.0))
    importance = 1.0 if imatrix is None else float(imatrix.max(initial=0.0))
    # NaN fails every comparison.
    weighed = max(largest**2, 1.0) * importance
    if not (largest <= MOST_WEIGHT and weighed <= _MOST_WEIGHED):
        raise ValueError(
            f"{qtype.name} takes weights up to {MOST_WEIGHT:g}, and importances up to {_MOST_WEIGHED:g}, also when "
            f"multiplied by a weight's square; not {largest:g} with an importance of {importance:g}"
        )


def is_valid(qtype: GGMLQuantizationType, data: U8Array) -> bool:
    """Whether no value or block scale in `data` is NaN or Inf: what llama.cpp checks too. ggml prints the first."""
    return bool(ggml_base().ggml_validate_row_data(int(qtype), data.ctypes.data, data.nbytes))


def dequantize(qtype: GGMLQuantizationType, data: U8Array, columns: int) -> F32Array:
    """Inverse of `quantize`: bytes [n, row_bytes] to float32 [n, columns]."""
    if data.ndim != 2 or data.shape[1] != row_bytes(qtype, columns):
        raise ValueError(
            f"{qtype.name} rows of {columns} columns take {row_bytes(qtype, columns)} bytes, not {data.shape}"
        )
    data = np.ascontiguousarray(data)
    if qtype == GGMLQuantizationType.F32:
        return data.view(np.float32)
    if qtype == GGMLQuantizationType.F16:
        return data.view(np.float16).astype(np.float32)
    out = np.empty((data.shape[0], columns), np.float32)
    traits = ggml_base().ggml_get_type_traits(int(qtype)).contents
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
