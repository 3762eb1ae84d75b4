"""The graph that samples: every codebook's step of a frame, for a batch of utterances.

It unrolls the steps, keeps their KV cache in place, and samples inside: a code never leaves the device on its way to
the next step. Sampling is Gumbel-max: argmax(logits / T + noise) = argmax(logits + T * noise), so the caller scales the
noise, T is no part of the graph, and noise of zeros is greedy. Nor is `top_k` a part of it: the candidates are sorted,
and what is added to each rank, nothing or next to minus infinity, is an input.
"""

from contextlib import ExitStack

import numpy as np
from gguf import GGMLQuantizationType

from ....core.arrays import F32Array, I64Array
from ....core.closing import Closing
from ....models.spec import ModelSpec
from ....native.buffer import Buffer, read_tensor, write_tensor
from ....native.buffer_types import plain_buffer_type
from ....native.device import Backends
from ....native.graph import F32, I32, Graph, Tensor, TensorContext
from ....native.scheduler import Scheduler
from .transformer import NODES_PER_LAYER, DepthTransformer, new_cache
from .weights import DepthWeights

_NODES_PER_CODEBOOK = 40
_LEFT_OUT = np.float32(-1e30)
"""Added to what does not take part. Finite: not every device promises to know infinity."""


class FrameGraph(Closing):
    """The graph of one frame for a batch of utterances, with what goes in and out and its caches."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: DepthWeights,
        backends: Backends,
        *,
        batch: int,
        candidates: int | None,
        kv: GGMLQuantizationType,
    ) -> None:
        """Allocate. `candidates` is the largest `top_k` of any row; None: all codes of all rows take part.

        Raises `MemoryError` if the device is full.
        """
        self._spec, self._weights, self._batch, self._candidates = spec, weights, batch, candidates
        # A GPU sorts all codes in the time of some, and then a kernel fewer is better; a CPU takes 3 % of a frame.
        self._sorts_all = backends.best.kind == "gpu" or candidates == spec.audio_vocab
        steps = spec.codebooks - 1
        with ExitStack() as stack:
            state = TensorContext(8)
            stack.callback(state.close)
            self._cache = new_cache(state, spec, kv, batch)
            self._codes = state.new(I32, spec.codebooks, batch)
            # On the device: as the graph's inputs they would lie on the host, and each view of one be copied.
            self._hidden = state.new(F32, spec.backbone.embed_dim, batch)
            self._logits = state.new(F32, spec.audio_vocab, batch)
            self._noise = state.new(F32, spec.audio_vocab, spec.codebooks, batch)
            if candidates is not None:
                self._ranks = state.new(F32, candidates, batch)
            self._top_k: tuple[int, ...] = ()
            buffer = Buffer(state, plain_buffer_type(backends.best), weights=False)
            stack.callback(buffer.close)
            self._g = Graph(steps * spec.decoder.layers * NODES_PER_LAYER + spec.codebooks * _NODES_PER_CODEBOOK)
            stack.callback(self._g.close)
            self._build()
            self._scheduler = Scheduler(backends, self._g)
            stack.callback(self._scheduler.close)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free the graph and its caches. Idempotent."""
        self._stack.close()

    @property
    def splits(self) -> int:
        """Into how many pieces the scheduler cut the graph: 1 if one device computes all of it."""
        return self._scheduler.splits

    def compute(self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: tuple[int, ...]) -> I64Array:
        """See `DepthDecoder.frames`. The batch is the graph's, and no `top_k` is above its candidates."""
        if self._candidates is not None and top_k != self._top_k:
            self._top_k = ()  # until it is written: an interrupt may come between
            takes_part = np.arange(self._candidates) < np.array(top_k)[:, None]
            write_tensor(self._ranks, np.where(takes_part, np.float32(0), _LEFT_OUT))
            self._top_k = top_k
        write_tensor(self._hidden, hidden)
        write_tensor(self._logits, logits)
        write_tensor(self._noise, noise)
        self._scheduler.compute()
        codes = np.empty((self._batch, self._spec.codebooks), np.int32)
        read_tensor(self._codes, codes)
        return codes.astype(np.int64)

    def _build(self) -> None:
        g, spec, d, batch = self._g, self._spec, self._spec.decoder, self._batch
        transformer = DepthTransformer(g, spec, self._weights, self._cache, self._weights.mask, batch=batch)
        first = g.reshape(g.mul_mat(self._weights.projection, self._hidden), d.embed_dim, 1, batch)
        code = self._sample(0, self._logits)
        for codebook in range(1, spec.codebooks):
            x = g.reshape(g.get_rows(self._weights.embeddings[codebook - 1], code), d.embed_dim, 1, batch)
            if codebook == 1:
                x = g.concat(first, x, dimension=1)
            x = transformer(x, codebook)
            logits = g.mul_mat(self._weights.heads[codebook - 1], transformer.output(x, x.shape[1] - 1))
            code = self._sample(codebook, logits)

    def _sample(self, codebook: int, logits: Tensor) -> Tensor:
        """Gumbel-max over the best: logits [V, B] -> codes I32 [B], also noted in `self._codes`."""
        g, batch, vocab = self._g, self._batch, self._spec.audio_vocab
        _, codebook_bytes, utterance_bytes, _ = self._noise.strides
        strides = (utterance_bytes, utterance_bytes * batch, utterance_bytes * batch)
        noisy = g.add(logits, g.view(self._noise, (vocab, batch, 1, 1), strides, codebook * codebook_bytes))
        code = g.argmax(noisy) if self._candidates is None else self._best(logits, noisy, self._candidates)
        code = g.reshape(code, batch)
        stride = self._codes.strides[1]
        slot = g.view(self._codes, (1, batch, 1, 1), (stride, stride * batch, stride * batch), codebook * 4)
        g.expand(g.copy(g.reshape(code, 1, batch), slot))
        return code

    def _best(self, logits: Tensor, noisy: Tensor, count: int) -> Tensor:
        """The code whose `noisy` [V, B] is largest, of each row's `top_k` largest `logits` [V, B]: I32 [1, B]."""
        g, batch, vocab = self._g, self._batch, self._spec.audio_vocab
        ordered = g.argsort(logits) if self._sorts_all else self._candidates_in_order(logits, count)
        first = g.view(ordered, (count, batch, 1, 1), ordered.strides[1:])
        found = g.reshape(g.get_rows(g.reshape(noisy, 1, vocab, batch), first), count, batch)
        winner = g.argmax(g.add(found, self._ranks))
        return g.get_rows(g.reshape(ordered, 1, ordered.shape[0], batch), g.reshape(winner, 1, batch))

    def _candidates_in_order(self, logits: Tensor, count: int) -> Tensor:
        """The `count` best codes, the best first: I32 [count, B]. ggml's top_k alone leaves them in any order."""
        g, batch = self._g, self._batch
        best = g.top_k(logits, count)
        order = g.argsort(g.reshape(g.get_rows(g.reshape(logits, 1, *logits.shape[:2]), best), count, batch))
        return g.reshape(g.get_rows(g.reshape(best, 1, count, batch), order), count, batch)
