"""What was asked of the models and the codec, call by call, and how long each such call takes with nothing beside it.

A call is known by its shape: rows of a chunk of a prompt, rows of a step of the backbone, rows of a frame of the depth
decoder, streams and frames of the codec.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from miso_gguf.core.arrays import F32Array, I64Array
from miso_gguf.models.spec import ModelSpec
from miso_gguf.runtime.audio.samples import Samples
from miso_gguf.runtime.codec.codec import Codec, CodecStream
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.protocol import Result

CHUNK, STEP, FRAME, CODEC = "chunk", "step", "frame", "codec"
TOP_K = 50
_MOST_TURNS, _ENOUGH_S = 20, 1.0
"""Of the calls alone: one of a full-size model takes seconds, one of the tiny model is measured often."""


class Shape(NamedTuple):
    """What the time of a call depends on."""

    kind: str
    rows: int
    frames: int = 1
    """Of each stream, for the codec."""


class Call(NamedTuple):
    """One that was made, and when."""

    shape: Shape
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass
class Calls:
    """All that were made, in the order in which they ended."""

    made: list[Call] = field(default_factory=list)

    @contextmanager
    def noted(self, shape: Shape) -> Iterator[None]:
        """Around a call."""
        begin = time.perf_counter()
        yield
        self.made.append(Call(shape, begin, time.perf_counter()))

    def of(self, kind: str) -> list[Call]:
        """Those of one kind."""
        return [call for call in self.made if call.shape.kind == kind]


@contextmanager
def noted(engine: Engine, calls: Calls) -> Iterator[None]:
    """Note what the batcher asks of `engine`, whose prompts must begin differently: all their rows are computed."""
    prefill_chunks, step, sample = engine.prefill_chunks, engine.step, engine.sample
    most = engine.backbone.prefill_rows

    def noted_chunks(sequence: int, blocks: Sequence[Block]) -> Iterator[Result | None]:
        chunks = prefill_chunks(sequence, blocks)
        for rows in (min(most, len(block) - begin) for block in blocks for begin in range(0, len(block), most)):
            with calls.noted(Shape(CHUNK, rows)):
                result = next(chunks)
            yield result

    def noted_step(sequences: Sequence[int], codes: Sequence[I64Array]) -> Result:
        with calls.noted(Shape(STEP, len(codes))):
            return step(sequences, codes)

    def noted_sample(hidden: F32Array, logits: F32Array, noise: F32Array, top_k: Sequence[int]) -> I64Array:
        with calls.noted(Shape(FRAME, len(hidden))):
            return without_end(sample(hidden, logits, noise, top_k))

    with (
        mock.patch.object(engine, "prefill_chunks", noted_chunks),
        mock.patch.object(engine, "step", noted_step),
        mock.patch.object(engine, "sample", noted_sample),
    ):
        yield


class NotedCodec:
    """A codec whose calls are noted: `Decoder` of a codec's thread."""

    def __init__(self, codec: Codec, calls: Calls) -> None:
        self._codec, self._calls = codec, calls

    def decode_together(self, streams: Sequence[Any], codes: Sequence[I64Array]) -> list[Samples]:
        """`Codec.decode_together`."""
        with self._calls.noted(Shape(CODEC, len(streams), len(codes[0]))):
            return self._codec.decode_together(streams, codes)


class Alone:
    """Times calls of given shapes, one after another, with nothing beside them."""

    def __init__(self, engine: Engine, codec: Codec) -> None:
        self._engine, self._codec = engine, codec
        self._rng = np.random.default_rng(0)
        self._streams: list[CodecStream] = []
        self._times: dict[Shape, list[float]] = {}

    def measure(self, shapes: Sequence[Shape]) -> None:
        """Time all of `shapes` in turns, until there is enough. The sequences go on from where they are."""
        for shape in shapes:
            if shape not in self._times:
                self._timed(shape)  # it may take a graph of its own
        begin = time.perf_counter()
        for _ in range(_MOST_TURNS):
            for shape in shapes:
                self._times.setdefault(shape, []).append(self._timed(shape))
            if time.perf_counter() - begin > _ENOUGH_S:
                break

    def sum_s(self, calls: Sequence[Call]) -> float:
        """What these calls would have taken: of each the median of its shape."""
        medians = {shape: float(np.median(times)) for shape, times in self._times.items()}
        return sum(medians[call.shape] for call in calls)

    def _timed(self, shape: Shape) -> float:
        prepare = {CHUNK: self._chunk, STEP: self._step, FRAME: self._frame, CODEC: self._decode}[shape.kind]
        call = prepare(shape)
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def _chunk(self, shape: Shape) -> Callable[[], object]:
        chunks = self._engine.prefill_chunks(0, [text_block(self._engine.spec, shape.rows, self._rng)])
        return lambda: next(chunks)

    def _step(self, shape: Shape) -> Callable[[], object]:
        codes = list(self._codes(shape.rows))
        return lambda: self._engine.step(range(shape.rows), codes)

    def _frame(self, shape: Shape) -> Callable[[], object]:
        spec, rng = self._engine.spec, self._rng
        hidden = rng.standard_normal((shape.rows, spec.backbone.embed_dim), np.float32)
        logits = rng.standard_normal((shape.rows, spec.audio_vocab), np.float32)
        noise = rng.standard_normal((shape.rows, spec.codebooks, spec.audio_vocab), np.float32)
        return lambda: self._engine.sample(hidden, logits, noise, [TOP_K] * shape.rows)

    def _decode(self, shape: Shape) -> Callable[[], object]:
        while len(self._streams) < shape.rows:
            self._streams.append(self._codec.stream())
        streams = self._streams[: shape.rows]
        codes = [self._codes(shape.frames) for _ in streams]
        return lambda: self._codec.decode_together(streams, codes)

    def _codes(self, frames: int) -> I64Array:
        return self._rng.integers(1, self._codec.cardinality, (frames, self._engine.spec.codebooks))


def without_end(codes: I64Array) -> I64Array:
    """Frames with a code that is no EOS frame's, so that utterances are as long as they were drawn."""
    codes[:, 0] = np.maximum(codes[:, 0], 1)
    return codes


def text_block(spec: ModelSpec, rows: int, rng: np.random.Generator) -> Block:
    """A block of random text."""
    slots = np.full((rows, spec.codebooks + 1), -1, np.int64)
    slots[:, -1] = rng.integers(0, spec.text_vocab, rows)
    return Block(slots)


@contextmanager
def errors_only() -> Iterator[None]:
    """Without the warnings of sentences that are cut short."""
    logger = logging.getLogger("miso_gguf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
