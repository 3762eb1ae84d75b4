"""Models that keep the time of a GPU and compute nothing, under a real batcher, with a real tokenizer and codec.

A frame takes as long for one utterance as for all of them together, and a chunk of a prompt a time of its own; the GIL
is free meanwhile. What is said is a function of the prompt and the noise, that is of the seed, and so is its length:
of every request it is known beforehand, whatever is spoken beside it.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from miso_gguf.core.arrays import F32Array, I64Array
from miso_gguf.models.spec import ModelSpec
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.codec.codec import Codec
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.protocol import Result
from miso_gguf.runtime.options import EngineOptions
from miso_gguf.runtime.tts import MisoTTS

CHUNK, FRAME = "chunk", "frame"
_SLACK = 1 / 8
"""Of a frame, between two calls of a batcher that has work. Within it the time of the next call counts from the end of
the one before, so that what a sleep takes too long does not add up; after it the batcher had nothing to do."""
_PROMPT_ROWS = 128
"""Of a chunk. Source: the backbone's default on a GPU."""
_LEAST_FRAMES = 2


@dataclass(frozen=True)
class Pacing:
    """How long the calls take, and how long what is said."""

    frame_s: float = 0.04
    """A step of the backbone and a frame of the depth decoder, for any batch."""
    chunk_s: float = 0.01
    """A chunk of a prompt. Source: 9.3 ms of 128 rows on an H200, where a frame of eight took 33 (results/gpu.json)."""
    frames_a_row: float = 2.0
    """Of speech for each row of a text's prompt, up to a quarter more or less."""

    def frames(self, blocks: Sequence[Block]) -> int:
        """What a prompt comes to."""
        swing = 0.75 + prompt_number(blocks) % 1024 / 2048
        return max(_LEAST_FRAMES, round(self.frames_a_row * len(blocks[-1]) * swing))


class PacedCall(NamedTuple):
    """A call that was made: when it began and ended (`time.perf_counter`), and for a chunk, of which prompt."""

    kind: str
    begin: float
    end: float
    prompt: int = 0
    """See `prompt_number`."""


@dataclass
class _Said:
    """What a sequence holds."""

    blocks: Sequence[Block] = ()
    frames: int = 0
    """Made so far."""
    prompt: int = 0


class PacedModels:
    """The models of a batcher; see `protocol.py`. `note` is told of every call before it is waited for."""

    draws_ahead = True

    def __init__(
        self,
        spec: ModelSpec,
        pacing: Pacing,
        *,
        sequences: int,
        cardinality: int,
        note: Callable[[PacedCall], None] | None = None,
    ) -> None:
        """`cardinality` is the codec's."""
        self.spec, self.sequences = spec, sequences
        self._pacing, self._cardinality, self._note = pacing, cardinality, note
        self._said = [_Said() for _ in range(sequences)]
        self._until = 0.0

    def shared(self, sequence: int, blocks: Sequence[Block]) -> int:
        """How many of `blocks` the sequence holds already, the last one left out."""
        count = 0
        for held, block in zip(self._said[sequence].blocks, blocks[:-1], strict=False):
            if held.key != block.key:
                break
            count += 1
        return count

    def prefill_chunks(self, sequence: int, blocks: Sequence[Block]) -> Iterator[Result | None]:
        """The time of each chunk; the last one gives the result."""
        left = sum(-(-len(block) // _PROMPT_ROWS) for block in blocks[self.shared(sequence, blocks) :])
        self._said[sequence] = _Said(blocks, prompt=prompt_number(blocks))
        while left:
            self._pass(CHUNK, self._pacing.chunk_s, self._said[sequence].prompt)
            left -= 1
            yield None if left else self._result([sequence])

    def step(self, sequences: Sequence[int], codes: Sequence[I64Array]) -> Result:
        """Its time is part of the frame's."""
        return self._result(sequences)

    def sample(self, hidden: F32Array, logits: F32Array, noise: F32Array, top_k: Sequence[int]) -> I64Array:
        """The time of a frame, and its codes: zeros where the utterance has its length."""
        codes = np.zeros((len(hidden), self.spec.codebooks), np.int64)
        for row, sequence in enumerate(hidden[:, 0].astype(int)):
            said = self._said[sequence]
            if said.frames < self._pacing.frames(said.blocks):
                # All of the frame's noise would do; of so much of it no two seeds have the same.
                drawn = zlib.crc32(noise[row, :, 0].tobytes(), said.prompt + said.frames)
                codes[row] = np.random.default_rng(drawn).integers(1, self._cardinality, self.spec.codebooks)
            said.frames += 1
        self._pass(FRAME, self._pacing.frame_s)
        return codes

    def _result(self, sequences: Sequence[int]) -> Result:
        """The hidden state says which sequence it is of."""
        hidden = np.zeros((len(sequences), self.spec.backbone.embed_dim), np.float32)
        hidden[:, 0] = sequences
        return hidden, np.zeros((len(sequences), self.spec.audio_vocab), np.float32)

    def _pass(self, kind: str, seconds: float, prompt: int = 0) -> None:
        now = time.perf_counter()
        begin = self._until if now - self._until < _SLACK * self._pacing.frame_s else now
        self._until = begin + seconds
        if self._note is not None:
            self._note(PacedCall(kind, begin, self._until, prompt))
        while (left := self._until - time.perf_counter()) > 0:
            time.sleep(left)


def paced_tts(
    bundle: Path,
    quant: str,
    pacing: Pacing,
    *,
    sequences: int = 8,
    waiting: int = EngineOptions.waiting,
    codec_threads: int = 1,
    note: Callable[[PacedCall], None] | None = None,
) -> MisoTTS:
    """A model whose batcher has paced models; all else is the bundle's own."""
    level = open_level(bundle, quant)
    with ExitStack() as stack:
        options = EngineOptions(threads=1, gpu_layers=0, sequences=sequences, waiting=waiting)
        engine = stack.enter_context(Engine(level, options))
        codec = stack.enter_context(Codec(level.codec_decoder, level.codec_encoder, threads=codec_threads))
        models = PacedModels(engine.spec, pacing, sequences=sequences, cardinality=codec.cardinality, note=note)
        engine.batcher = Batcher(models, waiting=waiting)
        stack.pop_all()
    return MisoTTS(level, engine, codec)


def prompt_number(blocks: Sequence[Block]) -> int:
    """Tells prompts apart."""
    number = 0
    for block in blocks:
        number = zlib.crc32(block.key, number)
    return number
