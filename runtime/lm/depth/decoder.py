"""The depth decoder: from the backbone's result to all codes of a frame, as one ggml graph.

Frames are sampled by the graphs of `graphs.py`; those whose codes are given go through that of `replay.py`. All that
reaches ggml is checked here. It knows no backbone, no tokenizer and no files but its own.
"""

import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....core.arrays import F32Array, I64Array
from ....core.closing import CLOSED, Closing
from ....core.errors import MisoError
from ....models.spec import ModelSpec
from ....native.device import Backends
from ....native.gguf_file import GgufFile, StoredTensor
from ....native.graph import F16, F32
from ....native.products import ProductWatch
from .graphs import FrameGraphs
from .replay import ReplayGraph
from .weights import DepthWeights


class DepthDecoder(Closing):
    """Samples all codes of frames. A context manager; `backends` must outlive it."""

    def __init__(
        self,
        path: Path,
        projection: StoredTensor,
        spec: ModelSpec,
        backends: Backends,
        watch: ProductWatch | None = None,
    ) -> None:
        """Load the weights of the decoder's GGUF `path` and the `projection` of its inputs.

        `watch` sees the products of `logits`, under the names that `DepthWeights` gives.

        Raises `BundleError` if the file is not this model's decoder, `MemoryError` if the device is full.
        """
        self._spec, self._backends, self._watch = spec, backends, watch
        self._kv = F16 if backends.best.kind == "gpu" else F32
        with GgufFile(path) as file:
            self.weights = DepthWeights(file, projection, spec, backends)
        self._graphs = FrameGraphs(spec, self.weights, backends, kv=self._kv)
        self._replay: ReplayGraph | None = None
        self._closed = False

    def close(self) -> None:
        """Free the graphs, then the weights. Idempotent."""
        self._closed = True
        self._graphs.close()
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        self.weights.close()

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that a frame reads, whatever the batch: all matrices at each step, each head once."""
        steps = self._spec.codebooks - 1
        return steps * self.weights.layer_bytes + sum(head.size_bytes for head in self.weights.heads)

    @property
    def splits(self) -> int:
        """Into how many pieces the scheduler cut the most divided graph so far: 1 if one device computes all of it."""
        self._check_open()
        replay = 1 if self._replay is None else self._replay.splits
        return max(1, replay, self._graphs.splits)

    def _check_open(self) -> None:
        """Raise `MisoError` after `close`: there, ggml would end the process."""
        if self._closed:
            raise MisoError(CLOSED)

    def frames(
        self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: int | Sequence[int] | I64Array
    ) -> I64Array:
        """The codes of one frame of each utterance.

        Args:
            hidden: The backbone's hidden states `[B, D]`.
            logits: Its codebook-0 logits `[B, V]`.
            noise: Gumbel noise times temperature, `[B, codebooks, V]`; zeros are greedy.
            top_k: How many of the best codes take part, of all rows or of each, `[B]`; `V` or more for all. Of codes
                with equal logits at the border any may be the ones that do.

        Returns:
            Codes, int64 `[B, codebooks]`.

        Raises:
            ValueError: On wrong shapes, or a `top_k` that is no integer of 1 or more.
            MisoError: After `close`.
            MemoryError: If the device has no room for the graph of such a batch.
        """
        self._check_open()
        spec, batch = self._spec, len(hidden)
        expected = {
            "hidden": (hidden, (batch, spec.backbone.embed_dim)),
            "logits": (logits, (batch, spec.audio_vocab)),
            "noise": (noise, (batch, spec.codebooks, spec.audio_vocab)),
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape or array.dtype != np.float32 or batch < 1:
                raise ValueError(f"{name} must be float32 {list(shape)}, not {array.dtype} {list(array.shape)}")
        return self._graphs.compute(hidden, logits, noise, _of_each_row(top_k, batch, spec.audio_vocab))

    def logits(self, hidden: F32Array, codes: I64Array) -> F32Array:
        """Logits of frames whose codes are given; see `ReplayGraph.logits`. The first call allocates its graph."""
        self._check_open()
        if self._replay is None:
            self._replay = ReplayGraph(self._spec, self.weights, self._backends, kv=self._kv, watch=self._watch)
        return self._replay.logits(hidden, codes)


def _of_each_row(top_k: int | Sequence[int] | I64Array, batch: int, vocab: int) -> tuple[int, ...]:
    """`top_k` of each row, `vocab` at most. Raises `ValueError`."""
    rows = [top_k] * batch if isinstance(top_k, int | np.integer) else top_k
    try:
        given = [operator.index(k) for k in rows]
    except TypeError as error:
        raise ValueError(f"top_k must be an integer, or one for each row, not {top_k!r}") from error
    if len(given) != batch:
        raise ValueError(f"top_k must be one integer, or {batch}, one for each row, not {len(given)}")
    if min(given) < 1:
        raise ValueError(f"top_k must be at least 1, not {min(given)}")
    return tuple(min(k, vocab) for k in given)
