"""SEANet, Mimi's stack of causal convolutions, as matrix products over windows of `[batch, time, channels]`.

Every convolution of the codec is one primitive here. A kernel of 2 strides (all strided and transposed ones have that)
is a kernel of 2 over blocks of `stride` steps; so a transposed convolution carries its last *input* instead of a
partial sum of outputs, and adds its bias once. As matrix products with the weight on the right, ONNX Runtime packs
the weights at load and reads them once for however few steps a call has.
"""

import numpy as np
import spox.opset.ai.onnx.v20 as op
from numpy.typing import NDArray
from spox import Var

from ...models.mimi import STEPS_PER_FRAME, Conv, Residual
from .graph import END, StreamGraph, cut, floats, ints


def _with_past(graph: StreamGraph, name: str, x: Var, steps: int, channels: int) -> Var:
    """`x` behind the last `steps` steps of the previous call: `[B, T, C]` to `[B, steps + T, C]`."""
    both = op.concat([graph.past(name, (steps, channels)), x], axis=1)
    graph.keep(name, cut(both, -steps, END, axis=1))
    return both


def _folded(x: Var, channels: int) -> Var:
    """Time folded into channels or back: `[B, T, C]` to `[B, T * C / channels, channels]`."""
    return op.reshape(x, ints(0, -1, channels))


def _windowed(graph: StreamGraph, name: str, x: Var, taps: NDArray[np.float32]) -> Var:
    """The convolution itself: `[B, T, C]` and taps `[kernel, C, outputs]`, oldest first, to `[B, T, outputs]`.

    Either the inputs of all taps are laid side by side and multiplied at once, or everything is multiplied by every
    tap and the shifted products are summed: whichever moves less memory.
    """
    kernel, inputs, outputs = taps.shape
    weight = f"{name}.weight"
    if kernel == 1:
        return op.matmul(x, graph.weight(weight, taps[0]))
    both = _with_past(graph, name, x, kernel - 1, inputs)
    if outputs >= inputs:
        views = [cut(both, tap, tap - kernel + 1, axis=1) for tap in range(kernel - 1)]
        return op.matmul(op.concat([*views, x], axis=2), graph.weight(weight, taps.reshape(-1, outputs)))
    products = op.matmul(both, graph.weight(weight, taps.transpose(1, 0, 2).reshape(inputs, -1)))
    shifted = []
    for tap in range(kernel):
        stop = tap - kernel + 1 if tap < kernel - 1 else END
        box = ints(tap, tap * outputs), ints(stop, (tap + 1) * outputs), ints(1, 2)
        shifted.append(op.slice(products, *box))
    return op.sum(shifted)


def conv(graph: StreamGraph, layer: Conv, x: Var) -> Var:
    """One causal convolution: `[B, T, inputs]` to `[B, T / stride, outputs]`, transposed `[B, T * stride, outputs]`."""
    weight, stride = graph.tensors[f"{layer.name}.weight"], layer.stride
    if layer.transposed:
        # Kernel positions 0 .. stride - 1 act on the newest input, the others on the one before.
        taps = weight.reshape(layer.inputs, layer.outputs, 2, stride).transpose(2, 0, 3, 1)[::-1]
        y = _windowed(graph, layer.name, x, taps.reshape(2, layer.inputs, -1))
        y = _folded(y, layer.outputs)
    else:
        taps = weight.transpose(2, 1, 0).reshape(layer.kernel // stride, -1, layer.outputs)
        y = _windowed(graph, layer.name, _folded(x, stride * layer.inputs) if stride > 1 else x, taps)
    return op.add(y, floats(graph.tensors[f"{layer.name}.bias"]))


def seanet(graph: StreamGraph, layers: list[Conv | Residual], x: Var) -> Var:
    """A whole encoder or decoder: an ELU before every convolution but the first."""
    for index, layer in enumerate(layers):
        if isinstance(layer, Residual):
            y = conv(graph, layer.first, op.elu(x))
            x = op.add(x, conv(graph, layer.second, op.elu(y)))
        else:
            x = conv(graph, layer, op.elu(x) if index else x)
    return x


def upsample(graph: StreamGraph, dim: int, x: Var) -> Var:
    """Frames to steps, each channel on its own: `[B, n, dim]` to `[B, 2 * n, dim]`."""
    name = "upsample.convtr.convtr.convtr"
    newer, older = np.split(graph.tensors[f"{name}.weight"][:, 0].T, 2)
    past = graph.past(name, (1, dim))
    both = op.concat([past, x], axis=1)
    graph.keep(name, cut(both, -1, END, axis=1))
    previous = op.unsqueeze(cut(both, 0, -1, axis=1), ints(2))
    current = op.unsqueeze(x, ints(2))
    return _folded(op.add(op.mul(current, floats(newer)), op.mul(previous, floats(older))), dim)


def downsample(graph: StreamGraph, dim: int, x: Var, offset: Var) -> Var:
    """Steps to frames: `[B, 2 * n, dim]` to `[B, n, dim]`. Before a stream's first step stands that step, repeated.

    Source: moshi `ConvDownsample1d`, whose padding mode is "replicate" where all others pad with zeros.
    """
    name = "downsample.conv.conv.conv"
    matrix = graph.tensors[f"{name}.weight"].transpose(2, 1, 0).reshape(-1, dim)
    first = op.concat([cut(x, 0, 1, axis=1)] * STEPS_PER_FRAME, axis=2)
    starting = op.equal(op.unsqueeze(offset, ints(1, 2)), ints(0))
    past = op.where(starting, first, graph.past(name, (1, STEPS_PER_FRAME * dim)))
    blocks = op.concat([past, _folded(x, STEPS_PER_FRAME * dim)], axis=1)
    graph.keep(name, cut(blocks, -1, END, axis=1))
    pairs = op.concat([cut(blocks, 0, -1, axis=1), cut(blocks, 1, END, axis=1)], axis=2)
    return op.matmul(pairs, graph.weight(f"{name}.weight", matrix))
