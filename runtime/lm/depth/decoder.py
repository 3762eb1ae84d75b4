"""The depth decoder: from the backbone's result to all codes of a frame, as one ggml graph.

The graph is that of `sampling.py`, one for each batch size and `top_k`; frames whose codes are given go through that of
`replay.py`. It knows no backbone, no tokenizer and no files but its own.
"""

from pathlib import Path

import numpy as np

from ....core.arrays import F32Array, I64Array
from ....core.closing import Closing
from ....models.spec import ModelSpec
from ....native.buffer import read_tensor, write_tensor
from ....native.device import Backends
from ....native.gguf_file import GgufFile, StoredTensor
from ....native.graph import F16, F32
from .replay import ReplayGraph
from .sampling import FrameGraph
from .weights import DepthWeights


class DepthDecoder(Closing):
    """Samples all codes of frames. A context manager; `backends` must outlive it."""

    def __init__(self, path: Path, projection: StoredTensor, spec: ModelSpec, backends: Backends) -> None:
        """Load the weights of the decoder's GGUF `path` and the `projection` of its inputs.

        Raises `BundleError` if the file is not this model's decoder, `MemoryError` if the device is full.
        """
        self._spec, self._backends = spec, backends
        self._kv = F16 if backends.best.kind == "gpu" else F32
        with GgufFile(path) as file:
            self.weights = DepthWeights(file, projection, spec, backends)
        self._graphs: dict[tuple[int, int], FrameGraph] = {}
        self._replay: ReplayGraph | None = None

    def close(self) -> None:
        """Free the graphs, then the weights. Idempotent."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
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
        replay = [self._replay.splits] if self._replay is not None else []
        return max([1, *replay, *(graph.scheduler.splits for graph in self._graphs.values())])

    def _graph(self, batch: int, top_k: int) -> FrameGraph:
        key = (batch, top_k)
        if key not in self._graphs:
            self._graphs[key] = FrameGraph(
                self._spec, self.weights, self._backends, batch=batch, top_k=top_k, kv=self._kv
            )
        return self._graphs[key]

    def frames(self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: int) -> I64Array:
        """The codes of one frame of each utterance.

        Args:
            hidden: The backbone's hidden states `[B, D]`.
            logits: Its codebook-0 logits `[B, V]`.
            noise: Gumbel noise times temperature, `[B, codebooks, V]`; zeros are greedy.
            top_k: Candidates that take part; `V` or more for all.

        Returns:
            Codes, int64 `[B, codebooks]`.

        Raises:
            ValueError: On wrong shapes.
        """
        spec, batch = self._spec, len(hidden)
        expected = {
            "hidden": (hidden, (batch, spec.backbone.embed_dim)),
            "logits": (logits, (batch, spec.audio_vocab)),
            "noise": (noise, (batch, spec.codebooks, spec.audio_vocab)),
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape or array.dtype != np.float32 or batch < 1:
                raise ValueError(f"{name} must be float32 {list(shape)}, not {array.dtype} {list(array.shape)}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        graph = self._graph(batch, min(top_k, spec.audio_vocab))
        write_tensor(graph.hidden, hidden)
        write_tensor(graph.logits, logits)
        write_tensor(graph.noise, noise)
        graph.scheduler.compute()
        codes = np.empty((batch, spec.codebooks), np.int32)
        read_tensor(graph.codes, codes)
        return codes.astype(np.int64)

    def logits(self, hidden: F32Array, codes: I64Array) -> F32Array:
        """Logits of frames whose codes are given; see `ReplayGraph.logits`. The first call allocates its graph."""
        if self._replay is None:
            self._replay = ReplayGraph(self._spec, self.weights, self._backends, kv=self._kv)
        return self._replay.logits(hidden, codes)
