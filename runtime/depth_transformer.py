"""The depth decoder's layers as part of a ggml graph, for a batch of frames: what sampling and replaying share.

It knows no codebooks' tables or heads, and nothing of how a position's input comes about.
"""

from typing import NamedTuple

from gguf import GGMLQuantizationType

from ..models.spec import ModelSpec
from ..native.graph import Graph, Tensor, TensorContext
from .depth_weights import DepthWeights

NODES_PER_LAYER = 40
"""More than a layer takes, however many matrices its products are split into."""


class DepthCache(NamedTuple):
    """Keys and values of one frame of each utterance, [kv_dim, codebooks, B, layers]."""

    keys: Tensor
    values: Tensor

    @classmethod
    def new(cls, state: TensorContext, spec: ModelSpec, qtype: GGMLQuantizationType, batch: int) -> "DepthCache":
        """A cache in `state`, whose memory is allocated later."""
        shape = (spec.decoder.kv_dim, spec.codebooks, batch, spec.decoder.layers)
        return cls(state.new(qtype, *shape), state.new(qtype, *shape))


class DepthTransformer:
    """Appends the layers to a graph, as often as it is called: each call goes on where the cache ends."""

    def __init__(
        self, graph: Graph, spec: ModelSpec, weights: DepthWeights, cache: DepthCache, mask: Tensor, *, batch: int
    ) -> None:
        """`mask` is the causal one, F16 [T, T], of the only call that has more than one position."""
        self._g, self._spec, self._weights, self._cache = graph, spec, weights, cache
        self._mask, self._batch = mask, batch

    def __call__(self, x: Tensor, last: int) -> Tensor:
        """`x` [d, T, B], the inputs at positions `last - T + 1` to `last` -> what the last layer makes of them."""
        g, eps = self._g, self._spec.norm_eps
        for index, layer in enumerate(self._weights.layers):
            y = g.rms_norm(x, layer.attention_norm, eps)
            x = g.add(x, self._attention(y, index, last))
            y = g.rms_norm(x, layer.ffn_norm, eps)
            x = g.add(x, self._times(layer.down, g.swiglu(self._times(layer.gate_up, y))))
        return x

    def output(self, x: Tensor, index: int) -> Tensor:
        """The final norm of entry `index` of a call's result [d, T, B]: [d, B]."""
        g, d = self._g, self._spec.decoder
        if x.shape[1] > 1:
            stride = x.strides[2]
            strides = (stride, stride * self._batch, stride * self._batch)
            x = g.view(x, (d.embed_dim, self._batch, 1, 1), strides, index * x.strides[1])
        else:
            x = g.reshape(x, d.embed_dim, self._batch)
        return g.rms_norm(x, self._weights.norm, self._spec.norm_eps)

    def _times(self, matrices: list[Tensor], x: Tensor) -> Tensor:
        parts = [self._g.mul_mat(matrix, x) for matrix in matrices]
        joined = parts[0]
        for part in parts[1:]:
            joined = self._g.concat(joined, part)
        return joined

    def _attention(self, y: Tensor, index: int, last: int) -> Tensor:
        g, d, batch = self._g, self._spec.decoder, self._batch
        layer, count = self._weights.layers[index], y.shape[1]
        past = last + 1 - count
        heads = g.reshape(self._times(layer.query_key, y), d.head_dim, d.heads + d.kv_heads, count, batch)
        positions = g.view(self._weights.positions, (count, 1, 1, 1), (4 * count,) * 3, 4 * past)
        heads = g.rope(heads, positions, self._weights.rope_factors, self._spec.rope_base)
        query = g.view(
            heads, (d.head_dim, count, d.heads, batch), (heads.strides[2], heads.strides[1], heads.strides[3])
        )
        key = g.view(heads, (d.head_dim, d.kv_heads, count, batch), heads.strides[1:], d.heads * heads.strides[1])
        value = g.reshape(self._times(layer.value, y), d.head_dim, d.kv_heads, count, batch)
        keys = self._remember(self._cache.keys, key, index, past)
        values = self._remember(self._cache.values, value, index, past)
        mixed = g.attention(query, keys, values, self._mask if count > 1 else None, d.head_dim**-0.5)
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
