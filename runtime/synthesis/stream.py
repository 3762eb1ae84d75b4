"""Speaking a text: sentence by sentence, each after the voice and the one before, joined without clicks.

It decides what is said on what prompt, and what is done when a sentence goes wrong. It knows no files.
"""

import logging
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ...core.closing import Closing
from ...core.process import OwnProcess
from ...models.mimi import SAMPLE_RATE_HZ
from ..audio.samples import FADE_MS, Samples, faded, joined_to, peak_dbfs
from ..codec.codec import Codec
from ..codec.thread import CodecThread
from ..lm.batcher import Queue
from ..lm.engine import Engine
from ..lm.prompt import Block, trimmed
from ..lm.utterance import Utterance
from ..options import SpeechOptions
from ..speech import Chunk, Segment, Speech, SpokenSentence
from .sentences import speech_cap_frames
from .take import Take

log = logging.getLogger(__name__)

SENTENCE_GAP_MS = 100.0
"""Silence between sentences, beside what the model leaves itself."""
_AUDIBLE_DBFS = -50.0
_RETRY_STREAM = 1 << 32
"""Noise of a second try: far from the streams of other sentences."""


@dataclass(frozen=True)
class SpeechPlan:
    """What is to be said, how and by whom: checked, and cut into sentences."""

    sentences: Iterable[str]
    speaker: int
    voice: Block | None
    context: Sequence[Block]
    options: SpeechOptions


def prepare(
    engine: Engine, plan: SpeechPlan, text: str, voice: Block | None, context: Sequence[Block]
) -> tuple[Utterance, int]:
    """One sentence of a plan after `voice` and `context`, and how many context blocks had no room beside it.

    Raises `ValueError` if voice and text alone are too long.
    """
    options = plan.options
    cap = min(options.max_frames, speech_cap_frames(text))
    said = engine.prompts.text(text, plan.speaker)
    blocks, dropped = trimmed([] if voice is None else [voice], context, said, engine.spec.max_positions - cap)
    return Utterance(blocks, cap, options.seed, 0, options.temperature, options.top_k), dropped


class SpeechStream(Closing):
    """Sound as it is made: iterate for chunks; `speech` is the record of it. `close` stops early, as dropping it does.

    Any thread may iterate, one at a time, and any may close: whoever waits for a chunk then gets the end.

    Args:
        live: Chunks leave at once, so nothing that was heard can be taken back; otherwise a sentence leaves when it is
            whole, without what went wrong in it.
    """

    def __init__(
        self, engine: Engine, codec: Codec, codec_thread: CodecThread, plan: SpeechPlan, *, live: bool, queue: Queue = "limited"
    ) -> None:
        self._speaker = _Speaker(engine, codec, codec_thread, plan, live=live, queue=queue)
        self.speech = self._speaker.speech
        # The generator must not know this object: in a circle, neither would go before the garbage collector comes by.
        self._chunks = self._speaker.speak()
        self._turn, self._process = threading.RLock(), OwnProcess()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._process.check()
        with self._turn:
            return next(self._chunks)

    def stop(self) -> None:
        """Let whoever iterates get the end, at the next frame. From any thread; does not wait."""
        if self._process.is_here:
            self._speaker.stop()

    def close(self) -> None:
        """Stop, and free what the stream holds. Idempotent."""
        if not self._process.is_here:
            return
        self._speaker.stop()
        with self._turn, suppress(ValueError):  # a signal's handler may close what its own thread iterates
            self._chunks.close()


class _Speaker:
    """One text being spoken."""

    def __init__(
        self, engine: Engine, codec: Codec, codec_thread: CodecThread, plan: SpeechPlan, *, live: bool, queue: Queue = "limited"
    ) -> None:
        self._engine, self._codec, self._codec_thread = engine, codec, codec_thread
        self._plan, self._live, self._queue = plan, live, queue
        self.speech = Speech(plan.speaker)
        self._begin = time.perf_counter()
        self._current: Take | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let `speak` end. From any thread."""
        self._stopped.set()
        if self._current is not None:
            self._current.stop()

    def speak(self) -> Generator[Chunk, None, None]:
        plan = self._plan
        anchor, previous = plan.voice, None
        last: float | None = None
        for index, text in enumerate(plan.sentences):
            context = [*plan.context, *([previous] if previous is not None else [])]
            for number, samples in enumerate(self._sentence(index, text, anchor, context)):
                if self._stopped.is_set():
                    return
                piece = samples if number or last is None else joined_to(last, samples, SENTENCE_GAP_MS)
                yield self._chunk(piece, index)
                last = float(samples[-1])
            if self._stopped.is_set():
                return
            codes = self.speech.sentences[-1].codes
            if len(codes):
                previous = self._engine.prompts.segment(Segment(text, codes, plan.speaker))
                # Without a voice, the first sentence is the one that the others must sound like.
                if anchor is None:
                    anchor, previous = previous, None

    def _chunk(self, samples: Samples, sentence: int) -> Chunk:
        speech, elapsed = self.speech, time.perf_counter() - self._begin
        if not speech.audio_s:
            speech.timing.first_audio_s = elapsed
        speech.timing.wall_s = elapsed
        chunk = Chunk(samples, speech.audio_s, sentence, elapsed)
        speech.audio_s += len(samples) / SAMPLE_RATE_HZ
        if not self._live:
            speech.parts.append(samples)
        return chunk

    def _sentence(self, index: int, text: str, anchor: Block | None, context: Sequence[Block]) -> Iterator[Samples]:
        """The sound of one sentence; its record is appended to `speech`."""
        options = self._plan.options
        utterance, dropped = prepare(self._engine, self._plan, text, anchor, context)
        if dropped:
            log.info("%d context segments have no room beside %r and are left out", dropped, _short(text))
        tries = 2 if options.retry and options.temperature > 0 else 1
        for number in range(tries):
            queue = "first" if index + number else self._queue
            self._current = take = self._take(replace(utterance, stream=index + number * _RETRY_STREAM), queue)
            if self._stopped.is_set():
                return
            audible = False
            kept: list[Samples] = []
            for samples in take:
                if self._live:
                    audible = audible or peak_dbfs(samples) > _AUDIBLE_DBFS
                    yield samples
                else:
                    kept.append(samples)
            if self._stopped.is_set():
                return
            failed = take.ended in {"loop", "silence", "empty"} and not (take.ended == "silence" and take.good_frames)
            again = failed and number + 1 < tries and not audible
            if take.ended != "eos":
                consequence = "spoken again with another seed" if again else "kept up to there"
                asked_for = take.ended == "cap" and utterance.max_frames == options.max_frames
                log.log(
                    logging.INFO if asked_for else logging.WARNING,
                    "%r ended by %s after %d frames: %s",
                    _short(text),
                    take.ended,
                    len(take.codes),
                    consequence,
                )
            if not again:
                break
        good = len(take.codes) if self._live else take.good_frames
        codes = take.codes[:good]
        said = SpokenSentence(text, codes, take.ended, number + 1, utterance.rows, dropped)
        self.speech.sentences.append(said)
        if kept and good:
            sound = np.concatenate(kept)[: good * self._codec.frame_samples]
            yield sound if good == len(take.codes) else faded(sound, end_ms=FADE_MS)

    def _take(self, utterance: Utterance, queue: Queue) -> Take:
        chunk_frames = self._plan.options.chunk_frames
        return Take(
            self._engine, self._codec, self._codec_thread, utterance, self.speech.timing, chunk_frames, queue=queue
        )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
