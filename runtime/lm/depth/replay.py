"""The depth decoder told what was said: the logits of all codebooks of given frames, in one pass over the weights.

Nothing is sampled, so no codebook waits for the one before: all positions of many frames are one batch, causal within
each frame. It knows neither where the hidden states come from nor what the logits are for.
"""

from contextlib import ExitStack

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from ....core.arrays import F32Array, I64Array
from ....models.spec import ModelSpec
from ....native.buffer import Buffer, read_tensor, write_tensor
from ....native.buffer_types import plain_buffer_type
from ....native.device import Backends
from ....native.graph import F16, F32, I32, Graph, Tensor, TensorContext
from ....native.products import ProductWatch
from ....native.scheduler import Scheduler
from .transformer import NODES_PER_LAYER, DepthTransformer, new_cache
from .weights import DepthWeights

FRAMES_AT_ONCE = 16
"""Frames of one pass: with 32 codebooks 512 columns, where more no longer make a product faster."""
_NODES_PER_STEP = 8
_NODES_AROUND = 16


class ReplayGraph:
    """The graph of up to `frames` frames, with its inputs and its cache. `close` frees it; `weights` outlive it."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: DepthWeights,
        backends: Backends,
        *,
        kv: GGMLQuantizationType,
        frames: int = FRAMES_AT_ONCE,
        watch: ProductWatch | None = None,
    ) -> None:
        """Allocate; `watch` sees the products. Raises `MemoryError` if the device is full."""
        self._spec, self._weights, self._frames = spec, weights, frames
        steps, count = spec.codebooks - 1, spec.codebooks
        with ExitStack() as stack:
            state = TensorContext(8)
            stack.callback(state.close)
            self._cache = new_cache(state, spec, kv, frames)
            self._mask = state.new(F16, count, count)
            self._hidden = state.new(F32, spec.backbone.embed_dim, frames)
            self._codes = state.new(I32, frames, steps)
            self._inputs = state.new(F32, spec.decoder.embed_dim, count, frames)
            buffer = Buffer(state, plain_buffer_type(backends.best), weights=False)
            stack.callback(buffer.close)
            write_tensor(self._mask, np.triu(np.full((count, count), -np.inf, np.float16), 1))
            self._g = Graph(spec.decoder.layers * NODES_PER_LAYER + steps * _NODES_PER_STEP + _NODES_AROUND)
            stack.callback(self._g.close)
            self._build()
            self._scheduler = Scheduler(backends, self._g, watch)
            stack.callback(self._scheduler.close)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free it. Idempotent."""
        self._stack.close()

    @property
    def splits(self) -> int:
        """Into how many pieces the scheduler cut the graph: 1 if one device computes all of it."""
        return self._scheduler.splits

    def _build(self) -> None:
        g, spec, frames = self._g, self._spec, self._frames
        transformer = DepthTransformer(g, spec, self._weights, self._cache, self._mask, batch=frames)
        self._feed(0, g.mul_mat(self._weights.projection, self._hidden))
        for index, table in enumerate(self._weights.embeddings):
            codes = g.view(self._codes, (frames, 1, 1, 1), self._codes.strides[1:], index * self._codes.strides[1])
            self._feed(index + 1, g.get_rows(table, codes))
        x = transformer(self._inputs, spec.codebooks - 1)
        self._logits = []
        for codebook, head in enumerate(self._weights.heads, 1):
            logits = g.mul_mat(head, transformer.output(x, codebook))
            g.expand(logits, output=True)
            self._logits.append(logits)

    def _feed(self, position: int, x: Tensor) -> None:
        """Make `x` [d, frames] the input of a position."""
        g, inputs, frames = self._g, self._inputs, self._frames
        strides = (inputs.strides[2], inputs.strides[2] * frames, inputs.strides[2] * frames)
        g.expand(g.copy(x, g.view(inputs, x.shape, strides, position * inputs.strides[1])))

    def logits(self, hidden: F32Array, codes: I64Array) -> F32Array:
        """Logits of codebooks 1 to the last, each given the codes before it in its frame.

        Args:
            hidden: The backbone's hidden states `[N, D]`, float32; any number of frames.
            codes: What was said, `[N, codebooks]`, int64; the last column may be missing, since nothing depends on it.

        Returns:
            float32 `[N, codebooks - 1, V]`: entry j is of codebook j + 1.

        Raises:
            ValueError: On wrong shapes, or codes outside the vocabulary.
        """
        spec, count = self._spec, len(hidden)
        steps = spec.codebooks - 1
        if hidden.shape != (count, spec.backbone.embed_dim) or hidden.dtype != np.float32:
            raise ValueError(
                f"hidden must be float32 [N, {spec.backbone.embed_dim}], not {hidden.dtype} {list(hidden.shape)}"
            )
        if codes.shape not in {(count, steps), (count, spec.codebooks)} or codes.dtype != np.int64:
            raise ValueError(
                f"codes must be int64 [{count}, {spec.codebooks}] (or {steps}), not {codes.dtype} {list(codes.shape)}"
            )
        codes = codes[:, :steps]
        if codes.size and not 0 <= codes.min() <= codes.max() < spec.audio_vocab:
            raise ValueError(f"codes must be 0 to {spec.audio_vocab - 1}, not {codes.min()} to {codes.max()}")
        rows = codes.astype(np.int32)
        out = np.empty((count, steps, spec.audio_vocab), np.float32)
        for start in range(0, count, self._frames):
            part = slice(start, start + self._frames)
            self._compute(hidden[part], rows[part], out[part])
        return out

    def _compute(self, hidden: F32Array, rows: NDArray[np.int32], out: F32Array) -> None:
        """One pass. What is missing to a full one is filled with frames of zeros, so there is a single graph."""
        missing = ((0, self._frames - len(hidden)), (0, 0))
        write_tensor(self._hidden, np.pad(hidden, missing))
        write_tensor(self._codes, np.pad(rows, missing).T)
        self._scheduler.compute()
        logits = np.empty((self._frames, self._spec.audio_vocab), np.float32)
        for index, tensor in enumerate(self._logits):
            read_tensor(tensor, logits)
            out[:, index] = logits[: len(out)]
