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

from ..models.arrays import F32Array, I64Array
from ..models.spec import ModelSpec
from ..native.closing import Closing
from ..native.device import Backends, Buffer, Scheduler, read_tensor, write_tensor
from ..native.gguf_file import GgufFile, GgufTensor
from ..native.graph import F16, F32, I32, Graph, Tensor, TensorContext
from .depth_weights import DepthWeights

_NODES_PER_LAYER = 40
_NODES_PER_STEP = 40


class _FrameGraph:
    """The graph of one frame for a batch of utterances, with its inputs and its caches."""

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
        d = spec.decoder
        self._spec, self.weights, self._batch, self._top_k = spec, weights, batch, top_k
        steps = spec.codebooks - 1
        with ExitStack() as stack:
            state = TensorContext(4)
            stack.callback(state.close)
            self._keys = state.new(kv, d.kv_dim, spec.codebooks, batch, d.layers)
            self._values = state.new(kv, d.kv_dim, spec.codebooks, batch, d.layers)
            self.codes = state.new(I32, spec.codebooks, batch)
            buffer = Buffer(state, backends.buffer_type(), weights=False)
            stack.callback(buffer.close)
            self._g = Graph(steps * (d.layers * _NODES_PER_LAYER + _NODES_PER_STEP))
            stack.callback(self._g.close)
            self.hidden = self._g.input(F32, spec.backbone.embed_dim, batch)
            self.logits = self._g.input(F32, spec.audio_vocab, batch)
            self.noise = self._g.input(F32, spec.audio_vocab, spec.codebooks, batch)
            self._build()
            self.scheduler = Scheduler(backends, self._g)
            stack.callback(self.scheduler.close)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def _build(self) -> None:
        g, spec, d, batch = self._g, self._spec, self._spec.decoder, self._batch
        first = g.reshape(g.mul_mat(self.weights.projection, self.hidden), d.embed_dim, 1, batch)
        code = self._sample(0, self.logits)
        for codebook in range(1, spec.codebooks):
            table = g.rows(self.weights.embeddings, (codebook - 1) * spec.audio_vocab, spec.audio_vocab)
            x = g.reshape(g.get_rows(table, code), d.embed_dim, 1, batch)
            if codebook == 1:
                x = g.concat(first, x, dimension=1)
            x = self._transformer(x, codebook)
            head = g.rows(self.weights.heads, codebook * spec.audio_vocab, spec.audio_vocab)
            code = self._sample(codebook, g.mul_mat(head, x))

    def _sample(self, codebook: int, logits: Tensor) -> Tensor:
        """Gumbel-max over the `top_k` best: logits [V, B] -> codes I32 [B], also noted in `self.codes`."""
        g, batch, vocab = self._g, self._batch, self._spec.audio_vocab
        noise = g.view(
            self.noise,
            (1, vocab, batch, 1),
            (4, self.noise.strides[2], self.noise.strides[3]),
            codebook * self.noise.strides[1],
        )
        if self._top_k < vocab:
            best = g.top_k(logits, self._top_k)
            scores = g.add(g.get_rows(g.reshape(logits, 1, vocab, batch), best), g.get_rows(noise, best))
            winner = g.argmax(g.reshape(scores, self._top_k, batch))
            code = g.get_rows(g.reshape(best, 1, self._top_k, batch), g.reshape(winner, 1, batch))
        else:
            flat = g.view(noise, (vocab, batch, 1, 1), (noise.strides[2], noise.strides[3], noise.strides[3]))
            code = g.argmax(g.add(logits, flat))
        code = g.reshape(code, batch)
        stride = self.codes.strides[1]
        slot = g.view(self.codes, (1, batch, 1, 1), (stride, stride * batch, stride * batch), codebook * 4)
        g.expand(g.copy(g.reshape(code, 1, batch), slot))
        return code

    def _transformer(self, x: Tensor, codebook: int) -> Tensor:
        """`x` [d, T, B], the inputs at positions `codebook - T + 1` to `codebook` -> the last one's output [d, B]."""
        g, d, eps = self._g, self._spec.decoder, self._spec.norm_eps
        for index, layer in enumerate(self.weights.layers):
            y = g.rms_norm(x, layer.attention_norm, eps)
            x = g.add(x, self._attention(y, index, codebook))
            y = g.rms_norm(x, layer.ffn_norm, eps)
            x = g.add(x, self._times(layer.down, g.swiglu(self._times(layer.gate_up, y))))
        if x.shape[1] > 1:
            stride = x.strides[2]
            x = g.view(
                x, (d.embed_dim, self._batch, 1, 1), (stride, stride * self._batch, stride * self._batch), x.strides[1]
            )
        else:
            x = g.reshape(x, d.embed_dim, self._batch)
        return g.rms_norm(x, self.weights.norm, eps)

    def _times(self, matrices: list[Tensor], x: Tensor) -> Tensor:
        parts = [self._g.mul_mat(matrix, x) for matrix in matrices]
        joined = parts[0]
        for part in parts[1:]:
            joined = self._g.concat(joined, part)
        return joined

    def _attention(self, y: Tensor, index: int, codebook: int) -> Tensor:
        g, d, batch = self._g, self._spec.decoder, self._batch
        layer, count = self.weights.layers[index], y.shape[1]
        past = codebook + 1 - count
        heads = g.reshape(self._times(layer.query_key, y), d.head_dim, d.heads + d.kv_heads, count, batch)
        positions = g.view(self.weights.positions, (count, 1, 1, 1), (4 * count,) * 3, 4 * past)
        heads = g.rope(heads, positions, self.weights.rope_factors, self._spec.rope_base)
        query = g.view(
            heads, (d.head_dim, count, d.heads, batch), (heads.strides[2], heads.strides[1], heads.strides[3])
        )
        key = g.view(heads, (d.head_dim, d.kv_heads, count, batch), heads.strides[1:], d.heads * heads.strides[1])
        value = g.reshape(self._times(layer.value, y), d.head_dim, d.kv_heads, count, batch)
        keys = self._remember(self._keys, key, index, past)
        values = self._remember(self._values, value, index, past)
        mixed = g.attention(query, keys, values, self.weights.mask if count > 1 else None, d.head_dim**-0.5)
        return self._times(layer.attention_output, g.reshape(mixed, d.q_dim, count, batch))

    def _remember(self, cache: Tensor, new: Tensor, index: int, past: int) -> Tensor:
        """Append `new` [head_dim, kv_heads, T, B] to a layer's cache; all of it so far, [head_dim, P, kv_heads, B]."""
        g, d, batch = self._g, self._spec.decoder, self._batch
        head_bytes = cache.strides[0] * d.head_dim
        start = index * cache.strides[3]
        count = new.shape[2]
        slot = g.view(
            cache, new.shape, (head_bytes, cache.strides[1], cache.strides[2]), start + past * cache.strides[1]
        )
        g.expand(g.copy(new, slot))
        return g.view(
            cache,
            (d.head_dim, past + count, d.kv_heads, batch),
            (cache.strides[1], head_bytes, cache.strides[2]),
            start,
        )


class DepthDecoder(Closing):
    """Samples all codes of frames. A context manager; `backends` must outlive it."""

    def __init__(self, path: Path, projection: GgufTensor, spec: ModelSpec, backends: Backends) -> None:
        """Load the weights of the decoder's GGUF `path` and the `projection` of its inputs.

        Raises `BundleError` if the file is not this model's decoder, `MemoryError` if the device is full.
        """
        self._spec, self._backends = spec, backends
        self._kv = F16 if backends.devices[0].kind == "gpu" else F32
        with GgufFile(path) as file:
            self.weights = DepthWeights(file, projection, spec, backends)
        self._graphs: dict[tuple[int, int], _FrameGraph] = {}

    def close(self) -> None:
        """Free the graphs, then the weights. Idempotent."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self.weights.close()

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that a frame reads, whatever the batch: all matrices at each step, each head once."""
        heads = self.weights.heads
        row = heads.strides[1]
        steps = self._spec.codebooks - 1
        return steps * (self.weights.streamed_bytes + self._spec.audio_vocab * row)

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
