"""What a level takes: file sizes, bits per weight, and the VRAM of a full offload, accounted from the model's spec.

Accounted, not measured: the sum of what llama.cpp and the depth decoder allocate. The GPU driver's own context
(0.6 GB with CUDA on an H200) comes on top.
"""

from dataclasses import asdict, dataclass

from .manifest import Manifest
from .spec import ModelSpec, TransformerSpec
from .tensors import PARTS, gguf_tensors

_F16_BYTES, _F32_BYTES = 2, 4
GPU_PREFILL_ROWS = 128
"""Rows of a prefill that a GPU computes at once: the runtime's choice, not llama.cpp's default of 512.

The compute buffer is proportional to them: 29.5 MiB for the 8B shapes, 118 MiB at 512. In return a prompt of 150 rows
reads the weights twice.
"""


@dataclass(frozen=True)
class LevelMemory:
    """Bytes of one level. The embeddings stay in host memory, memory-mapped."""

    backbone_bytes: int
    decoder_bytes: int
    embeddings_bytes: int
    weights: int
    """Weights of backbone and decoder."""
    kv_cache_bytes: int
    compute_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Over backbone and decoder, their metadata included."""
        return (self.backbone_bytes + self.decoder_bytes) * 8 / self.weights

    @property
    def vram_bytes(self) -> int:
        """Weights, KV cache and compute buffers with every layer on the GPU."""
        return self.backbone_bytes + self.decoder_bytes + self.kv_cache_bytes + self.compute_bytes

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self), "bits_per_weight": round(self.bits_per_weight, 4), "vram_bytes": self.vram_bytes}


def level_memory(manifest: Manifest, key: str) -> LevelMemory:
    """The memory of level `key` at the model's full context, KV cache in F16."""
    spec = manifest.model_spec
    files = manifest.levels[key]
    sizes = {part: manifest.files[getattr(files, part)].size_bytes for part in PARTS}
    return LevelMemory(
        backbone_bytes=sizes["backbone"],
        decoder_bytes=sizes["decoder"],
        embeddings_bytes=sizes["embeddings"],
        weights=sum(tensor.weights for tensor in gguf_tensors(spec) if tensor.part != "embeddings"),
        kv_cache_bytes=kv_bytes(spec.backbone, spec.max_positions) + kv_bytes(spec.decoder, spec.codebooks),
        compute_bytes=_compute_bytes(spec),
    )


def kv_bytes(t: TransformerSpec, positions: int, bits: float = 16) -> int:
    """KV cache of a transformer, at so many bits a value."""
    return int(2 * t.layers * t.kv_dim * positions * bits / 8)


def _compute_bytes(spec: ModelSpec) -> int:
    """llama.cpp's compute buffer for a prefill with flash attention: activations of a layer, and the mask in F16.

    The 7.5 was read off llama.cpp's own allocation for the 8B shapes (29.5 MiB for 128 rows and 118 for 512, both at
    2048 positions); other shapes come out within 5 % with a KV cache in F16. The depth decoder computes one position at
    a time: its few megabytes are left out.
    """
    activations = GPU_PREFILL_ROWS * (2 * spec.backbone.ffn_dim + 7.5 * spec.backbone.embed_dim) * _F32_BYTES
    mask = GPU_PREFILL_ROWS * spec.max_positions * _F16_BYTES
    return int(activations) + mask
