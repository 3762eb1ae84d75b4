"""One text being spoken: sentence by sentence, each after what was said before it, joined without clicks.

It decides what is done when a sentence goes wrong. It knows no files and, but for `stop`, no threads.
"""

import logging
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ...core.arrays import I64Array
from ...models.mimi import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from ..audio.samples import Samples, after_pause, cut_off, peak_dbfs, ramp_down
from ..codec.codec import Codec
from ..codec.thread import CodecThread
from ..lm.batcher import Queue
from ..lm.engine import Engine
from ..lm.utterance import Utterance
from ..speech import Chunk, Speech, SpokenSentence
from .plan import SpeechPlan
from .prompting import Prompting
from .reading import said_within
from .take import Take

log = logging.getLogger(__name__)

SENTENCE_GAP_MS = 100.0
"""Silence between sentences, beside what the model leaves itself."""
_AUDIBLE_DBFS = -50.0
_RETRY_STREAM = 1 << 32
"""Noise of a second try: far from the streams of other sentences."""


class Speaker:
    """Speaks one plan; `speech` is the record of it."""

    def __init__(
        self, engine: Engine, codec: Codec, codec_thread: CodecThread, plan: SpeechPlan, *, live: bool, queue: Queue
    ) -> None:
        """`queue`: where the first sentence waits. Those after it go on with what is being heard."""
        self._engine, self._codec, self._codec_thread = engine, codec, codec_thread
        self._plan, self._live, self._queue = plan, live, queue
        self._prompting = Prompting(engine.prompts, engine.spec, plan)
        self.speech = Speech(plan.speaker, codebooks=engine.spec.codebooks)
        self._begin, self._read_s = time.perf_counter(), 0.0
        self._current: Take | None = None
        self._heard_frames, self._is_audible, self._last = 0, False, 0.0
        self._stopped = threading.Event()
        self.awaits_text = False
        """Whether it waits for whoever writes the text, whom nobody here can hurry."""

    def stop(self) -> None:
        """Let `speak` end. From any thread."""
        self._stopped.set()
        if self._current is not None:
            self._current.stop()

    def speak(self) -> Generator[Chunk, None, None]:
        """The sound, chunk by chunk; that of each sentence begins and ends at zero."""
        for text in self._pieces(self._plan.sentences):
            yield from self._sentence(text)
            if self._stopped.is_set():
                return

    def _pieces(self, sentences: Iterable[str]) -> Iterator[str]:
        waiting = iter(sentences)
        while (sentence := self._read(waiting)) is not None:
            yield from self._prompting.pieces(sentence)

    def _read(self, sentences: Iterator[str]) -> str | None:
        begin = time.perf_counter()
        self.awaits_text = True  # before the next line: whoever stops this looks at them in the other order
        try:
            while not self._stopped.is_set():
                sentence = next(sentences, None)
                if sentence != "" and not self._stopped.is_set():
                    return sentence
            return None
        except Exception:
            if not self._stopped.is_set():
                raise
            return None  # of a text that nobody wants any more
        finally:
            self.awaits_text = False
            self._read_s += time.perf_counter() - begin

    def _sentence(self, text: str) -> Generator[Chunk, None, None]:
        """The sound of one sentence; its record is appended to `speech`, also if it is left half-way."""
        utterance = self._prompting.prepare(text)
        if self._prompting.dropped:
            log.info(
                "%d context segments have no room beside %r and are left out", self._prompting.dropped, _short(text)
            )
        index, options = len(self.speech.sentences), self._plan.options
        tries = 2 if options.retry and options.temperature > 0 else 1
        for number in range(1, tries + 1):
            take = self._take(utterance, index, number)
            record = partial(self._record, text, take, number, utterance.rows)
            try:
                kept = yield from self._listen(take, index, goes_on=number > 1)
            except BaseException as error:
                record("error" if isinstance(error, Exception) else "closed")
                raise
            if self._stopped.is_set():
                record("closed")
                return
            if not self._is_spoken_again(text, take, utterance, is_last=number == tries):
                break
        codes = record(take.ended)
        self._prompting.said(text, codes)
        if kept and len(codes):
            sound = np.concatenate(kept)[: len(codes) * self._codec.frame_samples]
            if len(codes) < len(take.codes):
                sound = cut_off(sound)
            yield self._chunk(np.concatenate([sound, ramp_down(sound[-1])]), index)
        elif self._last:
            yield self._chunk(ramp_down(self._last), index, goes_on=True)

    def _take(self, utterance: Utterance, index: int, number: int) -> Take:
        """A try at a sentence."""
        queue: Queue = self._queue if index == 0 and number == 1 else "first"
        stream = index + (number - 1) * _RETRY_STREAM
        self._current = Take(
            self._engine,
            self._codec,
            self._codec_thread,
            replace(utterance, stream=stream),
            self.speech.timing,
            self._plan.options.chunk_frames,
            queue=queue,
        )
        if self._stopped.is_set():  # meanwhile, when there was nothing yet to stop
            self._current.stop()
        return self._current

    def _listen(self, take: Take, index: int, *, goes_on: bool) -> Generator[Chunk, None, list[Samples]]:
        """Let the sound of a take out, if it is live; otherwise it is returned."""
        self._heard_frames, self._is_audible = 0, False
        kept: list[Samples] = []
        for samples in take:
            if self._stopped.is_set():
                break
            if not self._live:
                kept.append(samples)
                continue
            goes_on = goes_on or self._heard_frames > 0
            self._heard_frames += len(samples) // self._codec.frame_samples
            self._is_audible = self._is_audible or peak_dbfs(samples) > _AUDIBLE_DBFS
            yield self._chunk(samples, index, goes_on=goes_on)
        return kept

    def _is_spoken_again(self, text: str, take: Take, utterance: Utterance, *, is_last: bool) -> bool:
        """Whether a take went wrong, and may be taken back."""
        asked_for = take.ended == "cap" and utterance.max_frames == self._plan.options.max_frames
        failed = take.ended != "eos" and not asked_for and not (take.ended == "silence" and take.good_frames)
        again = failed and not is_last and not self._is_audible
        if take.ended != "eos":
            log.log(
                logging.INFO if asked_for else logging.WARNING,
                "%r ended by %s after %d frames: %s",
                _short(text),
                take.ended,
                len(take.codes),
                "spoken again with another seed" if again else "kept up to there",
            )
        return again

    def _record(self, text: str, take: Take, tries: int, rows: int, ended: str) -> I64Array:
        """Note what was said, which is what was good and heard: what a codec that lagged behind let pass is not."""
        is_whole = ended == take.ended
        codes = take.codes[: take.good_frames if is_whole else min(take.good_frames, self._heard_frames)]
        if is_whole or len(codes):
            heard = None if is_whole else said_within(text, len(codes) / FRAME_RATE_HZ)
            said = SpokenSentence(text, codes, ended, tries, rows, self._prompting.dropped, heard)
            self.speech.sentences.append(said)
        return codes

    def _chunk(self, samples: Samples, sentence: int, *, goes_on: bool = False) -> Chunk:
        """`goes_on`: it follows at once on the one before."""
        speech, elapsed = self.speech, time.perf_counter() - self._begin
        if not speech.audio_s:
            speech.timing.first_audio_s = elapsed
        elif not goes_on:
            samples = after_pause(samples, SENTENCE_GAP_MS)
        speech.timing.wall_s = elapsed - self._read_s
        chunk = Chunk(samples, speech.audio_s, sentence, elapsed)
        speech.audio_s += len(samples) / SAMPLE_RATE_HZ
        self._last = float(samples[-1])
        if not self._live:
            speech.parts.append(samples)
        return chunk


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
