"""The graph that samples: every codebook's step of a frame, for a batch of utterances.

It unrolls the steps, keeps their KV cache in place, and samples inside: a code never leaves the device on its way to
the next step. Sampling is Gumbel-max: argmax(logits / T + noise) = argmax(logits + T * noise), so the caller scales the
noise, T is no part of the graph, and noise of zeros is greedy.
"""

from contextlib import ExitStack

from gguf import GGMLQuantizationType

from ....core.closing import Closing
from ....models.spec import ModelSpec
from ....native.buffer import Buffer
from ....native.buffer_types import plain_buffer_type
from ....native.device import Backends
from ....native.graph import F32, I32, Graph, Tensor, TensorContext
from ....native.scheduler import Scheduler
from .transformer import NODES_PER_LAYER, DepthTransformer, new_cache
from .weights import DepthWeights

_NODES_PER_STEP = 40


class FrameGraph(Closing):
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
        """Free the graph and its caches. Idempotent."""
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
