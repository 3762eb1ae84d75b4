"""Embedding tables read from the bundle: sums of rows against the reference's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from speaking import random_codes

from builders import MICRO
from miso_gguf.core.errors import BundleError
from miso_gguf.models.flavors import TINY
from miso_gguf.models.reference import Reference, audio_rows, text_rows
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm.embeddings import Embeddings
from miso_gguf.runtime.lm.prompt import audio_rows as rows_of


def mixed_rows() -> np.ndarray:
    """Text and frames in turns, more than are embedded at once, with the first and the last entry of each table."""
    rows = rows_of(np.concatenate([random_codes(146), np.zeros((1, 8), np.int64), np.full((3, 8), 514)]))
    rows[::3, :-1] = -1
    rows[::3, -1] = np.linspace(0, TINY.text_vocab - 1, len(rows[::3])).astype(np.int64)
    return rows


# F16 rounds by 2^-11 and Q8_0 by 1/127 of a block's largest, about 3 standard deviations of 0.5; eight are summed.
@pytest.mark.parametrize(("level", "tolerance"), [("f32", 1e-6), ("fp16", 4e-3), ("q8_0", 5e-2), ("q4_k_m", 5e-2)])
def test_sums_equal_the_reference(bundle: Path, reference: Reference, level: str, tolerance: float) -> None:
    rows = mixed_rows()
    embeddings = Embeddings(open_level(bundle, level).embeddings, TINY)
    spoken = rows[:, -1] < 0
    expected = np.empty((len(rows), 256), np.float32)
    expected[spoken] = reference.embed(*audio_rows(TINY, torch.from_numpy(rows[spoken, :-1]))).numpy()
    expected[~spoken] = reference.embed(*text_rows(TINY, rows[~spoken, -1].tolist())).numpy()
    found = embeddings.embed(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    for start in (0, 63, 64, 149):
        np.testing.assert_array_equal(embeddings.embed(rows[start : start + 1]), found[start : start + 1])
    assert embeddings.embed(rows[:0]).shape == (0, 256)


def test_tables_of_another_model_are_refused(bundle: Path) -> None:
    path = open_level(bundle, "f32").embeddings
    with pytest.raises(BundleError, match=r"text_embd.weight is \[1024, 256\], expected \[1024, 64\]"):
        Embeddings(path, MICRO)
