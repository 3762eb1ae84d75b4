"""The embedding tables of a bundle, memory-mapped: rows are gathered, dequantised and summed where they are needed."""

from pathlib import Path

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...models.spec import ModelSpec
from ...native.ggml import dequantize
from ...native.gguf_file import GgufFile, StoredTensor

_ROWS_AT_ONCE = 8
"""Positions embedded together: 8 x 32 rows of 4096 are 4 MB and stay in a core's cache. A voice of 10 s takes 15 ms; 31
with 64 at once."""


class Embeddings:
    """The text and audio tables, and the projection into the depth decoder."""

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        """Map the tables of the embeddings GGUF `path`. Raises `BundleError` if it is of another model."""
        self._spec = spec
        with GgufFile(path) as file:
            self._text = file.tensor("text_embd.weight", spec.text_vocab, spec.backbone.embed_dim)
            self._audio = file.tensor("audio_embd.weight", spec.flat_audio_vocab, spec.backbone.embed_dim)
            self.projection = file.tensor("projection.weight", spec.decoder.embed_dim, spec.backbone.embed_dim)

    def embed(self, rows: I64Array) -> F32Array:
        """Sum of the embeddings of each row's slots: `rows` [T, codebooks + 1], as in `prompt.py` -> [T, D]."""
        out = np.empty((len(rows), self._spec.backbone.embed_dim), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            target = out[start : start + _ROWS_AT_ONCE]
            spoken = part[:, -1] < 0
            target[~spoken] = self._gather(self._text, part[~spoken, -1])
            codes = part[spoken, :-1]
            flat = codes + np.arange(self._spec.codebooks) * self._spec.audio_vocab
            summands = self._gather(self._audio, flat.ravel()).reshape(*flat.shape, out.shape[1])
            target[spoken] = summands.sum(axis=1, dtype=np.float32)
        return out

    def _gather(self, table: StoredTensor, ids: I64Array) -> F32Array:
        return dequantize(table.qtype, table.data[ids], self._spec.backbone.embed_dim)
