"""Random Mimi weights in Kyutai's layout, shaped so that a wrong conversion cannot pass for a right one.

A freshly built codec hides errors: its codebooks are zero and its layer scales 0.01. Here every part carries weight,
activations stay near unit variance, decoded audio has the loudness of speech, and some codebook entries are dead.
It knows nothing of real weights; the figures below are only scales.
"""

import numpy as np
from numpy.typing import NDArray

from .mimi import MimiSpec, Residual, codebook_names, decoder_layers, encoder_layers, mimi_shapes
from .tensors import Shape

Array = NDArray[np.float32]

_ELU_GAIN = 1.25
"""Keeps the variance through an ELU: E[elu(x)^2] is 0.645 for a standard normal x."""
_AUDIO_IN_GAIN = 8.0
_AUDIO_OUT_GAIN = 0.12
_CODE_STD = 0.2
"""Of the first codebook; for 2048 random vectors of 256 dimensions about the best quantiser of unit variance."""
_CODE_DECAY = 0.97
_DEAD, _RARE = 0.01, 0.04
"""Shares of codebook entries with a usage below the clamp of 1e-5, and between it and 1."""


class _Draw:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def normal(self, shape: Shape, std: float, mean: float = 0.0) -> Array:
        return np.asarray(mean + std * self._rng.standard_normal(shape, dtype=np.float32), np.float32)

    def usage(self, entries: int) -> Array:
        usage = np.exp(self._rng.normal(3.0, 1.0, entries))
        kind = self._rng.random(entries)
        usage[kind < _RARE] = np.exp(self._rng.uniform(np.log(1e-4), 0.0, entries))[kind < _RARE]
        usage[kind < _DEAD] = 1e-7
        return usage.astype(np.float32)


def _conv_gains(spec: MimiSpec) -> dict[str, float]:
    """Gain of every convolution relative to variance-preserving, by module name."""
    gains: dict[str, float] = {}
    for stack in (encoder_layers(spec), decoder_layers(spec)):
        for layer in stack:
            if isinstance(layer, Residual):
                gains[layer.first.name] = _ELU_GAIN
                gains[layer.second.name] = 0.7 * _ELU_GAIN
            else:
                gains[layer.name] = _ELU_GAIN
    gains["encoder.model.0.conv.conv"] = _AUDIO_IN_GAIN
    gains["decoder.model.0.conv.conv"] = 1.0
    last = decoder_layers(spec)[-1]
    assert not isinstance(last, Residual)
    gains[last.name] = _AUDIO_OUT_GAIN
    return gains


def random_mimi(spec: MimiSpec, seed: int = 0) -> dict[str, Array]:
    """A whole random checkpoint in Kyutai's names, float32: `mimi_shapes(spec)` and the `_initialized` flags.

    The same spec and seed give the same weights.
    """
    draw = _Draw(seed)
    shapes = mimi_shapes(spec)
    gains = _conv_gains(spec)
    tensors: dict[str, Array] = {}
    for name, shape in shapes.items():
        if "_codebook." in name:
            continue
        if "layer_scale" in name:
            tensors[name] = draw.normal(shape, 0.1, mean=0.3)
        elif ".norm" in name:
            tensors[name] = draw.normal(shape, 0.1, mean=1.0 if name.endswith("weight") else 0.0)
        elif name.endswith(".bias"):
            scale = 0.02 if shape == (1,) else 0.1
            tensors[name] = draw.normal(shape, scale)
        elif name == "upsample.convtr.convtr.convtr.weight":
            tensors[name] = draw.normal(shape, 0.7)
        else:
            # Two taps of a transposed kernel of 2 strides reach one output sample.
            fan_in = 2 * shape[0] if ".convtr." in name else int(np.prod(shape[1:]))
            gain = gains.get(name.removesuffix(".weight"), 1.5 if "in_proj" in name else 1.0)
            tensors[name] = draw.normal(shape, gain / float(np.sqrt(fan_in)))
    for index, codebook in enumerate(codebook_names(spec)):
        usage = draw.usage(spec.cardinality)
        vectors = draw.normal((spec.cardinality, spec.codebook_dim), _CODE_STD * _CODE_DECAY**index)
        tensors[f"{codebook}.embedding_sum"] = vectors * np.maximum(usage, np.float32(1e-5))[:, None]
        tensors[f"{codebook}.cluster_usage"] = usage
        tensors[f"{codebook}._initialized"] = np.ones(1, np.float32)
    return tensors
