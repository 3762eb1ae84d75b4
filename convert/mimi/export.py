"""The two ONNX models of a bundle: Mimi's decoder (codes to audio) and its encoder (audio to codes).

Both stream: state goes in and comes out, all zeros start a stream, and the same graph given everything at once is the
offline codec. Written from numpy weights with standard operators of opset 20; torch has no part in it.
"""

import numpy as np
import spox.opset.ai.onnx.v20 as op
from spox import Tensor, Var, argument

from ...models.mimi import SAMPLE_RATE_HZ, MimiSpec, decoder_layers, encoder_layers
from .graph import StreamGraph, WeightDtype, ints
from .quantizer import dequantise, quantise
from .seanet import downsample, seanet, upsample
from .transformer import transformer
from .weights import Weights

_OFFSET = "offset"


def _metadata(part: str, spec: MimiSpec) -> dict[str, str]:
    """What a runtime must know beside the state, which the graph adds."""
    return {
        "miso.format": "1",
        "miso.part": part,
        "miso.sample_rate_hz": str(SAMPLE_RATE_HZ),
        "miso.frame_samples": str(spec.frame_samples),
        "miso.codebooks": str(spec.codebooks),
        "miso.cardinality": str(spec.cardinality),
    }


def _advance(graph: StreamGraph, offset: Var, steps_of: Var) -> None:
    """Keep `offset` plus the steps (axis 1) of this call."""
    graph.keep(_OFFSET, op.add(offset, op.shape(steps_of, start=1, end=2)))


def export_decoder(spec: MimiSpec, weights: Weights, weight_dtype: WeightDtype = "float16") -> bytes:
    """The decoder as an ONNX model.

    Inputs: `codes` int64 `[batch, codebooks, frames]`, `offset` int64 `[batch]` (25 Hz steps before), and the state.
    Outputs: `audio` float32 `[batch, 1, frames * frame_samples]`, `offset_out` and the next state.

    Args:
        spec: The codec.
        weights: Its tensors as `mimi_weights` returns them.
        weight_dtype: How they are stored; they are computed with as float32.
    """
    graph = StreamGraph(weights, weight_dtype)
    codes = argument(Tensor(np.int64, ("batch", spec.codebooks, "frames")))
    offset = graph.past(_OFFSET, (), np.int64)
    x = dequantise(graph, spec, codes)
    x = upsample(graph, spec.latent_dim, x)
    _advance(graph, offset, x)
    x = transformer(graph, spec, "decoder_transformer", x, offset)
    x = seanet(graph, decoder_layers(spec), x)
    return graph.model({"codes": codes}, {"audio": op.transpose(x, perm=[0, 2, 1])}, _metadata("mimi-decoder", spec))


def export_encoder(spec: MimiSpec, weights: Weights, weight_dtype: WeightDtype = "float32") -> bytes:
    """The encoder as an ONNX model.

    Inputs: `audio` float32 `[batch, 1, samples]`, padded here with zeros to whole frames (so only the last call of a
    stream may be ragged), `offset` and the state. Outputs: `codes` int64 `[batch, codebooks, frames]`, `offset_out`
    and the next state.

    Args:
        spec: The codec.
        weights: Its tensors as `mimi_weights` returns them.
        weight_dtype: How they are stored. Float16 changes some codes: nearest entries are often nearly equally near.
    """
    graph = StreamGraph(weights, weight_dtype)
    audio = argument(Tensor(np.float32, ("batch", 1, "samples")))
    offset = graph.past(_OFFSET, (), np.int64)
    ragged = op.mod(op.neg(op.shape(audio, start=2, end=3)), ints(spec.frame_samples))
    audio_padded = op.pad(audio, op.concat([ints(0), ragged], axis=0), axes=ints(2))
    x = seanet(graph, encoder_layers(spec), op.transpose(audio_padded, perm=[0, 2, 1]))
    _advance(graph, offset, x)
    x = transformer(graph, spec, "encoder_transformer", x, offset)
    x = downsample(graph, spec.latent_dim, x, offset)
    return graph.model({"audio": audio}, {"codes": quantise(graph, spec, x)}, _metadata("mimi-encoder", spec))
