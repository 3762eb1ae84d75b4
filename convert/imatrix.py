"""Importance matrices: how much each input column of a weight matters, in llama.cpp's GGUF imatrix format.

A directory of them has one file for each half of the model, as `miso-recipe imatrix` writes it.

Source: llama.cpp `tools/imatrix` (writer) and `tools/quantize` (reader): per tensor `<name>.in_sum2` (sums of squared
activations) and `<name>.counts`; a column's importance is their quotient, or 1 where nothing was counted.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from ..core.arrays import F32Array
from ..core.errors import BundleError, CheckpointError
from ..core.files import file_sha256
from ..models.tensor_types import TENSOR_TYPES
from ..models.tensors import GgufTensor, Part
from ..native.gguf_file import GgufFile
from .checkpoint.foreign import IMATRIX, refuse_file
from .checkpoint.tensor_store import check_regular

log = logging.getLogger(__name__)

SUMS, COUNTS = ".in_sum2", ".counts"
"""Behind a tensor's name: sums of its input columns' squares, F32 [1, columns], and of how many rows, F32 [1, 1]."""
HALVES: tuple[Part, ...] = ("backbone", "decoder")
"""The parts that have one: the embeddings are looked up."""
PART_KEY = "miso.part"
"""In a file of ours: which of them it is of."""
FINGERPRINT_KEY = "miso.source.fingerprint"
"""Likewise: of which checkpoint."""


def imatrix_name(part: Part) -> str:
    """A part's file in a directory of importance matrices."""
    return f"{part}.imatrix.gguf"


def imatrices_in(directory: Path) -> dict[Part, Path]:
    """The files of a directory. Raises `CheckpointError` if one is missing."""
    if directory.is_file():
        raise CheckpointError(
            f"{directory}: is a file: --imatrix takes a directory of miso-recipe imatrix; a single file goes to "
            "--imatrix-backbone or --imatrix-decoder"
        )
    files = {part: directory / imatrix_name(part) for part in HALVES}
    if missing := [path.name for path in files.values() if not path.exists()]:
        raise CheckpointError(
            f"{directory}: has no {' and no '.join(missing)}. Make them: miso-recipe imatrix BUNDLE --out {directory}"
        )
    return files


@dataclass(frozen=True)
class Imatrix:
    """One file's importances by GGUF tensor name, float32 [columns] each."""

    file: str
    sha256: str
    columns: dict[str, F32Array]
    dataset: str | None
    chunks: int
    fingerprint: str | None
    """Of the checkpoint that was heard, if the file says so."""


def read_imatrix(path: Path, tensors: Sequence[GgufTensor]) -> Imatrix:
    """Read `path` for the matrices of one GGUF part.

    Raises `CheckpointError` if it is no imatrix, fits none of `tensors`, or has a wrong or non-finite entry.
    """
    try:
        if path.exists():
            check_regular(path)
        with _open(path) as file:
            if file.value("general.type") != "imatrix":
                raise CheckpointError(
                    f"{path}: not an imatrix: its general.type is not 'imatrix'. Make one with miso-recipe imatrix."
                )
            if file.value(PART_KEY) not in (None, tensors[0].part):
                raise CheckpointError(
                    f"{path}: is of the {file.value(PART_KEY)}, not of the {tensors[0].part}: pass each half its own"
                )
            entries, dataset = file.tensors, file.first_text("imatrix.datasets")
            chunks, fingerprint = file.value("imatrix.chunk_count"), file.value(FINGERPRINT_KEY)
        digest = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    columns = {}
    for tensor in tensors:
        pair = [entries.get(tensor.name + suffix) for suffix in (SUMS, COUNTS)]
        if pair == [None, None]:
            continue
        for entry, suffix in zip(pair, (SUMS, COUNTS), strict=True):
            if entry is None or entry.qtype != GGMLQuantizationType.F32:
                raise CheckpointError(f"{path}: {tensor.name}{suffix} is missing or not F32: the imatrix is damaged")
        sums, counts = (np.array(entry.data.view(np.float32)).reshape(-1) for entry in pair if entry is not None)
        columns[tensor.name] = _importance(path, tensor, sums, counts)
    if zeros := [name for name, importances in columns.items() if not importances.any()]:
        # llama.cpp takes them as they are, and most types then keep nothing of the matrix.
        log.warning("%s: says of %d matrices that no column matters, the first %s", path, len(zeros), zeros[0])
    if not columns:
        part = tensors[0].part
        raise CheckpointError(f"{path}: has entries for none of the {part}'s tensors: it is of another model or part")
    return Imatrix(
        file=path.name,
        sha256=digest,
        columns=columns,
        dataset=dataset,
        chunks=chunks if type(chunks) is int else 0,
        fingerprint=fingerprint if isinstance(fingerprint, str) else None,
    )


def check_covers(imatrix: Imatrix, types: Mapping[str, GGMLQuantizationType]) -> None:
    """Raises `CheckpointError` if a tensor that cannot do without importances has none. llama.cpp refuses the same."""
    missing = [
        name for name, qtype in types.items() if TENSOR_TYPES[qtype.name].needs_imatrix and name not in imatrix.columns
    ]
    if missing:
        raise CheckpointError(
            f"{imatrix.file}: has no entry for {len(missing)} tensors that cannot do without at so few bits, the first "
            f"{missing[0]}: make it anew with miso-recipe imatrix, or choose a level of more bits"
        )


def _open(path: Path) -> GgufFile:
    try:
        return GgufFile(path)
    except BundleError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        refuse_file(path, IMATRIX)
        reason = error.__cause__ or "truncated, damaged, or of another format"
        raise CheckpointError(f"{path}: not an imatrix in GGUF format ({reason})") from error


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
