"""Block quantisation by ggml itself, through ctypes.

llama.cpp quantises with the same `ggml_quantize_chunk`, which is why our bytes equal its. ctypes releases the GIL for
the call, so Python threads scale.
"""

import ctypes
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..models.errors import MisoError

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits`. Source: ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    )


@lru_cache(maxsize=1)
def _ggml_base() -> ctypes.CDLL:
    """The `ggml-base` library inside the installed llama-cpp-python."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise MisoError("llama-cpp-python is not installed: pip install 'llama-cpp-python>=0.3.36,<0.4'")
    directory = Path(spec.submodule_search_locations[0]) / "lib"
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    for name in (f"libggml-base{suffix}", f"ggml-base{suffix}"):
        if (directory / name).exists():
            library = ctypes.CDLL(str(directory / name))
            break
    else:
        raise MisoError(f"no ggml-base library in {directory}: reinstall llama-cpp-python (>=0.3.36,<0.4)")
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    return library


def row_bytes(qtype: GGMLQuantizationType, columns: int) -> int:
    """Bytes of one row. Raises `ValueError` if `columns` is not a whole number of blocks."""
    block, size = GGML_QUANT_SIZES[qtype]
    if columns % block:
        raise ValueError(f"{columns} columns are not a multiple of {qtype.name}'s block of {block}")
    return columns // block * size


def quantize(qtype: GGMLQuantizationType, rows: F32Array, imatrix: F32Array | None = None) -> U8Array:
    """Quantise float32 `rows` [n, columns] to bytes [n, row_bytes], as llama.cpp does.

    `imatrix` [columns] weighs the columns' errors. Raises `ValueError` on shapes or dtypes that ggml would abort on.
    """
    if rows.ndim != 2 or rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise ValueError(f"rows must be a contiguous float32 matrix, not {rows.dtype} {rows.shape}")
    count, columns = rows.shape
    out = np.empty((count, row_bytes(qtype, columns)), np.uint8)
    if imatrix is not None and (imatrix.shape != (columns,) or imatrix.dtype != np.float32):
        raise ValueError(f"imatrix must be float32 [{columns}], not {imatrix.dtype} {imatrix.shape}")
    if qtype == GGMLQuantizationType.F32:
        return rows.view(np.uint8)
    written = _ggml_base().ggml_quantize_chunk(
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


def is_valid(qtype: GGMLQuantizationType, data: U8Array) -> bool:
    """Whether no value or block scale in `data` is NaN or Inf: what llama.cpp checks too. ggml prints the first."""
    return bool(_ggml_base().ggml_validate_row_data(int(qtype), data.ctypes.data, data.nbytes))


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
    traits = _ggml_base().ggml_get_type_traits(int(qtype)).contents
    if (traits.blck_size, traits.type_size) != GGML_QUANT_SIZES[qtype]:
        raise MisoError("this llama-cpp-python lays out ggml_type_traits differently: install >=0.3.36,<0.4")
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
