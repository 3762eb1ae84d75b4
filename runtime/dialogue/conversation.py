"""Turns spoken one after the other, each on those before it: one piece of sound, one record.

It knows no files and no script formats.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from typing import Any

from ..audio.loudness import normalise
from ..audio.samples import Samples, after_pause, ramp_down
from ..options import SpeechOptions
from ..speech import Segment, Speech, Timing
from ..synthesis.stream import SpeechStream
from ..tts import MisoTTS
from ..voice import Voice
from .turns import Turn

TURN_GAP_MS = 200.0
"""Silence between turns, beside what the model leaves itself."""


class Conversation:
    """Speaks turns: iterate over `sound`; `record` says how it went.

    Args:
        turns: A sequence is known from the beginning, with all its voices; anything else is read as it is spoken.
        live: Sound leaves as it is made; otherwise what went wrong with it can still be taken back.
        is_independent: Each turn is spoken on its voice alone, not on those before it.
    """

    def __init__(
        self,
        tts: MisoTTS,
        turns: Iterable[Turn],
        options: SpeechOptions,
        *,
        live: bool,
        is_independent: bool = False,
    ) -> None:
        self._tts, self._turns, self._options = tts, turns, options
        self._live, self._is_independent = live, is_independent
        # All voices, in the order in which they appear, begin every prompt: what is the same is computed once.
        self._voices: dict[str, Voice] = {}
        self._history: list[Segment] = []
        self._is_begun = False
        self._speeches: list[Speech] = []
        self._waits_s: list[float] = []
        """Of each turn's wall time, what was spent outside: a player takes sound no faster than it plays."""

    def sound(self) -> Generator[Samples, None, None]:
        """Float32 `[n]` at 24 kHz, in pieces. Close it when it is not read to its end. Raises as `MisoTTS.stream`.

        Whatever it raises, what was spoken until then comes before.
        """
        for turn in self._in_their_order():
            waited_s = 0.0
            with closing(_ending_softly(self._turn(turn))) as pieces:
                for number, samples in enumerate(pieces):
                    self._waits_s[-1] = waited_s
                    piece = after_pause(samples, TURN_GAP_MS) if self._is_begun and number == 0 else samples
                    self._is_begun = True
                    begin = time.perf_counter()
                    yield piece
                    waited_s += time.perf_counter() - begin
            self._remember(self._speeches[-1])

    def _in_their_order(self) -> Iterator[Turn]:
        if isinstance(self._turns, Sequence):
            for turn in self._turns:
                self._meet(turn.voice)
        for turn in self._turns:
            self._meet(turn.voice)
            yield turn

    def _meet(self, voice: Voice | None) -> None:
        if voice is not None:
            self._voices.setdefault(voice.digest, voice)

    def _remember(self, speech: Speech) -> None:
        if speech.sentences and not self._is_independent:
            dropped = speech.sentences[-1].dropped_segments
            self._history = self._history[dropped:] + speech.segments

    def _turn(self, turn: Turn) -> Generator[Samples, None, None]:
        options, loudness_lufs = self._options, self._options.loudness_lufs
        with self._tts.stream(
            turn.text,
            voice=self._voices_of(turn),
            context=self._history,
            speaker=turn.number,
            options=replace(options, loudness_lufs=None),
            live=self._live and loudness_lufs is None,
        ) as stream:
            self._add(stream.speech)
            yield from _as_it_is(stream) if loudness_lufs is None else _brought_to(loudness_lufs, stream)

    def _add(self, speech: Speech) -> None:
        self._speeches.append(speech)
        self._waits_s.append(0.0)

    def _voices_of(self, turn: Turn) -> list[Voice]:
        """All, but no other of the same number: the speaker would have both."""
        own = [] if turn.voice is None else [turn.voice]
        if self._is_independent:
            return own
        digests = {voice.digest for voice in own}
        return [voice for voice in self._voices.values() if voice.speaker != turn.number or voice.digest in digests]

    @property
    def record(self) -> Speech:
        """All turns so far as one, without their sound. Its times are those of speaking alone."""
        whole = Speech(self._speeches[0].speaker if self._speeches else 0)
        for speech, waited_s in zip(self._speeches, self._waits_s, strict=True):
            if not whole.audio_s:
                whole.timing.first_audio_s = whole.timing.wall_s + speech.timing.first_audio_s
            for field in fields(Timing):
                if field.name != "first_audio_s":
                    total = getattr(whole.timing, field.name) + getattr(speech.timing, field.name)
                    setattr(whole.timing, field.name, total)
            whole.timing.wall_s -= waited_s
            whole.sentences += speech.sentences
            whole.audio_s += speech.audio_s
        return whole

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON, with the speaker of every sentence."""
        record = self.record.as_dict()
        speakers = [speech.speaker for speech in self._speeches for _ in speech.sentences]
        for sentence, speaker in zip(record["sentences"], speakers, strict=True):
            sentence["speaker"] = speaker
        return record


def _ending_softly(pieces: Generator[Samples, None, None]) -> Generator[Samples, None, None]:
    """The same, and where an error or an interrupt cuts them no click."""
    last = 0.0
    with closing(pieces):
        try:
            for samples in pieces:
                yield samples
                last = float(samples[-1])
        except (Exception, KeyboardInterrupt):
            if last:
                yield ramp_down(last)
            raise


def _as_it_is(stream: SpeechStream) -> Iterator[Samples]:
    for chunk in stream:
        yield chunk.samples
        stream.speech.parts.clear()  # hours of it would fill the memory


def _brought_to(loudness_lufs: float, stream: SpeechStream) -> Iterator[Samples]:
    """All of it at once; when that fails, what there is of it before the error."""
    failure: BaseException | None = None
    try:
        for _ in stream:
            pass
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    if stream.speech.parts:
        yield normalise(stream.speech.samples, loudness_lufs)
    if failure is not None:
        raise failure
