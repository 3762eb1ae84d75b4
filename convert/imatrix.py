"""Importance matrices: how much each input column of a weight matters, in llama.cpp's GGUF imatrix format.

Source: llama.cpp `tools/imatrix` (writer) and `tools/quantize` (reader): per tensor `<name>.in_sum2` (sums of squared
activations) and `<name>.counts`; a column's importance is their quotient, or 1 where nothing was counted.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from ..models.errors import CheckpointError
from ..models.tensors import GgufTensor
from .tensor_store import F32Array

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """One file's importances by GGUF tensor name, float32 [columns] each."""

    file: str
    sha256: str
    columns: dict[str, F32Array]
    dataset: str | None
    chunks: int


def read_imatrix(path: Path, tensors: list[GgufTensor]) -> Imatrix:
    """Read `path` for the matrices of one GGUF part.

    Raises `CheckpointError` if it is no imatrix, fits none of `tensors`, or has a wrong or non-finite entry.
    """
    try:
        reader = GGUFReader(path)
        raw = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
        kind = reader.fields.get("general.type")
        is_imatrix = kind is not None and kind.contents() == "imatrix"
        datasets = reader.fields.get("imatrix.datasets")
        dataset = str(datasets.contents()[0]) if datasets is not None and datasets.contents() else None
        chunk_field = reader.fields.get("imatrix.chunk_count")
        chunks = int(chunk_field.contents()) if chunk_field is not None else 0
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: not an imatrix in GGUF format ({error})") from error
    if not is_imatrix:
        raise CheckpointError(
            f"{path}: not an imatrix: its general.type is not 'imatrix'. Make one with llama-imatrix."
        )
    columns = {}
    for tensor in tensors:
        if tensor.name + _SUMS in raw and tensor.name + _COUNTS in raw:
            importance = _importance(raw[tensor.name + _SUMS], raw[tensor.name + _COUNTS])
            if importance.shape != tensor.shape[-1:]:
                raise CheckpointError(
                    f"{path}: {tensor.name} has {importance.size} columns, the model's has {tensor.shape[-1]}: "
                    "this imatrix is of another model"
                )
            if not np.isfinite(importance).all():
                raise CheckpointError(f"{path}: {tensor.name} has NaN or Inf importances")
            columns[tensor.name] = importance
    if not columns:
        part = tensors[0].part
        raise CheckpointError(f"{path}: has entries for none of the {part}'s tensors: it is of another model or part")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Imatrix(path.name, digest, columns, dataset, chunks)


def _importance(sums: F32Array, counts: F32Array) -> F32Array:
    count = np.float32(counts.reshape(-1)[0])
    flat = sums.reshape(-1)
    return flat / count if count > 0 else np.ones_like(flat)
