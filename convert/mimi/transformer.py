"""Mimi's transformer: causal attention over a window, with each stream's keys and values as explicit state.

Keys stay rotated by their absolute position. The angles are computed in float64: in float32, as upstream does, they
drift after minutes. Their cosines and sines are not: ONNX Runtime before 1.29 has none for float64.
"""

import math

import numpy as np
import spox.opset.ai.onnx.v20 as op
from numpy.typing import NDArray
from spox import Var

from ...models.mimi import MimiSpec
from .graph import END, StreamGraph, cut, floats, ints

_NORM_EPS = 1e-5
"""Source: moshi `create_norm_fn`."""


def _positions(x: Var, spec: MimiSpec, offset: Var) -> tuple[Var, Var, Var]:
    """For the T steps of this call: cos and sin `[B, T, 1, D / 2]`, and the mask `[B, 1, T, window - 1 + T]`."""
    past = spec.window - 1
    steps = op.squeeze(op.shape(x, start=1, end=2), ints(0))
    zero, one = op.const(np.int64(0)), op.const(np.int64(1))
    query = op.range(zero, steps, one)
    key = op.range(op.const(np.int64(-past)), steps, one)
    start = op.unsqueeze(offset, ints(1))

    # Source: moshi `apply_rope`; its frequencies are float32.
    half = np.arange(spec.head_dim // 2, dtype=np.float32)
    frequency = np.exp(half * np.float32(-2 * math.log(spec.rope_period) / spec.head_dim)).astype(np.float64)
    angle = op.mul(op.unsqueeze(op.cast(op.add(start, query), to=np.float64), ints(2, 3)), op.const(frequency))
    # Within one turn a float32 angle is off by 2.4e-7 at most, however long the stream already is.
    turned = op.cast(op.mod(angle, op.const(np.float64(2 * math.pi)), fmod=1), to=np.float32)
    cos, sin = op.cos(turned), op.sin(turned)

    distance = op.sub(op.unsqueeze(query, ints(1)), key)
    near = op.and_(op.greater_or_equal(distance, zero), op.less_or_equal(distance, op.const(np.int64(past))))
    begun = op.greater_or_equal(op.add(start, key), zero)
    seen = op.and_(near, op.unsqueeze(begun, ints(1)))
    mask = op.where(seen, op.const(np.float32(0)), op.const(np.float32(-np.inf)))
    return cos, sin, op.unsqueeze(mask, ints(1))


def _qkv_matrix(spec: MimiSpec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The fused projection `[C, 3 * C]`, columns ordered (first | second of each RoPE pair) x (q | k) x heads, then v.

    So one product with cos and one with sin rotate all heads of q and k; q also takes up the softmax scale.
    """
    q, k, v = np.split(rows, 3)
    q = q / np.float32(math.sqrt(spec.head_dim))
    pairs = np.stack([q, k]).reshape(2, spec.heads, spec.head_dim // 2, 2, -1).transpose(3, 0, 1, 2, 4)
    return np.asarray(np.concatenate([pairs.reshape(2 * spec.latent_dim, -1), v]).T)


def _carried(graph: StreamGraph, spec: MimiSpec, name: str, new: Var) -> Var:
    """Keys or values `[B, heads, window - 1 + T, D]`: those of the past, then `new`; the last window is kept."""
    past = graph.past(name, (spec.heads, spec.window - 1, spec.head_dim))
    both = op.concat([past, new], axis=2)
    graph.keep(name, cut(both, 1 - spec.window, END, axis=2))
    return both


def _attention(graph: StreamGraph, spec: MimiSpec, name: str, x: Var, where: tuple[Var, Var, Var]) -> Var:
    cos, sin, mask = where
    dim, heads, head_dim = spec.latent_dim, spec.heads, spec.head_dim
    matrix = _qkv_matrix(spec, graph.tensors[f"{name}.in_proj_weight"])
    qkv = op.matmul(x, graph.weight(f"{name}.in_proj_weight", matrix))
    first, second, value = op.split(qkv, axis=2, num_outputs=3)
    first, second = (op.reshape(part, ints(0, 0, 2 * heads, head_dim // 2)) for part in (first, second))
    rotated = op.concat(
        [
            op.sub(op.mul(first, cos), op.mul(second, sin)),
            op.add(op.mul(first, sin), op.mul(second, cos)),
        ],
        axis=3,
    )
    query, key = op.split(op.transpose(rotated, perm=[0, 2, 1, 3]), axis=1, num_outputs=2)
    value = op.transpose(op.reshape(value, ints(0, 0, heads, head_dim)), perm=[0, 2, 1, 3])
    key = _carried(graph, spec, f"{name}.key", key)
    value = _carried(graph, spec, f"{name}.value", value)
    scores = op.matmul(query, op.transpose(key, perm=[0, 1, 3, 2]))
    mixed = op.matmul(op.softmax(op.add(scores, mask), axis=3), value)
    merged = op.reshape(op.transpose(mixed, perm=[0, 2, 1, 3]), ints(0, 0, dim))
    scale = graph.tensors[name.replace("self_attn", "layer_scale_1.scale")]
    out = f"{name}.out_proj.weight"
    return op.matmul(merged, graph.weight(out, graph.tensors[out].T * scale))


def _norm(graph: StreamGraph, name: str, x: Var) -> Var:
    scale, bias = (floats(graph.tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
    return op.layer_normalization(x, scale, bias, axis=-1, epsilon=_NORM_EPS)[0]


def transformer(graph: StreamGraph, spec: MimiSpec, prefix: str, x: Var, offset: Var) -> Var:
    """All layers of one side's transformer: `[B, T, C]` to the same. `offset` `[B]` counts the steps before x.

    Layer scales are folded into the matrices whose products they scale.
    """
    where = _positions(x, spec, offset)
    for layer in range(spec.layers):
        name = f"{prefix}.transformer.layers.{layer}"
        y = _norm(graph, f"{name}.norm1", x)
        x = op.add(x, _attention(graph, spec, f"{name}.self_attn", y, where))
        wide, narrow = (graph.tensors[f"{name}.linear{i}.weight"].T for i in (1, 2))
        y = _norm(graph, f"{name}.norm2", x)
        y = op.gelu(op.matmul(y, graph.weight(f"{name}.linear1.weight", wide)))
        narrow = narrow * graph.tensors[f"{name}.layer_scale_2.scale"]
        x = op.add(x, op.matmul(y, graph.weight(f"{name}.linear2.weight", narrow)))
    return x
