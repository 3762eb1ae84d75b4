"""The backbone: prompt rows and frames in, hidden state and codebook-0 logits out, for several sequences at once.

Prompts come as blocks. Each block is computed on its own, in batches of a fixed size, so a block's KV cache is the same
whether it was computed just now or kept from an earlier prompt that began alike: keeping it changes no bit of the
result. What a sequence holds of its last prompt stays until the next one. It knows no sampling and no codec.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...core.closing import Closing
from ...core.errors import BundleError
from ...models.spec import ModelSpec
from ...native.llama import LlamaModel, LlamaOptions
from .embeddings import Embeddings
from .prompt import Block


class Backbone(Closing):
    """An open backbone. A context manager. One thread at a time."""

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        embeddings: Embeddings,
        options: LlamaOptions,
        *,
        batch: int = 512,
    ) -> None:
        """Open the backbone's GGUF `path`.

        Args:
            path: The file.
            spec: What it must be.
            embeddings: Of the same bundle.
            options: Where and how to compute.
            batch: Rows of a prefill computed at once; at least one of each sequence.

        Raises:
            BundleError: If it is another model's, or llama.cpp does not accept it.
            MemoryError: If there is not enough memory for the context.
        """
        self._embeddings = embeddings
        # A step has a row of every sequence.
        batch = max(options.sequences, batch)
        self._model = LlamaModel(path, options, context=spec.max_positions, batch=batch)
        found, expected = (self._model.embed_dim, self._model.vocab), (spec.backbone.embed_dim, spec.audio_vocab)
        if found != expected:
            self._model.close()
            raise BundleError(
                f"{path}: width and vocabulary are {found}, expected {expected}: not {spec.name}'s backbone. "
                "Fetch or convert the bundle again."
            )
        self._held: list[list[bytes]] = [[] for _ in range(options.sequences)]
        self._rows: list[list[int]] = [[] for _ in range(options.sequences)]
        self._next: list[int] = [0] * options.sequences

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._model.close()

    @property
    def sequences(self) -> int:
        """How many utterances can be kept apart."""
        return self._model.sequences

    def shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        """How many of `blocks` the sequence holds already. The last one is always computed: its result is wanted."""
        count = 0
        for held, block in zip(self._held[sequence], blocks[:-1], strict=False):
            if held != block.key:
                break
            count += 1
        return count

    def prefill(self, sequence: int, blocks: Sequence[Block]) -> tuple[F32Array, F32Array, int]:
        """Make `sequence` hold exactly `blocks`.

        Returns:
            Hidden state [1, D] and codebook-0 logits [1, V] of the last row, and how many rows were computed.
        """
        kept = self.shared(sequence, blocks)
        donor = max(range(self.sequences), key=lambda other: (self.shared(other, blocks), other == sequence))
        if self.shared(donor, blocks) > kept:
            # From here on the target's cache is the donor's: so is what is known of it.
            self._held[sequence], self._rows[sequence] = [*self._held[donor]], [*self._rows[donor]]
            self._model.copy(donor, sequence)
            kept = self.shared(sequence, blocks)
        start = sum(self._rows[sequence][:kept])
        del self._held[sequence][kept:], self._rows[sequence][kept:]
        self._model.forget(sequence, start)
        self._next[sequence] = start
        for block in blocks[kept:]:
            hidden, logits = self._compute(sequence, block)
            self._held[sequence].append(block.key)
            self._rows[sequence].append(len(block))
        return hidden, logits, self._next[sequence] - start

    def prefill_chunks(self, sequence, blocks):
        hidden, logits, _ = self.prefill(sequence, blocks)
        yield hidden, logits

    def _compute(self, sequence: int, block: Block) -> tuple[F32Array, F32Array]:
        for begin in range(0, len(block), self._model.batch):
            embedded = self._embeddings.embed(block.rows[begin : begin + self._model.batch])
            count, position = len(embedded), self._next[sequence]
            last = begin + count == len(block)
            wanted = [False] * (count - 1) + [last]
            result = self._model.decode(embedded, [sequence] * count, range(position, position + count), wanted)
            self._next[sequence] += count
        return result

    def step(self, sequences: Sequence[int], embedded: F32Array) -> tuple[F32Array, F32Array]:
        """One more row of each of `sequences`: `embedded` [B, D] -> hidden states [B, D] and logits [B, V]."""
        positions = [self._next[sequence] for sequence in sequences]
        result = self._model.decode(embedded, sequences, positions, [True] * len(sequences))
        for sequence in sequences:
            self._next[sequence] += 1
        return result

    def extend(self, sequence: int, rows: I64Array, *, at_once: int | None = None) -> tuple[F32Array, F32Array]:
        """Let `sequence` read `rows` [T, codebooks + 1] that are known beforehand, T at least 1.

        Args:
            sequence: Which; it must hold a prompt.
            rows: As in `prompt.py`. Like the rows of `step` they are dropped with the next prompt.
            at_once: Rows computed together, at most and by default the batch. 1 gives the bits of `step`.

        Returns:
            Hidden states [T, D] and logits [T, V] of all of them.
        """
        size = min(at_once or self._model.batch, self._model.batch)
        results = []
        for begin in range(0, len(rows), size):
            embedded = self._embeddings.embed(rows[begin : begin + size])
            count, position = len(embedded), self._next[sequence]
            every = range(position, position + count)
            results.append(self._model.decode(embedded, [sequence] * count, every, [True] * count))
            self._next[sequence] += count
        hidden, logits = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
        return hidden, logits
