"""The rows of a GGUF tensor, made from the checkpoint a few at a time, checked for NaN, Inf and zeros."""

import math

import numpy as np

from ..core.arrays import F32Array
from ..core.errors import CheckpointError
from ..models.spec import rope_factors
from ..models.tensors import GgufTensor, Projected, RopeFactors, Rows, StackedHeads
from .checkpoint.open import Checkpoint
from .checkpoint.zeros import ZeroRows

_CHUNK_WEIGHTS = 1 << 20
"""4 MiB of float32: stays in a core's cache between reading, checking and quantising."""


class RowReader:
    """Reads any `GgufTensor` of one checkpoint. Safe from several threads."""

    def __init__(self, checkpoint: Checkpoint, allow_nonfinite: bool = False, allow_zero: bool = False) -> None:
        self._checkpoint = checkpoint
        self._zeros = None if allow_zero else ZeroRows(checkpoint)
        self._allow_nonfinite = allow_nonfinite
        self._projection: F32Array | None = None

    def position(self, tensor: GgufTensor, row: int = 0) -> tuple[int, int]:
        """Where the source of a row lies on disk; (-1, 0) for what is computed from the spec."""
        source = tensor.source
        match source:
            case Rows():
                return self._checkpoint.position(source.name, source.start + row)
            case Projected():
                return self._checkpoint.position(source.table, row)
            case StackedHeads():
                return self._checkpoint.position(source.name, max(0, row // self._checkpoint.spec.audio_vocab - 1))
            case RopeFactors():
                return (-1, 0)

    def chunks(self, tensor: GgufTensor) -> list[tuple[int, int]]:
        """Row ranges to read one after another. Vectors are one row.

        The ranges depend on the tensor alone, never on threads, so that results are the same on any machine.
        """
        if len(tensor.shape) == 1:
            return [(0, 1)]
        source = tensor.source
        if isinstance(source, StackedHeads):
            step = self._checkpoint.spec.audio_vocab
        else:
            unit = self._checkpoint.row_step(source.name) if isinstance(source, Rows) else 1
            step = max(1, _CHUNK_WEIGHTS // (tensor.shape[1] * unit)) * unit
        return [(start, min(start + step, tensor.shape[0])) for start in range(0, tensor.shape[0], step)]

    def read(self, tensor: GgufTensor, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` as a contiguous float32 matrix. Raises `CheckpointError` on NaN or Inf."""
        source = tensor.source
        match source:
            case Rows() if len(tensor.shape) == 1:
                return self._checked(source.name, source.start, source.stop).reshape(1, -1)
            case Rows():
                return self._checked(source.name, source.start + start, source.start + stop)
            case Projected():
                table, projection = self._checked(source.table, start, stop), self._projection_of(source)
                with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by whoever encodes it
                    rows: F32Array = table @ projection.T
                return rows
            case StackedHeads():
                return self._head(source, start, stop)
            case RopeFactors():
                return np.array([rope_factors(self._checkpoint.spec, source.head_dim)], np.float32)

    def refuse_zeros(self) -> None:
        """Raises `CheckpointError` if too much of what was read is zero."""
        if self._zeros:
            self._zeros.refuse()

    def _projection_of(self, source: Projected) -> F32Array:
        if self._projection is None:
            rows = self._checkpoint.shapes[source.projection][0]
            self._projection = self._checked(source.projection, 0, rows)
        return self._projection

    def _head(self, source: StackedHeads, start: int, stop: int) -> F32Array:
        """Rows of one codebook: zeros for codebook 0, else `audio_head[codebook - 1]` transposed."""
        vocab = self._checkpoint.spec.audio_vocab
        codebook, first = divmod(start, vocab)
        assert stop - start <= vocab - first, "a chunk of the stacked heads stays inside one codebook"
        if codebook == 0:
            return np.zeros((stop - start, self._checkpoint.spec.decoder.embed_dim), np.float32)
        head = self._checked(source.name, codebook - 1, codebook)[0]
        return np.ascontiguousarray(head[:, first : first + stop - start].T)

    def _checked(self, name: str, start: int, stop: int) -> F32Array:
        rows = self._checkpoint.read(name, start, stop)
        if self._zeros:
            self._zeros.look(name, start, rows)
        # NaN wins every comparison in numpy's min and max, so two passes find NaN and Inf alike.
        if not self._allow_nonfinite and not (math.isfinite(rows.min()) and math.isfinite(rows.max())):
            bad = np.argwhere(~np.isfinite(rows.reshape(rows.shape[0], -1)))
            row, column = bad[0] + (start, 0)
            raise CheckpointError(
                f"tensor {name} holds {len(bad)} NaN or Inf values in rows {start}..{stop - 1}, "
                f"the first at row {row}, column {column}: the checkpoint is damaged, "
                "or --allow-nonfinite converts it as it is"
            )
        return rows
