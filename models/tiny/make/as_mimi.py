"""The constructed codec in genuine Mimi weights: an exporter or a runtime sees nothing special in them.

Mimi is far from linear and has no frames, but it holds a linear codec of frames:

- ELU is the identity for what is positive. Activations are lifted by a constant that keeps them so, and the next
  matrix product's bias takes the lift away again. Residual units add a convolution that is zero.
- Of every kernel only the taps on the newest block are used, so the past of a stream does not matter.
- Encoder: three strided convolutions gather 120 samples into channels, the fourth takes 8 such groups through the
  basis, the last mixes two steps into the latent; the downsampling picks the second step, which has seen both.
- Decoder: the upsampling puts the latent on the first of two steps, the first convolution mixes it into the
  coefficients of both, and transposed convolutions do the rest backwards.
- Transformers: layer scales of zero. Quantiser: the projections select dimensions.

Knows nothing of how the codec was fitted.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...mimi import (
    STEPS_PER_FRAME,
    Conv,
    MimiSpec,
    Residual,
    codebook_names,
    decoder_layers,
    encoder_layers,
    mimi_shapes,
)
from .linear_codec import LinearCodec
from .rvq import Array, as_float16

Tensors = dict[str, NDArray[Any]]

_AUDIO_LIFT = 8.0
"""Samples from -8 to 8 stay positive: arbitrary codes are louder than speech."""
_CONSTANT_CHANNELS = 2
_FINE = 1024.0
"""How much smaller the second constant is: about float16's precision."""


def _plain(layers: list[Conv | Residual]) -> list[Conv]:
    return [layer for layer in layers if isinstance(layer, Conv)]


def _encoder(tensors: dict[str, Array], codec: LinearCodec, spec: MimiSpec) -> None:
    first, *gather, analyse, last = _plain(encoder_layers(spec))
    tensors[f"{first.name}.weight"][0, 0, -1] = 1.0
    tensors[f"{first.name}.bias"][0] = _AUDIO_LIFT
    group = 1
    for conv in gather:
        weight = tensors[f"{conv.name}.weight"]
        for tap in range(conv.stride):
            for channel in range(group):
                weight[tap * group + channel, channel, conv.stride + tap] = 1.0
        group *= conv.stride
    # Sample `tap * group + channel` of a step is in that channel at that tap.
    rank = codec.basis.shape[1]
    taps = codec.basis.reshape(analyse.stride, group, -1).transpose(2, 1, 0)
    tensors[f"{analyse.name}.weight"][:rank, :group, analyse.stride :] = taps
    # Coefficients of samples from -1 to 1 are no larger than this.
    lift = float(np.abs(codec.basis).sum(axis=0).max())
    tensors[f"{analyse.name}.bias"][:rank] = lift - _AUDIO_LIFT * codec.basis.sum(axis=0)
    for step in range(STEPS_PER_FRAME):
        tensors[f"{last.name}.weight"][:, :rank, step - STEPS_PER_FRAME] = codec.mixing[step].T
    tensors[f"{last.name}.bias"][:] = -lift * codec.mixing.sum(axis=(0, 1))
    tensors["downsample.conv.conv.conv.weight"][:, :, -1] = np.eye(spec.latent_dim)


def _largest_coefficient(codec: LinearCodec) -> float:
    """No codes at all give a larger one."""
    split = codec.semantic_dims
    acoustic = codec.mixing.shape[2] - split
    bound = np.abs(codec.codebooks[0, :, :split] @ codec.mixing[:, :, :split].swapaxes(1, 2)).max(axis=1)
    for codebook in codec.codebooks[1:]:
        bound += np.abs(codebook[:, :acoustic] @ codec.mixing[:, :, split:].swapaxes(1, 2)).max(axis=1)
    return float(bound.max())


