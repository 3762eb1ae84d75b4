"""The depth decoder's layers as part of a ggml graph, for a batch of frames: what sampling and replaying share.

It knows no codebooks' tables or heads, and nothing of how a position's input comes about.
"""

from gguf import GGMLQuantizationType

from ....models.spec import ModelSpec
from ....native.graph import Graph, Tensor, TensorContext
from .weights import DepthLayer, DepthWeights

NODES_PER_LAYER = 40
"""More than a layer takes, however many matrices its products are split into."""
_ALIGNMENT = 256
"""Bytes: where a view may begin on any device. Source: Vulkan's limit on minStorageBufferOffsetAlignment."""


def new_cache(state: TensorContext, spec: ModelSpec, qtype: GGMLQuantizationType, batch: int) -> Tensor:
    """Keys and values of one frame of each utterance, [2 * kv_dim, codebooks, B, layers], keys first, in `state`."""
    return state.new(qtype, 2 * spec.decoder.kv_dim, spec.codebooks, batch, spec.decoder.layers)


class DepthTransformer:
    """Appends the layers to a graph, as often as it is called: each call goes on where the cache ends."""

    def __init__(
        self, graph: Graph, spec: ModelSpec, weights: DepthWeights, cache: Tensor, mask: Tensor, *, batch: int
    ) -> None:
        """`mask` is the causal one, F16 [T, T], of the only call that has more than one position."""
        self._g, self._spec, self._weights, self._cache = graph, spec, weights, cache
        self._mask, self._batch = mask, batch
        # Beforehand, so that later nothing stands between the products: only neighbours are fused.
        self._halves = [self._expanded_halves(layer) for layer in weights.layers]

    def __call__(self, x: Tensor, last: int) -> Tensor:
        """`x` [d, T, B], the inputs at positions `last - T + 1` to `last` -> what the last layer makes of them."""
        g, eps = self._g, self._spec.norm_eps
        for index, layer in enumerate(self._weights.layers):
            y = g.rms_norm(x, layer.attention_norm, eps)
            x = g.add(x, self._attention(y, index, last))
            y = g.rms_norm(x, layer.ffn_norm, eps)
            halves = self._halves[index] if y.shape[1] * y.shape[2] == 1 else []
            x = g.add(x, g.mul_mat(layer.down, g.swiglu(*(g.mul_mat(each, y) for each in halves or layer.gate_up))))
        return x

    def _expanded_halves(self, layer: DepthLayer) -> list[Tensor]:
        """Gate and up as two, where they are one and a device gains by it.

        ggml's CUDA backend makes one kernel of two products of a row and their SwiGLU. For several rows, and elsewhere,
        one product less is better.
        """
        g, rows = self._g, self._spec.decoder.ffn_dim
        if (
            not self._weights.fuses_swiglu
            or self._batch > 1
            or len(layer.gate_up) > 1
            or rows * layer.gate_up[0].strides[1] % _ALIGNMENT
        ):
            return []
        halves = [g.rows(layer.gate_up[0], first, rows) for first in (0, rows)]
        for half in halves:
            g.expand(half)
        return halves

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

    def _attention(self, y: Tensor, index: int, last: int) -> Tensor:
        g, d, batch = self._g, self._spec.decoder, self._batch
        layer, count = self._weights.layers[index], y.shape[1]
        past = last + 1 - count
        heads = g.reshape(self._query_key_value(layer, y), d.head_dim, d.heads + 2 * d.kv_heads, count, batch)
        strides, first_key = heads.strides, d.heads * heads.strides[1]
        positions = g.view(self._weights.positions, (count, 1, 1, 1), (4 * count,) * 3, 4 * past)
        turned = g.view(heads, (d.head_dim, d.heads + d.kv_heads, count, batch), strides[1:])
        turned = g.rope(turned, positions, self._weights.rope_factors, self._spec.rope_base)
        g.expand(turned)
        # From the same memory, so after RoPE in the graph's order: keys and values lie beside each other.
        self._remember(g.view(heads, (d.head_dim, 2 * d.kv_heads, count, batch), strides[1:], first_key), index, past)
        query = g.view(turned, (d.head_dim, count, d.heads, batch), (strides[2], strides[1], strides[3]))
        keys, values = self._remembered(index, past + count)
        mixed = g.attention(query, keys, values, self._mask if count > 1 else None, d.head_dim**-0.5)
        return g.mul_mat(layer.attention_output, g.reshape(mixed, d.q_dim, count, batch))

    def _query_key_value(self, layer: DepthLayer, y: Tensor) -> Tensor:
        first, *others = (self._g.mul_mat(matrix, y) for matrix in layer.query_key_value)
        for other in others:
            first = self._g.concat(first, other)
        return first

    def _remember(self, new: Tensor, index: int, past: int) -> None:
        """Append `new`, keys and values [head_dim, 2 * kv_heads, T, B], to a layer's cache."""
        g, cache, head_bytes = self._g, self._cache, self._head_bytes
        start = index * cache.strides[3] + past * cache.strides[1]
        g.expand(g.copy(new, g.view(cache, new.shape, (head_bytes, cache.strides[1], cache.strides[2]), start)))

    def _remembered(self, index: int, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` positions of a layer's keys and values, [head_dim, count, kv_heads, B] each."""
        d, cache = self._spec.decoder, self._cache
        shape = (d.head_dim, count, d.kv_heads, self._batch)
        strides = (cache.strides[1], self._head_bytes, cache.strides[2])
        start = index * cache.strides[3]
        keys = self._g.view(cache, shape, strides, start)
        return keys, self._g.view(cache, shape, strides, start + d.kv_heads * self._head_bytes)

    @property
    def _head_bytes(self) -> int:
        return self._cache.strides[0] * self._spec.decoder.head_dim
