"""Prompts: what the backbone reads before it speaks, as rows of slots.

A row is one position: int64 [codebooks + 1], the codes of a frame and a text token. A row has either all its codes or
its text token; what is not in use is -1. A prompt is a list of blocks, each of which is computed on its own, so that
the KV cache of a block that comes again can be kept: see `backbone.py`.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...core.arrays import I64Array
from ...models.spec import ModelSpec
from ..speech import Segment
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Block:
    """Rows of the prompt that belong together."""

    rows: I64Array
    is_voice: bool = field(default=False, compare=False)
    """Worth keeping beyond its sequence, because many prompts begin with it."""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def key(self) -> bytes:
        """Equal keys, equal rows."""
        return self.rows.tobytes()


class PromptBuilder:
    """Writes the blocks of prompts for one model."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer) -> None:
        self._spec, self._tokenizer = spec, tokenizer
        self.added_tokens = tokenizer.added
        """See `Tokenizer.added`."""

    def text(self, text: str, speaker: int) -> Block:
        """The text that is to be said, or was: a row for each token. Leading space goes, as upstream does it."""
        prompt = self._spec.prompt.format(speaker=speaker, text=text.lstrip())
        ids = np.array(self._tokenizer.encode(prompt), np.int64)
        rows = np.full((len(ids), self._spec.codebooks + 1), -1, np.int64)
        rows[:, -1] = ids
        return Block(rows)

    def segment(self, segment: Segment, *, is_voice: bool = False) -> Block:
        """A segment's text, its frames, and the EOS frame (all codes 0).

        Raises `ValueError` if its codes are not of this model's codebooks.
        """
        spec, codes = self._spec, segment.codes
        if codes.shape[1] != spec.codebooks or codes.min() < 0 or codes.max() >= spec.audio_vocab:
            raise ValueError(
                f"a segment's codes must be [frames, {spec.codebooks}] of 0 to {spec.audio_vocab - 1}, not "
                f"{list(codes.shape)} of {codes.min()} to {codes.max()}: it was made with another model"
            )
        text = self.text(segment.text, segment.speaker)
        return Block(np.concatenate([text.rows, audio_rows(codes, end=True)]), is_voice)


def audio_rows(codes: I64Array, *, end: bool = False) -> I64Array:
    """Rows of frames `codes` [frames, codebooks]; `end` adds the EOS frame."""
    rows = np.full((len(codes) + end, codes.shape[1] + 1), -1, np.int64)
    rows[: len(codes), :-1] = codes
    if end:
        rows[-1, :-1] = 0
    return rows
