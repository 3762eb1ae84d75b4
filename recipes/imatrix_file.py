"""Importance matrices on disk: a file for each part, in llama.cpp's GGUF format, with the steps beside the sums.

Source: llama.cpp `tools/imatrix` and `common/imatrix-loader.cpp`. For a matrix there are `<name>.in_sum2`, the sums of
squares, and `<name>.counts`, of how many rows. Where there are several steps, `<name>.step_in_sum2` and
`<name>.step_counts` have a row for each, under names that llama.cpp passes over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from ..convert.gguf_header import Key, TensorInfo, header_bytes, padded, text, uint32
from ..convert.imatrix import COUNTS, FINGERPRINT_KEY, HALVES, PART_KEY, SUMS
from ..core.arrays import F32Array
from ..core.errors import BundleError, MisoError
from ..core.files import open_whole
from ..models.tensors import Part
from ..native.gguf_file import GgufFile, StoredTensor

F64Array = NDArray[np.float64]

_STEP_SUMS, _STEP_COUNTS = ".step_in_sum2", ".step_counts"


@dataclass(frozen=True)
class Entry:
    """What is known of one matrix: sums [columns] over `count` rows; of steps, if there are several, the same each."""

    sums: F64Array
    count: float
    step_sums: F64Array | None = None
    step_counts: F64Array | None = None

    @classmethod
    def of(cls, sums: F64Array, counts: F64Array) -> "Entry":
        """From the steps: sums [steps, columns], counts [steps]."""
        if len(counts) == 1:
            return cls(sums[0], float(counts[0]))
        return cls(sums.sum(axis=0), float(counts.sum()), sums, counts)

    def arrays(self, name: str) -> dict[str, F32Array]:
        """As they are written, by name."""
        found = {name + SUMS: self.sums.reshape(1, -1), name + COUNTS: np.array([[self.count]])}
        if self.step_sums is not None and self.step_counts is not None:
            found |= {name + _STEP_SUMS: self.step_sums, name + _STEP_COUNTS: self.step_counts.reshape(-1, 1)}
        return {each: values.astype("<f4") for each, values in found.items()}


@dataclass(frozen=True)
class ImatrixFile:
    """One part's importance matrix.

    Attributes:
        part: Of which part.
        fingerprint: Of the checkpoint: see `Manifest.fingerprint`.
        identity: Of all that its numbers depend on.
        datasets: What was said, in words.
        clips: How many utterances were heard.
        chunks: Rows of the backbone, or frames of the depth decoder: llama.cpp's unit of progress.
        chunk_rows: Rows that a chunk gives a layer's matrices: 1, or a frame's positions.
        entries: By GGUF tensor name.
    """

    part: Part
    fingerprint: str
    identity: str
    datasets: tuple[str, ...]
    clips: int
    chunks: int
    chunk_rows: int
    entries: Mapping[str, Entry]

    def write(self, path: Path) -> None:
        """Write it whole, or not at all. Raises `OSError`."""
        arrays = {
            each: values for name, entry in sorted(self.entries.items()) for each, values in entry.arrays(name).items()
        }
        infos = [TensorInfo(name, values.shape, GGMLQuantizationType.F32) for name, values in arrays.items()]
        with open_whole(path) as file:
            file.write(header_bytes(self._keys(), infos))
            for values in arrays.values():
                file.write(values.tobytes() + bytes(padded(values.nbytes) - values.nbytes))

    def _keys(self) -> list[Key]:
        return [
            text("general.type", "imatrix"),
            Key("imatrix.datasets", list(self.datasets), GGUFValueType.ARRAY),
            uint32("imatrix.chunk_count", self.chunks),
            uint32("imatrix.chunk_size", self.chunk_rows),
            text(PART_KEY, self.part),
            text(FINGERPRINT_KEY, self.fingerprint),
            text("miso.imatrix.identity", self.identity),
            uint32("miso.imatrix.clips", self.clips),
        ]


def read_imatrix_file(path: Path) -> ImatrixFile:
    """Read a file that `ImatrixFile.write` wrote.

    Raises `FileNotFoundError` if it is not there, and `MisoError` if it is anything else.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected an importance matrix of miso-recipe")
    try:
        with GgufFile(path) as file:
            keys, datasets, tensors = file.keys(), file.texts("imatrix.datasets"), file.tensors
    except BundleError as error:
        raise MisoError(f"{path}: is damaged, or no importance matrix in GGUF format: make it again") from error
    texts = [keys.get(name) for name in (PART_KEY, FINGERPRINT_KEY, "miso.imatrix.identity")]
    numbers = [keys.get(name) for name in ("miso.imatrix.clips", "imatrix.chunk_count", "imatrix.chunk_size")]
    part, fingerprint, identity = (each if isinstance(each, str) else "" for each in texts)
    clips, chunks, chunk_rows = (each if isinstance(each, int) else -1 for each in numbers)
    is_ours = keys.get("general.type") == "imatrix" and part in HALVES and fingerprint and identity and datasets
    if not is_ours or min(clips, chunks, chunk_rows) < 0:
        raise MisoError(
            f"{path}: is no importance matrix that miso-recipe wrote: of which model and part it is, it does not say"
        )
    entries = {
        name.removesuffix(SUMS): _entry(path, name.removesuffix(SUMS), tensors)
        for name in tensors
        if name.endswith(SUMS)
    }
    known = next(each for each in HALVES if each == part)
    return ImatrixFile(known, fingerprint, identity, tuple(datasets or ()), clips, chunks, chunk_rows, entries)


def _entry(path: Path, name: str, tensors: Mapping[str, StoredTensor]) -> Entry:
    sums, counts, step_sums, step_counts = (
        _values(tensors.get(name + suffix)) for suffix in (SUMS, COUNTS, _STEP_SUMS, _STEP_COUNTS)
    )
    if sums is None or counts is None or counts.size != 1 or (step_sums is None) != (step_counts is None):
        raise MisoError(f"{path}: {name} has no sums with one count: it is damaged, make it again")
    found = [values for values in (sums, counts, step_sums, step_counts) if values is not None]
    if not all(((values >= 0) & (values < np.inf)).all() for values in found):
        raise MisoError(f"{path}: {name} has sums that are NaN, infinite or negative: it is damaged, make it again")
    if step_sums is None or step_counts is None:
        return Entry(sums.reshape(-1), counts.item())
    if step_sums.shape != (step_counts.size, sums.size):
        raise MisoError(f"{path}: {name} has sums of other steps than counts: it is damaged, make it again")
    return Entry(sums.reshape(-1), counts.item(), step_sums, step_counts.reshape(-1))


def _values(tensor: StoredTensor | None) -> F64Array | None:
    """A matrix [rows, columns]; None if it is not there, or not F32."""
    if tensor is None or tensor.qtype != GGMLQuantizationType.F32:
        return None
    return np.array(tensor.data.view(np.float32), np.float64)
