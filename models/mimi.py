"""The Mimi codec as data: its dimensions, its layers, and the tensors of Kyutai's checkpoint.

Source: Defossez et al., "Moshi" (arXiv 2410.00037), and the moshi package's Mimi configuration. The dimensions that a
checkpoint shows are read from it; the rest (`heads`, `window`, RoPE period) are constants of the published codec.
This module does not know other naming schemes (`convert/mimi/weights.py`) nor how a layer is computed.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..core.errors import CheckpointError
from .tensors import Shape

MIMI_NAME = "mimi.safetensors"
"""A checkpoint of the codec, where we write one or look for it."""
SAMPLE_RATE_HZ = 24_000
FRAME_RATE_HZ = 12.5
FRAME_SAMPLES = 1920
STEPS_PER_FRAME = 2
"""Transformer steps (25 Hz) in one frame (12.5 Hz): the stride of `downsample` and `upsample`."""


@dataclass(frozen=True)
class MimiSpec:
    """Dimensions of one Mimi codec."""

    codebooks: int = 32
    semantic_codebooks: int = 1
    cardinality: int = 2048
    codebook_dim: int = 256
    latent_dim: int = 512
    filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    """Upsampling factors of the decoder, latent to samples; the encoder's run the other way."""
    kernel: int = 7
    residual_kernel: int = 3
    last_kernel: int = 3
    layers: int = 8
    heads: int = 8
    ffn_dim: int = 2048
    window: int = 250
    """Attention window in 25 Hz steps, the current one included."""
    rope_period: float = 10_000.0

    def __post_init__(self) -> None:
        if not 0 < self.semantic_codebooks < self.codebooks:
            raise ValueError(f"Mimi needs 0 < semantic codebooks ({self.semantic_codebooks}) < all ({self.codebooks})")
        if self.latent_dim % (2 * self.heads):
            raise ValueError(f"latent_dim ({self.latent_dim}) must be a multiple of 2 * heads ({self.heads}): RoPE")
        if self.window < 2:
            raise ValueError(f"the attention window must be at least 2 steps, not {self.window}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.latent_dim // self.heads

    @property
    def frame_samples(self) -> int:
        """Audio samples of one frame."""
        return math.prod(self.ratios) * STEPS_PER_FRAME


MIMI = MimiSpec()
TINY_MIMI = MimiSpec(
    codebooks=8, cardinality=512, codebook_dim=64, latent_dim=128, filters=8, layers=2, heads=4, ffn_dim=256
)


@dataclass(frozen=True)
class Conv:
    """One causal convolution; `transposed` ones upsample by `stride`. Strided ones have a kernel of 2 strides."""

    name: str
    """Kyutai's name, without `.weight` and `.bias`."""
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    transposed: bool = False

    @property
    def shape(self) -> Shape:
        """Shape of the weight as PyTorch stores it."""
        channels = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return (*channels, self.kernel)


@dataclass(frozen=True)
class Residual:
    """`x + second(elu(first(elu(x))))`: the residual unit of SEANet."""

    first: Conv
    second: Conv


def _residual(module: str, channels: int, kernel: int) -> Residual:
    hidden = channels // 2
    return Residual(
        Conv(f"{module}.block.1.conv.conv", channels, hidden, kernel),
        Conv(f"{module}.block.3.conv.conv", hidden, channels, 1),
    )


def encoder_layers(spec: MimiSpec) -> list[Conv | Residual]:
    """The SEANet encoder, audio to 25 Hz latents; an ELU precedes every convolution but the first.

    Source: moshi `SEANetEncoder`; the gaps in the numbering are the ELUs.
    """
    channels, module = spec.filters, 1
    layers: list[Conv | Residual] = [Conv("encoder.model.0.conv.conv", 1, channels, spec.kernel)]
    for ratio in reversed(spec.ratios):
        layers.append(_residual(f"encoder.model.{module}", channels, spec.residual_kernel))
        down = f"encoder.model.{module + 2}.conv.conv"
        layers.append(Conv(down, channels, 2 * channels, 2 * ratio, stride=ratio))
        channels, module = 2 * channels, module + 3
    layers.append(Conv(f"encoder.model.{module + 1}.conv.conv", channels, spec.latent_dim, spec.last_kernel))
    return layers


def decoder_layers(spec: MimiSpec) -> list[Conv | Residual]:
    """The SEANet decoder, 25 Hz latents to audio; an ELU precedes every convolution but the first.

    Source: moshi `SEANetDecoder`.
    """
    channels, module = spec.filters << len(spec.ratios), 2
    layers: list[Conv | Residual] = [Conv("decoder.model.0.conv.conv", spec.latent_dim, channels, spec.kernel)]
    for ratio in spec.ratios:
        up = f"decoder.model.{module}.convtr.convtr"
        layers.append(Conv(up, channels, channels // 2, 2 * ratio, stride=ratio, transposed=True))
        channels //= 2
        layers.append(_residual(f"decoder.model.{module + 1}", channels, spec.residual_kernel))
        module += 3
    layers.append(Conv(f"decoder.model.{module}.conv.conv", channels, 1, spec.last_kernel))
    return layers


def codebook_names(spec: MimiSpec) -> list[str]:
    """Module name of every codebook, in the order of the rows of a code matrix: the semantic ones come first."""
    acoustic = spec.codebooks - spec.semantic_codebooks
    return [
        *(f"quantizer.rvq_first.vq.layers.{i}._codebook" for i in range(spec.semantic_codebooks)),
        *(f"quantizer.rvq_rest.vq.layers.{i}._codebook" for i in range(acoustic)),
    ]


def _transformer_shapes(prefix: str, spec: MimiSpec) -> dict[str, Shape]:
    dim = spec.latent_dim
    shapes: dict[str, Shape] = {}
    for layer in range(spec.layers):
        name = f"{prefix}.transformer.layers.{layer}"
        shapes[f"{name}.self_attn.in_proj_weight"] = (3 * dim, dim)
        shapes[f"{name}.self_attn.out_proj.weight"] = (dim, dim)
        shapes[f"{name}.linear1.weight"] = (spec.ffn_dim, dim)
        shapes[f"{name}.linear2.weight"] = (dim, spec.ffn_dim)
        for vector in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{name}.{vector}"] = (dim,)
        for scale in ("layer_scale_1.scale", "layer_scale_2.scale"):
            shapes[f"{name}.{scale}"] = (dim,)
    return shapes


def mimi_shapes(spec: MimiSpec) -> dict[str, Shape]:
    """Every tensor of Kyutai's checkpoint file that a conversion reads, with its shape.

    The codebooks' `_initialized` flags (of training only) are the one thing left out.
    """
    dim = spec.latent_dim
    shapes: dict[str, Shape] = {}
    for layer in [*encoder_layers(spec), *decoder_layers(spec)]:
        for conv in (layer.first, layer.second) if isinstance(layer, Residual) else (layer,):
            shapes[f"{conv.name}.weight"] = conv.shape
            shapes[f"{conv.name}.bias"] = (conv.outputs,)
    shapes |= _transformer_shapes("encoder_transformer", spec) | _transformer_shapes("decoder_transformer", spec)
    shapes["downsample.conv.conv.conv.weight"] = (dim, dim, 2 * STEPS_PER_FRAME)
    shapes["upsample.convtr.convtr.convtr.weight"] = (dim, 1, 2 * STEPS_PER_FRAME)
    for part in ("rvq_first", "rvq_rest"):
        shapes[f"quantizer.{part}.input_proj.weight"] = (spec.codebook_dim, dim, 1)
        shapes[f"quantizer.{part}.output_proj.weight"] = (dim, spec.codebook_dim, 1)
    for codebook in codebook_names(spec):
        shapes[f"{codebook}.embedding_sum"] = (spec.cardinality, spec.codebook_dim)
        shapes[f"{codebook}.cluster_usage"] = (spec.cardinality,)
    return shapes


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that `pattern` captures, so that a hole is found later and named."""
    return max((int(m[1]) + 1 for m in map(re.compile(pattern).match, names) if m), default=0)


def mimi_heads(latent_dim: int) -> int:
    """How many heads a codec of this width is taken to have, since no tensor shows it."""
    return 8 if latent_dim == 512 else max(1, latent_dim // 32)


_RECOGNISED_BY: dict[str, int] = {
    "decoder.model.0.conv.conv.weight": 3,
    "encoder.model.0.conv.conv.weight": 3,
    "decoder_transformer.transformer.layers.0.linear1.weight": 2,
    "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum": 2,
}
"""The tensors whose shapes give the widths, and their ranks."""


def recognise_mimi(shapes: Mapping[str, Shape]) -> MimiSpec:
    """The dimensions of the codec whose tensors (Kyutai's names) have these shapes.

    A file does not show its number of heads: it is 8 for a latent width of 512 (the published codec), otherwise heads
    are taken to be 32 wide. Window and RoPE period are the published ones. All codebooks of the file are counted.
    Raises `CheckpointError` that names every tensor it needed and did not find.
    """
    lacking = [name for name, rank in _RECOGNISED_BY.items() if len(shapes.get(name, ())) != rank]
    up = {
        int(m[1]): shape[2] // 2
        for name, shape in shapes.items()
        if len(shape) == 3 and (m := re.match(r"decoder\.model\.(\d+)\.convtr\.convtr\.weight$", name))
    }
    layers = _count(shapes, r"(?:en|de)coder_transformer\.transformer\.layers\.(\d+)\.")
    semantic = _count(shapes, r"quantizer\.rvq_first\.vq\.layers\.(\d+)\._codebook\.")
    acoustic = _count(shapes, r"quantizer\.rvq_rest\.vq\.layers\.(\d+)\._codebook\.")
    if not up:
        lacking.append("decoder.model.N.convtr.convtr.weight")
    if not acoustic:
        lacking.append("quantizer.rvq_rest.vq.layers.N._codebook.embedding_sum")
    if lacking:
        raise CheckpointError(
            f"not a Mimi codec: {len(shapes)} tensors, but no usable {', '.join(lacking)}. "
            "Pass Kyutai's Mimi file, or a Hugging Face Mimi or CSM checkpoint."
        )
    wide, latent, kernel = shapes["decoder.model.0.conv.conv.weight"]
    last = shapes.get(f"decoder.model.{max(up) + 3}.conv.conv.weight", ())
    residual = shapes.get("decoder.model.3.block.1.conv.conv.weight", ())
    cardinality, codebook_dim = shapes["quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"]
    try:
        return MimiSpec(
            codebooks=semantic + acoustic,
            semantic_codebooks=semantic,
            cardinality=cardinality,
            codebook_dim=codebook_dim,
            latent_dim=latent,
            filters=wide >> len(up),
            ratios=tuple(up[module] for module in sorted(up)),
            kernel=kernel,
            residual_kernel=residual[2] if len(residual) == 3 else MIMI.residual_kernel,
            last_kernel=last[2] if len(last) == 3 else MIMI.last_kernel,
            layers=layers,
            heads=mimi_heads(latent),
            ffn_dim=shapes["decoder_transformer.transformer.layers.0.linear1.weight"][0],
        )
    except ValueError as error:
        raise CheckpointError(f"not a Mimi codec that can be converted: {error}") from error