def _decoder(tensors: dict[str, Array], codec: LinearCodec, spec: MimiSpec) -> None:
    first, synthesise, *scatter, last = _plain(decoder_layers(spec))
    rank = codec.basis.shape[1]
    tensors["upsample.convtr.convtr.convtr.weight"][:, 0, 0] = 1.0
    for step in range(STEPS_PER_FRAME):
        tensors[f"{first.name}.weight"][:rank, :, -1 - step] = codec.mixing[step]
    lift = _largest_coefficient(codec)
    coarse, fine = lift, lift / _FINE
    tensors[f"{first.name}.bias"][:rank] = lift
    tensors[f"{first.name}.bias"][rank:] = coarse, fine
    # A bias of a transposed convolution is the same for all its taps, but what the lift adds differs from sample to
    # sample. So two channels carry nothing but constants, and take it away: what float16 makes of it, then the rest.
    lifted = lift * codec.basis.sum(axis=1)
    against = as_float16(-lifted / coarse)
    columns = [against, as_float16(-(lifted + coarse * against) / fine)]
    basis = np.concatenate([codec.basis, np.stack(columns, axis=1)], axis=1)
    group = len(basis) // synthesise.stride
    taps = basis.reshape(synthesise.stride, group, -1).transpose(2, 1, 0)
    tensors[f"{synthesise.name}.weight"][:, :group, : synthesise.stride] = taps
    tensors[f"{synthesise.name}.bias"][:group] = _AUDIO_LIFT
    for conv in scatter:
        weight = tensors[f"{conv.name}.weight"]
        group //= conv.stride
        for tap in range(conv.stride):
            for channel in range(group):
                weight[tap * group + channel, channel, tap] = 1.0
    tensors[f"{last.name}.weight"][0, 0, -1] = 1.0
    tensors[f"{last.name}.bias"][0] = -_AUDIO_LIFT


def _quantiser(tensors: dict[str, Array], codec: LinearCodec, spec: MimiSpec) -> None:
    for part, dims in (
        ("rvq_first", range(codec.semantic_dims)),
        ("rvq_rest", range(codec.semantic_dims, spec.latent_dim)),
    ):
        for position, dim in enumerate(dims):
            tensors[f"quantizer.{part}.input_proj.weight"][position, dim, 0] = 1.0
            tensors[f"quantizer.{part}.output_proj.weight"][dim, position, 0] = 1.0
    for name, codebook in zip(codebook_names(spec), codec.codebooks, strict=True):
        tensors[f"{name}.embedding_sum"][:] = codebook
        tensors[f"{name}.cluster_usage"][:] = 1.0


def largest_rank(spec: MimiSpec) -> int:
    """Of a basis that these dimensions can hold: two channels of the widest layer are needed for constants."""
    return (spec.filters << len(spec.ratios)) - _CONSTANT_CHANNELS


def as_mimi(codec: LinearCodec, spec: MimiSpec) -> Tensors:
    """A whole checkpoint in Kyutai's names: matrices as float16, biases and norms as float32.

    Args:
        codec: Of rank `largest_rank(spec)`.
        spec: Its dimensions. The kernels must be 2 or more, and the channels wide enough for what is gathered in them.

    Raises `ValueError` if the two do not fit together.
    """
    shapes = mimi_shapes(spec)
    wanted = (largest_rank(spec), spec.latent_dim, spec.codebooks, spec.cardinality, spec.codebook_dim)
    found = (codec.basis.shape[1], codec.mixing.shape[2], *codec.codebooks.shape)
    if wanted != found:
        raise ValueError(f"rank, latent_dim and codebooks of the codec are {found}, but these dimensions want {wanted}")
    tensors = {name: np.zeros(shape) for name, shape in shapes.items()}
    _encoder(tensors, codec, spec)
    _decoder(tensors, codec, spec)
    _quantiser(tensors, codec, spec)
    for name, array in tensors.items():
        if ".norm" in name and name.endswith(".weight"):
            array[:] = 1.0
    result: Tensors = {}
    for name, array in tensors.items():
        result[name] = array.astype(np.float32 if array.ndim == 1 else np.float16)
    for name in codebook_names(spec):
        result[f"{name}._initialized"] = np.ones(1, np.float32)
    return result


def from_mimi(tensors: Mapping[str, NDArray[Any]], spec: MimiSpec) -> LinearCodec:
    """The codec that `as_mimi` wrote. Raises `KeyError` for a tensor that is missing."""
    first, synthesise, *_ = _plain(decoder_layers(spec))
    rank, group = largest_rank(spec), math.prod(spec.ratios[1:])
    taps = np.asarray(tensors[f"{synthesise.name}.weight"], np.float64)[:rank, :group, : synthesise.stride]
    mixing = np.asarray(tensors[f"{first.name}.weight"], np.float64)[:rank]
    return LinearCodec(
        basis=taps.transpose(2, 1, 0).reshape(-1, rank),
        mixing=np.stack([mixing[:, :, -1 - step] for step in range(STEPS_PER_FRAME)]),
        semantic_dims=int(np.count_nonzero(tensors["quantizer.rvq_first.output_proj.weight"])),
        codebooks=np.stack([np.asarray(tensors[f"{name}.embedding_sum"], np.float64) for name in codebook_names(spec)]),
    )
