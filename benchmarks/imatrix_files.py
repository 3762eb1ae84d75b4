"""Importance matrices for benchmarks, in llama.cpp's GGUF format: of ones, lacking an entry, in disorder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from miso_gguf.convert.imatrix import HALVES, imatrix_name, read_imatrix
from miso_gguf.core.arrays import F32Array
from miso_gguf.models.spec import ModelSpec
from miso_gguf.models.tensors import Part, gguf_tensors
from miso_gguf.recipes.sums import multiplied

OUTPUT = "output.weight"


def paths(directory: Path) -> dict[Part, Path]:
    """The two files of an imatrix directory, there or not."""
    return {part: directory / imatrix_name(part) for part in HALVES}


def write_ones(directory: Path, spec: ModelSpec) -> None:
    """All columns matter alike: what levels that cannot do without an imatrix are held against."""
    for part, path in paths(directory).items():
        write(path, {name: np.ones(columns, np.float32) for name, columns in multiplied(spec, part).items()})


def write_without(source: Path, directory: Path, spec: ModelSpec, name: str) -> None:
    """The imatrix of `source` but for the entries of the tensor `name`."""
    for part, columns in _read(source, spec).items():
        write(paths(directory)[part], {key: values for key, values in columns.items() if key != name})


def write_shuffled(source: Path, directory: Path, spec: ModelSpec) -> None:
    """The importances of `source`, given to other columns: a matrix that is wrong, and looks right."""
    rng = np.random.default_rng(0)
    for part, columns in _read(source, spec).items():
        write(paths(directory)[part], {key: rng.permutation(values) for key, values in columns.items()})


def _read(directory: Path, spec: ModelSpec) -> dict[Part, dict[str, F32Array]]:
    return {
        part: read_imatrix(path, [tensor for tensor in gguf_tensors(spec) if tensor.part == part]).columns
        for part, path in paths(directory).items()
    }


def write(path: Path, importances: Mapping[str, F32Array]) -> None:
    """Importances [columns] by tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "none")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["benchmark"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    for name, values in importances.items():
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
