"""What a batcher needs of the language models: an `Engine` gives it, and tests give their own. It computes nothing."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from ...core.arrays import F32Array, I64Array
from ...models.spec import ModelSpec
from .prompt import Block

Result = tuple[F32Array, F32Array]
"""Of the backbone: hidden states [B, D] and codebook-0 logits [B, V]."""


class Models(Protocol):
    """What the batcher needs of an `Engine`. Called by one thread at a time."""

    spec: ModelSpec

    @property
    def draws_ahead(self) -> bool:
        """Whether the CPU has time for the next frame's noise."""

    @property
    def sequences(self) -> int:
        """How many utterances can be kept apart."""

    def shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        """How many of `blocks` the sequence holds already."""

    def prefill_chunks(self, sequence: int, blocks: Sequence[Block]) -> Iterator[Result | None]:
        """Make `sequence` hold `blocks`, chunk by chunk; the last one gives the result of the last row."""

    def step(self, sequences: Sequence[int], codes: Sequence[I64Array]) -> Result:
        """Feed a frame to each of `sequences`."""

    def sample(self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: Sequence[int]) -> I64Array:
        """The codes [B, codebooks] of one frame of each utterance."""
