"""What every level takes at full size, from the plan of a conversion: nothing is quantised or written.

    python benchmarks/gpu/level_sizes.py                as `miso-convert inspect --json` prints it
    python benchmarks/gpu/level_sizes.py --table        as a table for docs

On standard output; `benchmarks/plot_levels.py` draws it.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bundle import repeated_conversion

from miso_gguf.models.flavors import FLAVORS
from miso_gguf.models.levels import F32, LEVELS, Level
from miso_gguf.models.manifest import BundleFile, CodecFiles, Manifest
from miso_gguf.models.memory import LevelMemory, level_memory

FLAVOR = "miso-8b"


def level_sizes(flavor: str = FLAVOR) -> dict[str, LevelMemory]:
    """By level, the finest first, with an importance matrix only where one is needed: it changes some mixtures.

    F32, which is for comparisons, is left out.
    """
    found: dict[str, LevelMemory] = {}
    for is_weighted in (False, True):
        found |= _sizes(flavor, [level for level in LEVELS.values() if level.needs_imatrix == is_weighted])
    return {key: found[key] for key in LEVELS if key != F32.key}


def _sizes(flavor: str, levels: Sequence[Level]) -> dict[str, LevelMemory]:
    with (
        tempfile.TemporaryDirectory() as directory,
        repeated_conversion(Path(directory), flavor, FLAVORS[flavor], levels) as conversion,
    ):
        files = {plan.name: BundleFile(size_bytes=plan.size_bytes, sha256="0" * 64) for plan in conversion.plans}
        codec = next(iter(files))  # any file: no level's memory counts the codec
        manifest = Manifest(
            converter="",
            llama_cpp="",
            fingerprint="0" * 64,
            sources=[],
            spec=conversion.spec.to_dict(),
            codec=CodecFiles(decoder=codec, encoder=codec),
            levels=conversion.levels,
            files=files,
        )
    return {level.key: level_memory(manifest, level.key) for level in levels}


def table(sizes: dict[str, LevelMemory]) -> str:
    """In Markdown."""
    lines = ["| level | bits per weight | backbone | depth decoder | embeddings (host) | VRAM at 2048 positions |"]
    lines.append("|---|---|---|---|---|---|")
    for key, size in sizes.items():
        parts = (size.backbone_bytes, size.decoder_bytes, size.embeddings_bytes, size.vram_bytes)
        cells = " | ".join(f"{part / 1e9:.2f} GB" for part in parts)
        lines.append(f"| `{key}` | {size.bits_per_weight:.2f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = level_sizes()
    print(table(found) if "--table" in sys.argv else json.dumps({k: v.as_dict() for k, v in found.items()}, indent=2))
