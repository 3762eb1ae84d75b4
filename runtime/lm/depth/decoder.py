"""The depth decoder: from the backbone's result to all codes of a frame, as one ggml graph.

The graph unrolls every codebook's step, keeps its KV cache in place, and samples inside: a code never leaves the
device on its way to the next step. Sampling is Gumbel-max: argmax(logits / T + noise) = argmax(logits + T * noise), so
the caller scales the noise, T is no part of the graph, and noise of zeros is greedy.

It knows no backbone, no tokenizer and no files but its own.
"""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from ....core.arrays import F32Array, I64Array
from ....core.closing import Closing
from ....models.spec import ModelSpec
from ....native.buffer import Buffer, read_tensor, write_tensor
from ....native.buffer_types import plain_buffer_type
from ....native.device import Backends
from ....native.gguf_file import GgufFile, StoredTensor
from ....native.graph import F16, F32, I32, Graph, Tensor, TensorContext
from ....native.scheduler import Scheduler
from .replay import ReplayGraph
from .transformer import NODES_PER_LAYER, DepthTransformer, new_cache
from .weights import DepthWeights

_NODES_PER_STEP = 40


class _FrameGraph:
    """The graph of one frame for a batch of utterances, with what goes in and out and its caches."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: DepthWeights,
        backends: Backends,
        *,
        batch: int,
        top_k: int,
        kv: GGMLQuantizationType,
    ) -> None:
        self._spec, self.weights, self._batch, self._top_k = spec, weights, batch, top_k
        steps = spec.codebooks - 1
        with ExitStack() as stack:
            state = TensorContext(8)
            stack.callback(state.close)
            self._cache = new_cache(state, spec, kv, batch)
            self.codes = state.new(I32, spec.codebooks, batch)
            # On the device: as the graph's inputs they would lie on the host, and each view of one be copied.
            self.hidden = state.new(F32, spec.backbone.embed_dim, batch)
            self.logits = state.new(F32, spec.audio_vocab, batch)
            self.noise = state.new(F32, spec.audio_vocab, spec.codebooks, batch)
            buffer = Buffer(state, plain_buffer_type(backends.best), weights=False)
            stack.callback(buffer.close)
            self._g = Graph(steps * (spec.decoder.layers * NODES_PER_LAYER + _NODES_PER_STEP))
            stack.callback(self._g.close)
            self._build()
            self.scheduler = Scheduler(backends, self._g)
            stack.callback(self.scheduler.close)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def _build(self) -> None:
        g, spec, d, batch = self._g, self._spec, self._spec.decoder, self._batch
        transformer = DepthTransformer(g, spec, self.weights, self._cache, self.weights.mask, batch=batch)
        first = g.reshape(g.mul_mat(self.weights.projection, self.hidden), d.embed_dim, 1, batch)
        code = self._sample(0, self.logits)
        for codebook in range(1, spec.codebooks):
            x = g.reshape(g.get_rows(self.weights.embeddings[codebook - 1], code), d.embed_dim, 1, batch)
            if codebook == 1:
                x = g.concat(first, x, dimension=1)
            x = transformer(x, codebook)
            logits = g.mul_mat(self.weights.heads[codebook - 1], transformer.output(x, x.shape[1] - 1))
            code = self._sample(codebook, logits)

    def _sample(self, codebook: int, logits: Tensor) -> Tensor:
        """Gumbel-max over the `top_k` best: logits [V, B] -> codes I32 [B], also noted in `self.codes`."""
        g, batch, vocab = self._g, self._batch, self._spec.audio_vocab
        _, codebook_bytes, utterance_bytes, _ = self.noise.strides
        strides = (utterance_bytes, utterance_bytes * batch, utterance_bytes * batch)
        noisy = g.add(logits, g.view(self.noise, (vocab, batch, 1, 1), strides, codebook * codebook_bytes))
        if self._top_k < vocab:
            best = g.top_k(logits, self._top_k)
            winner = g.argmax(g.reshape(g.get_rows(g.reshape(noisy, 1, vocab, batch), best), self._top_k, batch))
            code = g.get_rows(g.reshape(best, 1, self._top_k, batch), g.reshape(winner, 1, batch))
        else:
            code = g.argmax(noisy)
        code = g.reshape(code, batch)
        stride = self.codes.strides[1]
        slot = g.view(self.codes, (1, batch, 1, 1), (stride, stride * batch, stride * batch), codebook * 4)
        g.expand(g.copy(g.reshape(code, 1, batch), slot))
        return code


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
        self._graphs: dict[tuple[int, int], _FrameGraph] = {}
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

    def _graph(self, batch: int, top_k: int) -> _FrameGraph:
        key = (batch, top_k)
        if key not in self._graphs:
            self._graphs[key] = _FrameGraph(
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
