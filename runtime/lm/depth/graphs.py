"""Which graph computes a batch: one for each size and each number of candidates, made when needed, and only so many.

It knows what more rows and more candidates cost on a device, and nothing of what the graphs compute.
"""

from collections import OrderedDict

import numpy as np
from gguf import GGMLQuantizationType

from ....core.arrays import F32Array, I64Array
from ....core.closing import Closing
from ....models.spec import ModelSpec
from ....native.device import Backends
from .sampling import FrameGraph
from .weights import DepthWeights

KEPT = 12
"""Graphs that are kept, the least recently used goes: enough for every size of batch of one or two kinds of request."""
_CANDIDATES = (50, 256)
"""Numbers of candidates, beside the whole vocabulary: a `top_k` takes the next larger.

The first is what is usually asked for: on a CPU each further one costs.
"""
_EXACT_ROWS, _ROW_STEP = 8, 4
"""On a CPU: batches up to so many rows have a graph of their own; larger ones are filled up to the next step."""


class FrameGraphs(Closing):
    """The graphs that sample frames. `close` frees them; `weights` and `backends` outlive them."""

    def __init__(self, spec: ModelSpec, weights: DepthWeights, backends: Backends, *, kv: GGMLQuantizationType) -> None:
        self._spec, self._weights, self._backends, self._kv = spec, weights, backends, kv
        self._graphs: OrderedDict[tuple[int, int | None], FrameGraph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def close(self) -> None:
        """Free all of them. Idempotent."""
        while self._graphs:
            self._graphs.popitem()[1].close()

    @property
    def splits(self) -> int:
        """Into how many pieces the most divided of them was cut; 0 if there is none."""
        return max((graph.splits for graph in self._graphs.values()), default=0)

    def compute(self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: tuple[int, ...]) -> I64Array:
        """See `DepthDecoder.frames`. All of it was checked, and no `top_k` is above the vocabulary.

        A batch is filled up with rows of its own to one that there is a graph for.
        """
        batch = len(hidden)
        rows = self._rows(batch)
        if rows > batch:
            hidden, logits, noise = (np.resize(array, (rows, *array.shape[1:])) for array in (hidden, logits, noise))
            top_k = (top_k * rows)[:rows]
        graph = self._graph(rows, self._candidates(min(top_k), max(top_k)))
        return graph.compute(hidden, logits, noise, top_k)[:batch]

    def _rows(self, batch: int) -> int:
        """Rows that a batch is computed as.

        A further row is next to nothing on a GPU, where making a graph is slow, so there are few sizes. On a CPU
        arithmetic is the limit: eight rows take six times the time of one.
        """
        if self._backends.best.kind == "gpu":
            return 1 << (batch - 1).bit_length()
        return batch if batch <= _EXACT_ROWS else -(-batch // _ROW_STEP) * _ROW_STEP

    def _candidates(self, least: int, most: int) -> int | None:
        """How many candidates `top_k` from `least` to `most` need; None if nothing is left out."""
        vocab = self._spec.audio_vocab
        return None if least == vocab else next((count for count in _CANDIDATES if most <= count < vocab), vocab)

    def _graph(self, rows: int, candidates: int | None) -> FrameGraph:
        key = (rows, candidates)
        if key not in self._graphs:
            while len(self._graphs) >= KEPT:
                self._graphs.popitem(last=False)[1].close()
            self._graphs[key] = FrameGraph(
                self._spec, self._weights, self._backends, batch=rows, candidates=candidates, kv=self._kv
            )
        self._graphs.move_to_end(key)
        return self._graphs[key]
