"""The ctypes binding against gguf-py's numpy implementation of the same formats."""

import ctypes

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Qtype
from gguf import quants
from numpy.typing import NDArray

from miso_gguf.native.ggml import MOST_WEIGHT, dequantize, is_valid, quantize, row_bytes
from miso_gguf.native.libraries import ggml_base

TYPES = [Qtype.F32, Qtype.F16, Qtype.Q8_0, Qtype.Q4_0, Qtype.Q4_1, Qtype.Q5_0, Qtype.Q4_K, Qtype.Q6_K]


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    values = np.random.default_rng(5).standard_normal((24, 512), np.float32)
    values[3] = 0
    values[4] *= 1e-6
    values[5, 7] = 300
    return values


@pytest.mark.parametrize("qtype", TYPES, ids=lambda t: t.name)
def test_dequantises_as_gguf_py(qtype: Qtype, rows: NDArray[np.float32]) -> None:
    data = quantize(qtype, rows)
    assert data.shape == (24, row_bytes(qtype, 512))
    expected = quants.dequantize(data if qtype not in (Qtype.F32, Qtype.F16) else _typed(data, qtype), qtype)
    np.testing.assert_allclose(dequantize(qtype, data, 512), expected, rtol=1e-6, atol=1e-9)


def _typed(data: NDArray[np.uint8], qtype: Qtype) -> NDArray[np.float32] | NDArray[np.float16]:
    return data.view(np.float32) if qtype == Qtype.F32 else data.view(np.float16)


@pytest.mark.parametrize("qtype", [Qtype.Q8_0, Qtype.Q4_0, Qtype.Q4_1, Qtype.Q5_0], ids=lambda t: t.name)
def test_quantises_as_gguf_py(qtype: Qtype, rows: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(quantize(qtype, rows), quants.quantize(rows, qtype))


def test_imatrix_changes_k_quants_and_is_checked(rows: NDArray[np.float32]) -> None:
    importance = np.random.default_rng(0).gamma(0.3, 1, 512).astype(np.float32)
    weighted = dequantize(Qtype.Q4_K, quantize(Qtype.Q4_K, rows, importance), 512)
    plain = dequantize(Qtype.Q4_K, quantize(Qtype.Q4_K, rows), 512)
    assert ((weighted - rows) ** 2 @ importance).sum() < ((plain - rows) ** 2 @ importance).sum()
    with pytest.raises(ValueError, match=r"imatrix must be float32 \[512\]"):
        quantize(Qtype.Q4_K, rows, importance[:-1])


def test_what_ggml_would_abort_on_is_refused_before() -> None:
    with pytest.raises(ValueError, match="300 columns are not a multiple of Q4_K's block of 256"):
        quantize(Qtype.Q4_K, np.zeros((2, 300), np.float32))
    for rows in (np.zeros((2, 256)), np.zeros(256, np.float32), np.zeros((256, 4), np.float32).T):
        with pytest.raises(ValueError, match="rows must be a contiguous float32 matrix"):
            quantize(Qtype.Q8_0, rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Q8_0 rows of 64 columns take 68 bytes"):
        dequantize(Qtype.Q8_0, np.zeros((2, 67), np.uint8), 64)


SEARCHED = (Qtype.IQ3_S, Qtype.IQ3_XXS, Qtype.IQ2_S)


@pytest.mark.parametrize("qtype", SEARCHED, ids=lambda t: t.name)
@pytest.mark.parametrize("importance", [None, 0.0, 1e-30, 1.0, 9e29])
def test_what_a_search_on_a_grid_takes(qtype: Qtype, importance: float | None) -> None:
    """The largest that is allowed comes through it. Where it does not, ggml ends the process."""
    columns = None if importance is None else np.full(256, importance, np.float32)
    largest = min(MOST_WEIGHT, 1e15 / max(importance or 1.0, 1.0) ** 0.5)
    rng = np.random.default_rng(0)
    for rows in (rng.standard_normal((40, 256)), rng.standard_t(1, (40, 256)), rng.choice([-1.0, 0.0, 1.0], (40, 256))):
        scaled = (rows / np.abs(rows).max() * largest * 0.999).astype(np.float32)
        assert quantize(qtype, scaled, columns).any()


@pytest.mark.parametrize("qtype", SEARCHED, ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("largest", "importance"),
    [
        (np.nan, None),
        (-np.inf, None),
        (1e20, None),
        (1e14, None),
        (2e10, 1e-30),
        (1e5, 1e25),
        (1e-3, 2e30),
        (0.0, np.nan),
    ],
)
def test_beyond_that_it_is_refused(qtype: Qtype, largest: float, importance: float | None) -> None:
    rows = np.zeros((2, 256), np.float32)
    rows[1, 77] = largest
    columns = None if importance is None else np.full(256, importance, np.float32)
    with pytest.raises(ValueError, match=f"^{qtype.name} takes weights "):
        quantize(qtype, rows, columns)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 7e4])
def test_validity(bad: float) -> None:
    rows = np.ones((2, 256), np.float32)
    assert is_valid(Qtype.F16, quantize(Qtype.F16, rows))
    rows[1, 100] = bad
    assert not is_valid(Qtype.F16, quantize(Qtype.F16, rows))


def test_same_library_as_llama_cpp() -> None:
    """The quantiser is the one that llama.cpp itself uses: one shared object in the process."""
    from miso_gguf.native.llama import load_library  # noqa: PLC0415

    load_library()
    base = ggml_base()
    name = ctypes.cast(base.ggml_get_type_traits(12).contents.type_name, ctypes.c_char_p).value
    assert name == b"q4_K"
