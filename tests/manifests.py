"""Manifests of bundles that nobody made, for what is planned by sizes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.tensors import PARTS


def manifest_of_sizes(sizes: Mapping[str, Sequence[int]], codec_bytes: int) -> Manifest:
    """Of the 8B model: by level the bytes of backbone, depth decoder and embeddings."""
    files = {"codec": {"size_bytes": codec_bytes, "sha256": "0" * 64}}
    for level, of_parts in sizes.items():
        for part, size in zip(PARTS, of_parts, strict=True):
            files[f"{level}-{part}"] = {"size_bytes": size, "sha256": "0" * 64}
    entries = {
        "converter": "test",
        "llama_cpp": "0",
        "fingerprint": "0" * 64,
        "sources": [],
        "spec": asdict(MISO_8B),
        "codec": {"decoder": "codec", "encoder": "codec"},
        "levels": {level: {part: f"{level}-{part}" for part in PARTS} for level in sizes},
        "files": files,
    }
    return Manifest.model_validate(entries)
