"""One short prompt through stock llama.cpp and through the PyTorch reference: do the bundle's files mean the same?

Hidden states and logits of the backbone, and teacher-forced logits of the depth decoder, one level at a time.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader

from ..models.manifest import LevelFiles
from ..native.ggml import F32Array, dequantize, row_bytes
from ..native.llama import LlamaModel
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

_TEXT_ROWS, _AUDIO_ROWS = 6, 2

MAX_RELATIVE_ERROR = {"f32": 1e-4, "fp16": 0.01, "q8_0": 0.08, "q4_k_m": 0.6, "q4_0": 0.8}
"""RMS error of logits over their RMS, by level. Files that were mixed up give about 1.4. Random weights, the worst case
there is (no layer repairs another's error), stay below half of these: see docs/bundle.md."""


def compare_logits(
    directory: Path, level: str, files: LevelFiles, checkpoint: Checkpoint, threads: int
) -> tuple[str, bool]:
    """(what was measured, whether it is within the level's allowance). Needs torch."""
    tables = _Tables(directory / files.embeddings)
    spec = checkpoint.spec
    generator = np.random.default_rng(0)
    text = generator.integers(0, spec.text_vocab, _TEXT_ROWS)
    codes = generator.integers(0, spec.audio_vocab, (_AUDIO_ROWS, spec.codebooks))
    offsets = np.arange(spec.codebooks) * spec.audio_vocab
    prompt = np.concatenate(
        [tables.rows("text_embd.weight", text)]
        + [tables.rows("audio_embd.weight", frame + offsets).sum(0, keepdims=True) for frame in codes]
    )
    expected_logits, expected_depth, hidden = _reference(checkpoint, text, codes)
    with LlamaModel(directory / files.backbone, context=len(prompt), threads=threads, exact=True) as backbone:
        logits = backbone.forward(prompt)[1]
    with LlamaModel(directory / files.decoder, context=spec.codebooks, threads=threads, exact=True) as decoder:
        start = hidden[-1:] @ tables.whole("projection.weight").T
        embeddings = _Tables(directory / files.decoder).rows("token_embd.weight", (codes[-1] + offsets)[:-1])
        flat = decoder.forward(np.concatenate([start, embeddings]))[1]
    depth = np.stack([flat[i, i * spec.audio_vocab : (i + 1) * spec.audio_vocab] for i in range(1, spec.codebooks)])
    backbone_error, depth_error = _relative(logits, expected_logits), _relative(depth, expected_depth)
    allowed = max(MAX_RELATIVE_ERROR[key] for key in level.split("+"))
    measured = (
        f"relative RMS error: backbone {backbone_error:.2g}, depth decoder {depth_error:.2g}; allowed {allowed:g}"
    )
    return measured, max(backbone_error, depth_error) <= allowed


def _reference(
    checkpoint: Checkpoint, text: npt.NDArray[np.int64], codes: npt.NDArray[np.int64]
) -> tuple[F32Array, F32Array, F32Array]:
    """Backbone logits [T, vocab], depth logits [codebooks - 1, vocab] of the last frame, hidden states [T, D]."""
    import torch  # noqa: PLC0415

    from ..models.reference import Reference, audio_rows, text_rows  # noqa: PLC0415

    def weights(name: str) -> "torch.Tensor":
        return torch.from_numpy(checkpoint.read(name, 0, checkpoint.shapes[name][0]))

    reference = Reference(checkpoint.spec, weights)
    rows = text_rows(checkpoint.spec, text.tolist()), audio_rows(checkpoint.spec, torch.from_numpy(codes))
    embedded = [reference.embed(part.tokens, part.mask) for part in rows]
    hidden = reference.backbone(torch.cat(embedded))
    depth = reference.depth_logits(hidden[-1], torch.from_numpy(codes[-1, :-1]))
    return reference.codebook0_logits(hidden).numpy(), depth.numpy(), hidden.numpy()


class _Tables:
    """The tensors of one GGUF file, a few rows at a time."""

    def __init__(self, path: Path) -> None:
        self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    def rows(self, name: str, ids: npt.NDArray[np.int64]) -> F32Array:
        tensor = self._tensors[name]
        columns = int(tensor.shape[0])
        data = tensor.data.reshape(-1).view(np.uint8).reshape(-1, row_bytes(tensor.tensor_type, columns))
        return dequantize(tensor.tensor_type, data[ids], columns)

    def whole(self, name: str) -> F32Array:
        return self.rows(name, np.arange(int(self._tensors[name].shape[1])))


def _relative(found: F32Array, expected: F32Array) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))
