"""The tiny model that speaks, converted for a benchmark."""

from collections.abc import Sequence
from pathlib import Path

from imatrix_files import paths

from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.checkpoint.sources import TINY_NAME, resolve
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.models.levels import Level
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.tensors import Part


def write_tiny(
    directory: Path,
    levels: Sequence[Level],
    threads: int,
    imatrix: Path | None = None,
    parts: Sequence[Part] = ("backbone", "decoder"),
) -> Manifest:
    """Convert it to `levels`, with the `parts` of an imatrix directory; what is there already stays."""
    files = {part: path for part, path in paths(imatrix).items() if part in parts} if imatrix else {}
    with resolve(TINY_NAME) as sources, open_checkpoint(sources.checkpoint) as checkpoint:
        request = Request(
            levels,
            imatrix_backbone=files.get("backbone"),
            imatrix_decoder=files.get("decoder"),
            threads=threads,
        )
        return convert(plan_conversion(directory, checkpoint, sources.mimi, sources.tokenizer, request))
