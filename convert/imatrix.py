"""Importance matrices: how much each input column of a weight matters, in llama.cpp's GGUF imatrix format.

Source: llama.cpp `tools/imatrix` (writer) and `tools/quantize` (reader): per tensor `<name>.in_sum2` (sums of squared
activations) and `<name>.counts`; a column's importance is their quotient, or 1 where nothing was counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader

from ..core.arrays import F32Array
from ..core.errors import CheckpointError
from ..core.files import file_sha256
from ..models.tensors import GgufTensor

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_READS = 2_000_000
"""Numbers and texts in a header. A Llama model's GGUF, passed by mistake, has half as many."""


@dataclass(frozen=True)
class Imatrix:
    """One file's importances by GGUF tensor name, float32 [columns] each."""

    file: str
    sha256: str
    columns: dict[str, F32Array]
    dataset: str | None
    chunks: int


def read_imatrix(path: Path, tensors: Sequence[GgufTensor]) -> Imatrix:
    """Read `path` for the matrices of one GGUF part.

    Raises `CheckpointError` if it is no imatrix, fits none of `tensors`, or has a wrong or non-finite entry.
    """
    try:
        reader = _open(path)
        digest = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if _field(reader, "general.type") != "imatrix":
        raise CheckpointError(
            f"{path}: not an imatrix: its general.type is not 'imatrix'. Make one with llama-imatrix."
        )
    entries = {tensor.name: tensor for tensor in reader.tensors}
    columns = {}
    for tensor in tensors:
        pair = [entries.get(tensor.name + suffix) for suffix in (_SUMS, _COUNTS)]
        if pair == [None, None]:
            continue
        for entry, suffix in zip(pair, (_SUMS, _COUNTS), strict=True):
            if entry is None or entry.tensor_type != GGMLQuantizationType.F32:
                raise CheckpointError(f"{path}: {tensor.name}{suffix} is missing or not F32: the imatrix is damaged")
        sums, counts = (np.array(entry.data, np.float32).reshape(-1) for entry in pair if entry is not None)
        columns[tensor.name] = _importance(path, tensor, sums, counts)
    if not columns:
        part = tensors[0].part
        raise CheckpointError(f"{path}: has entries for none of the {part}'s tensors: it is of another model or part")
    datasets, chunks = _field(reader, "imatrix.datasets"), _field(reader, "imatrix.chunk_count")
    dataset = str(datasets[0]) if isinstance(datasets, list) and datasets else None
    chunks = chunks if isinstance(chunks, int) and 0 <= chunks < 1 << 32 else 0
    return Imatrix(path.name, digest, columns, dataset, chunks)


class _BoundedReader(GGUFReader):
    """gguf-py's reader, which slices past the end of a file without a word and so can loop 2^64 times."""

    _reads = 0

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        self._reads += 1
        if self._reads > _MAX_READS or int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("it claims more than the file holds: truncated or damaged")
        return super()._get(offset, dtype, count, override_order)


def _open(path: Path) -> GGUFReader:
    try:
        with np.errstate(all="ignore"):  # sizes that overflow are found by the checks
            return _BoundedReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an imatrix in GGUF format ({error})") from error


def _field(reader: GGUFReader, key: str) -> Any:
    """The value of a key; None where it is absent or no valid text."""
    field = reader.fields.get(key)
    try:
        return None if field is None else field.contents()
    except (ValueError, IndexError):
        return None


def _importance(path: Path, tensor: GgufTensor, sums: F32Array, counts: F32Array) -> F32Array:
    if sums.shape != tensor.shape[-1:] or counts.shape != (1,):
        raise CheckpointError(
            f"{path}: {tensor.name} has {sums.size} columns and {counts.size} counts, the model's has "
            f"{tensor.shape[-1]} and 1: this imatrix is of another model"
        )
    count = counts[0]
    with np.errstate(over="ignore", invalid="ignore"):
        importance = sums / count if count > 0 else np.ones_like(sums)
    if not (np.isfinite(count) and np.isfinite(sums).all() and np.isfinite(importance).all()):
        raise CheckpointError(f"{path}: {tensor.name} has NaN or Inf importances")
    if count < 0 or (sums < 0).any():
        raise CheckpointError(f"{path}: {tensor.name} has negative importances: the imatrix is damaged")
    return importance
