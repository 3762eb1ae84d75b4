"""One short prompt through stock llama.cpp and through the PyTorch reference: do the bundle's files mean the same?

Hidden states and logits of the backbone, and teacher-forced logits of the depth decoder, one level at a time.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.arrays import F32Array
from ...models.levels import halves
from ...models.manifest import LevelFiles
from ...native.ggml import dequantize
from ...native.gguf_file import GgufFile
from ...native.llama import LlamaModel, LlamaOptions
from ..checkpoint.open import Checkpoint

if TYPE_CHECKING:
    import torch

_TEXT_ROWS, _AUDIO_ROWS = 6, 2


class Prompt:
    """A prompt of random text and codes, and what the reference makes of it: computed once for all levels.

    Needs torch. `hidden` [T, D], `logits` [T, audio_vocab], and of the last frame `depth` [codebooks - 1, audio_vocab].
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch  # noqa: PLC0415

        from ...models.reference import Reference, audio_rows, text_rows  # noqa: PLC0415

        self.spec = spec = checkpoint.spec
        generator = np.random.default_rng(0)
        self.text = generator.integers(0, spec.text_vocab, _TEXT_ROWS)
        self.codes = generator.integers(0, spec.audio_vocab, (_AUDIO_ROWS, spec.codebooks))
        self.offsets = np.arange(spec.codebooks) * spec.audio_vocab

        @lru_cache(maxsize=2)  # the two tables are asked for again and again, a layer's weights once
        def table(name: str) -> "torch.Tensor":
            return torch.from_numpy(checkpoint.read(name, 0, checkpoint.shapes[name][0]))

        def weights(name: str) -> "torch.Tensor":
            return table(name) if name.endswith("_embeddings.weight") else table.__wrapped__(name)

        reference = Reference(spec, weights)
        rows = text_rows(spec, self.text.tolist()), audio_rows(spec, torch.from_numpy(self.codes))
        hidden = reference.backbone(torch.cat([reference.embed(part.tokens, part.mask) for part in rows]))
        self.hidden: F32Array = hidden.numpy()
        self.logits: F32Array = reference.codebook0_logits(hidden).numpy()
        self.depth: F32Array = reference.depth_logits(hidden[-1], torch.from_numpy(self.codes[-1, :-1])).numpy()

    def compare(self, directory: Path, level: str, files: LevelFiles, threads: int) -> tuple[str, bool]:
        """(what was measured of one level, whether it is within its allowance)."""
        tables = _Tables(directory / files.embeddings)
        rows = [tables.rows("text_embd.weight", self.text)]
        rows += [tables.rows("audio_embd.weight", frame + self.offsets).sum(0, keepdims=True) for frame in self.codes]
        prompt = np.concatenate(rows)
        options = LlamaOptions(threads=threads, exact=True)
        with LlamaModel(directory / files.backbone, options, context=len(prompt)) as backbone:
            logits = backbone.forward(prompt)[1]
        with LlamaModel(directory / files.decoder, options, context=self.spec.codebooks) as decoder:
            start = self.hidden[-1:] @ tables.whole("projection.weight").T
            ids = (self.codes[-1] + self.offsets)[:-1]
            given = _Tables(directory / files.decoder).rows("token_embd.weight", ids)
            flat = decoder.forward(np.concatenate([start, given]))[1]
        vocab = self.spec.audio_vocab
        depth = np.stack([flat[i, i * vocab : (i + 1) * vocab] for i in range(1, self.spec.codebooks)])
        errors = _relative(logits, self.logits), _relative(depth, self.depth)
        allowed = max(half.max_logits_error for half in halves(level))
        measured = f"relative RMS error: backbone {errors[0]:.2g}, depth decoder {errors[1]:.2g}; allowed {allowed:g}"
        return measured, all(error <= allowed for error in errors)


class _Tables:
    """The tensors of one GGUF file, a few rows at a time."""

    def __init__(self, path: Path) -> None:
        with GgufFile(path) as file:
            self._tensors = file.tensors

    def rows(self, name: str, ids: npt.NDArray[np.int64]) -> F32Array:
        tensor = self._tensors[name]
        return dequantize(tensor.qtype, tensor.data[ids], tensor.shape[-1])

    def whole(self, name: str) -> F32Array:
        return self.rows(name, np.arange(self._tensors[name].shape[0]))


def _relative(found: F32Array, expected: F32Array) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))
