"""Speaking a text: sentence by sentence, each after the voice and the one before, joined without clicks.

It decides what is said on what prompt, and what is done when a sentence goes wrong. It knows no files.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from .audio import FADE_MS, SAMPLE_RATE_HZ, Samples, faded, joined_to, peak_dbfs
from .codec import Codec
from .engine import Engine
from .frame_loop import Utterance
from .options import SpeechOptions
from .prompt import Block, Segment, fit
from .sentences import speech_cap_frames
from .speech import Chunk, Speech, SpokenSentence
from .take import Take

log = logging.getLogger(__name__)

PAUSE_MS = 100.0
"""Silence between sentences, beside what the model leaves itself."""
_AUDIBLE_DBFS = -50.0
_RETRY_STREAM = 1 << 32
"""Noise of a second try: far from the streams of other sentences."""


@dataclass(frozen=True)
class Script:
    """What is to be said, checked and cut into sentences."""

    sentences: Sequence[str]
    speaker: int
    voice: Segment | None
    context: Sequence[Segment]
    options: SpeechOptions


class SpeechStream:
    """Sound as it is made: iterate for chunks; `speech` is the record of it. `close` stops early, as dropping it does.

    Args:
        live: Chunks leave at once, so nothing that was heard can be taken back; otherwise a sentence leaves when it is
            whole, without what the watch found wrong with it.
    """

    def __init__(self, engine: Engine, codec: Codec, script: Script, *, live: bool) -> None:
        speaker = _Speaker(engine, codec, script, live=live)
        self.speech = speaker.speech
        # The generator must not know this object: in a circle, neither would go before the garbage collector comes by.
        self._chunks = speaker.speak()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> "SpeechStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and free what the stream holds. Idempotent."""
        self._chunks.close()


class _Speaker:
    """One text being spoken."""

    def __init__(self, engine: Engine, codec: Codec, script: Script, *, live: bool) -> None:
        self._engine, self._codec, self._script, self._live = engine, codec, script, live
        self._voice = None if script.voice is None else engine.prompts.segment(script.voice)
        self._context = [engine.prompts.segment(segment) for segment in script.context]
        self.speech = Speech(script.speaker)
        self._begin = time.perf_counter()

    def speak(self) -> Generator[Chunk, None, None]:
        script = self._script
        anchor, previous = self._voice, None
        last: float | None = None
        for index, text in enumerate(script.sentences):
            context = [*self._context, *([previous] if previous is not None else [])]
            for number, samples in enumerate(self._sentence(index, text, anchor, context)):
                piece = samples if number or last is None else joined_to(last, samples, PAUSE_MS)
                yield self._chunk(piece, index)
                last = float(samples[-1])
            codes = self.speech.sentences[-1].codes
            if len(codes):
                previous = self._engine.prompts.segment(Segment(text, codes, script.speaker))
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
        options = self._script.options
        cap = min(options.max_frames, speech_cap_frames(text))
        said = self._engine.prompts.text(text, self._script.speaker)
        voice = [] if anchor is None else [anchor]
        blocks, dropped = fit(voice, context, said, self._engine.spec.max_positions - cap)
        if dropped:
            log.info("%d context segments have no room beside %r and are left out", dropped, _short(text))
        tries = 2 if options.retry and options.temperature > 0 else 1
        for number in range(tries):
            take = self._take(index + number * _RETRY_STREAM, blocks, cap)
            audible = False
            kept: list[Samples] = []
            for samples in take:
                if self._live:
                    audible = audible or peak_dbfs(samples) > _AUDIBLE_DBFS
                    yield samples
                else:
                    kept.append(samples)
            failed = take.ended in {"loop", "silence", "empty"} and not (take.ended == "silence" and take.good_frames)
            again = failed and number + 1 < tries and not audible
            if take.ended != "eos":
                consequence = "spoken again with another seed" if again else "kept up to there"
                asked_for = take.ended == "cap" and cap == options.max_frames
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
        rows = sum(map(len, blocks))
        self.speech.sentences.append(SpokenSentence(text, codes, take.ended, number + 1, rows, dropped))
        if kept and good:
            sound = np.concatenate(kept)[: good * self._codec.frame_samples]
            yield sound if good == len(take.codes) else faded(sound, end_ms=FADE_MS)

    def _take(self, stream: int, blocks: Sequence[Block], cap: int) -> Take:
        options = self._script.options
        utterance = Utterance(blocks, cap, options.seed, stream, options.temperature, options.top_k)
        return Take(self._engine, self._codec, utterance, self.speech.timing, options.chunk_frames)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
