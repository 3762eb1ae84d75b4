"""What a GPU cannot do with the weights of a level, asked before any of them is loaded.

llama.cpp and ggml's scheduler leave such an operation to the CPU and say nothing. It knows products and lookups of
rows, by the types and shapes in the files' headers; what else a graph may lack shows in its pieces (`Engine.warm_up`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gguf import GGMLQuantizationType

from ...models.memory import GPU_PREFILL_ROWS, level_memory
from ...native.buffer_types import can_look_up, can_multiply, plain_buffer_type
from ...native.device import Device
from ...native.gguf_file import GgufFile, StoredTensor
from ..bundle import OpenLevel

_TABLE, _HEADS, _PROJECTION = "token_embd.weight", "output.weight", "projection.weight"
_INPUTS = (1, GPU_PREFILL_ROWS)
"""Rows multiplied at once, of a frame and of a prompt: devices have kernels for each."""


class Use(NamedTuple):
    """What is done with weights of one type and shape of a file."""

    file: str
    is_table: bool
    """Rows are looked up in it; everything else is multiplied with."""
    qtype: GGMLQuantizationType
    columns: int
    rows: int


def lacking(level: OpenLevel, device: Device) -> list[Use]:
    """The uses of a level's weights that `device` has no operation for. Raises `BundleError` on unreadable files."""
    return [use for use in dict.fromkeys(_uses(level)) if not _is_possible(use, device)]


def remark_on(level: OpenLevel, device: Device) -> str | None:
    """What `device` lacks for a level, and which other of the bundle to take instead, in a line. None: nothing."""
    found = lacking(level, device)
    if not found:
        return None
    named: dict[tuple[str, bool], list[str]] = {}
    for use in found:
        names = named.setdefault((use.file, use.is_table), [])
        if use.qtype.name not in names:
            names.append(use.qtype.name)
    said = (
        f"{'rows of tables' if is_table else 'products'} in {' and '.join(names)} ({file})"
        for (file, is_table), names in named.items()
    )
    instead = _instead(level, device)
    remedy = f"Choose {instead}" if instead else "Convert to a level of other types, or take another device"
    return (
        f"{device.name} lacks what {level.key} needs, {' and '.join(said)}: the CPU does that, and it will be slow. "
        f"{remedy}"
    )


def _instead(level: OpenLevel, device: Device) -> str | None:
    """Of the bundle's other levels that are here and that `device` lacks nothing of, the one of about that size."""
    manifest = level.manifest
    others = [OpenLevel(level.directory, manifest, key) for key in manifest.levels if key != level.key]
    able = [other.key for other in others if other.is_here and not lacking(other, device)]
    size = level_memory(manifest, level.key).vram_bytes
    return min(able, key=lambda key: abs(level_memory(manifest, key).vram_bytes - size), default=None)


def _is_possible(use: Use, device: Device) -> bool:
    weights = (device, plain_buffer_type(device), use.qtype, use.columns, use.rows)
    if use.is_table:
        return can_look_up(*weights)
    return all(can_multiply(*weights, inputs=inputs) for inputs in _INPUTS)


def _uses(level: OpenLevel) -> Iterator[Use]:
    """All that is done with weights on the GPU: the embeddings' tables are looked up on the host."""
    spec = level.manifest.model_spec
    for path in (level.backbone, level.decoder):
        is_decoder = path == level.decoder
        with GgufFile(path) as file:
            for name, tensor in file.tensors.items():
                is_table = name == _TABLE
                if len(tensor.shape) != 2 or (is_table and not is_decoder):
                    continue  # scales, and a table that llama.cpp insists on and nobody reads
                by_codebook = is_decoder and name in (_TABLE, _HEADS)
                yield _use(path, tensor, is_table=is_table, rows=spec.audio_vocab if by_codebook else tensor.shape[0])
    with GgufFile(level.embeddings) as file:
        projection = file.tensor(_PROJECTION, spec.decoder.embed_dim, spec.backbone.embed_dim)
        yield _use(level.embeddings, projection, is_table=False, rows=projection.shape[0])


def _use(path: Path, tensor: StoredTensor, *, is_table: bool, rows: int) -> Use:
    return Use(path.name, is_table, tensor.qtype, tensor.shape[1], rows)
