"""Zeroed weights: what a truncated upload or a hole in a download looks like behind a header that is right.

Training leaves no row of a matrix at zero. Few may be, and are passed over: Llama 3's table of text embeddings has
about 256 rows for reserved tokens that are exactly zero, 0.2 % of it, and models of this family start from it.
"""

import logging
import math
import re
import threading
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from ...hub.path import HubPath
from ...models.tensors import Shape
from .open import Checkpoint

_SHARE, _ROWS = 0.01, 16
"""More rows than both are refused."""
_SAMPLES, _TABLE_SAMPLES = 5, 33
_CHUNK_WEIGHTS = 1 << 20
_COUNTED_WEIGHTS = 1 << 30
"""After so many a plan says what it has found, and does not read on: of 33 GB of zeros, 4 are enough."""
_RANGES = 3
_ADDED = re.compile(r"\.block\.|_transformer\.")
"""In the names of a codec's layers whose output is added to their input."""

Mask = NDArray[np.bool_]

log = logging.getLogger(__name__)


class ZeroRows:
    """Which rows of a checkpoint's tensors are zero, as far as they were read. Safe from several threads."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._found: dict[str, Mask] = {}

    def look(self, name: str, start: int, values: F32Array) -> None:
        """Note the zero rows among `values`, read of an upstream tensor from `start` on. The same may come twice."""
        shape = self._checkpoint.shapes[name]
        zero = zero_rows(values, shape)
        if zero.size:
            with self._lock:
                mask = self._found.setdefault(name, np.zeros(_rows_of(shape), bool))
            mask[zero + start * math.prod(shape[1:-1])] = True

    def refuse(self) -> None:
        """Raises `CheckpointError` that names all tensors of which too much is zero."""
        bad = {name: mask for name, mask in self._found.items() if is_refused(int(mask.sum()), mask.size)}
        if bad:
            files = self._checkpoint.store.files
            where = {
                name: f" ({files[self._checkpoint.position(name)[0]].name})" if len(files) > 1 else "" for name in bad
            }
            _refuse(files[0] if len(files) == 1 else self._checkpoint.spec.name, bad, where)


def refuse_sampled(checkpoint: Checkpoint) -> None:
    """Look at a few rows of every tensor, and count those of the tensors that are suspicious.

    It finds in a moment what is zero in bulk; the pass over the checkpoint sees the rest. Of a checkpoint that is only
    looked at on the hub each row would be a request: nothing is done. Raises `CheckpointError`.
    """
    if any(isinstance(file, HubPath) for file in checkpoint.store.files):
        return
    zeros = ZeroRows(checkpoint)
    names = sorted(checkpoint.shapes, key=checkpoint.position)
    is_suspicious = [False, *(_is_suspicious(checkpoint, name) for name in names), False]
    left = _COUNTED_WEIGHTS
    for i, name in enumerate(names):
        # A hole in a file begins and ends inside tensors: those before and behind are counted too.
        if any(is_suspicious[i : i + 3]):
            left -= math.prod(checkpoint.shapes[name])
            _look_at(checkpoint, name, zeros)
        if left < 0:
            zeros.refuse()  # or count on, where none is bad enough
    zeros.refuse()


def refuse_arrays(arrays: Mapping[str, NDArray[Any]], codebooks: Collection[str], path: object) -> None:
    """The same of a codec's arrays: matrices that are zero, and `codebooks` of which more than half is.

    Vectors may be zero: biases are. So may all of what is only added to a signal: a codec can do without (the tiny
    model's does). And a codec that was never trained has all codebooks zero, but not how often they were used: that is
    said, and no damage. Raises `CheckpointError`.
    """
    bad, added = {}, 0
    for name, array in arrays.items():
        if array.ndim > 1:
            added += bool(_ADDED.search(name))
            mask = np.zeros(_rows_of(array.shape), bool)
            mask[zero_rows(array, array.shape)] = True
            if mask.mean() > 0.5 if name in codebooks else mask.all():
                bad[name] = mask
    if sum(bool(_ADDED.search(name)) for name in bad) == added:
        bad = {name: mask for name, mask in bad.items() if not _ADDED.search(name)}
    if all(name in bad and bad[name].all() and arrays[_usage(name)].all() for name in codebooks):
        log.warning("%s: the codec was never trained, all of its codebooks are zero: nothing will be heard", path)
        bad = {name: mask for name, mask in bad.items() if name not in codebooks}
    if bad:
        _refuse(path, bad, {})


def _usage(codebook: str) -> str:
    return codebook.replace("embedding_sum", "cluster_usage")


def zero_rows(values: NDArray[Any], shape: Shape) -> NDArray[np.int64]:
    """Places of the zero rows among a tensor's rows; a vector is one row. -0.0 is zero, NaN is not."""
    rows = values.reshape(-1, values.size if len(shape) < 2 else shape[-1])
    # Almost no row begins with a zero: only those that do are read.
    places = np.flatnonzero(rows[:, 0] == 0) if rows.size else np.zeros(0, np.int64)
    return places[~rows[places].any(axis=1)] if places.size else places


def is_refused(zero: int, rows: int) -> bool:
    """Whether a tensor with so many zero rows is damaged."""
    return zero == rows or (zero >= _ROWS and zero > rows * _SHARE)


def _rows_of(shape: Shape) -> int:
    return max(1, math.prod(shape[:-1]))


def _is_suspicious(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tenth of a few rows is zero. A row of a tensor with three dimensions is a matrix."""
    shape, unit = checkpoint.shapes[name], checkpoint.row_step(name)
    if len(shape) == 1:
        return zero_rows(checkpoint.read(name, 0, shape[0]), shape).size > 0
    samples = _TABLE_SAMPLES if name.endswith("embeddings.weight") else _SAMPLES
    starts = {int(start) // unit * unit for start in np.linspace(0, shape[0] - unit, samples)}
    zero = sum(zero_rows(checkpoint.read(name, start, start + unit), shape).size > 0 for start in sorted(starts))
    return zero * 10 >= len(starts)


def _look_at(checkpoint: Checkpoint, name: str, zeros: ZeroRows) -> None:
    shape, unit = checkpoint.shapes[name], checkpoint.row_step(name)
    step = shape[0] if len(shape) == 1 else max(1, _CHUNK_WEIGHTS // (math.prod(shape[1:]) * unit)) * unit
    for start in range(0, shape[0], step):
        zeros.look(name, start, checkpoint.read(name, start, min(start + step, shape[0])))


def _refuse(path: object, bad: Mapping[str, Mask], where: Mapping[str, str]) -> NoReturn:
    lines = [f"  {name}{where.get(name, '')}: {_described(mask)}" for name, mask in sorted(bad.items())]
    raise CheckpointError(
        f"{path}: {len(bad)} tensor{'s are' if len(bad) > 1 else ' is'} zero, wholly or in bulk: an upload or download "
        "that broke off, or weights "
        "that were never trained. Download it again, or convert it as it is with --allow-zero:\n" + "\n".join(lines)
    )


def _percent(mask: Mask) -> str:
    return f"{100 * mask.mean():.3g} %"


def _described(mask: Mask) -> str:
    if mask.all():
        return "all zero"
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    ranges = [f"{start}..{stop - 1}" if stop - start > 1 else str(start) for start, stop in edges[:_RANGES].tolist()]
    more = ", ..." if len(edges) > _RANGES else ""
    return f"rows {', '.join(ranges)}{more} ({_percent(mask)}) are zero"
