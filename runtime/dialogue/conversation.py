"""Turns spoken one after the other, each on those before it: one piece of sound, one record.

It knows no files and no script formats.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import fields
from typing import Any

from ..audio.samples import Samples, joined_to
from ..options import SpeechOptions
from ..speech import Segment, Speech, Timing
from ..tts import MisoTTS
from .turns import Turn

TURN_GAP_MS = 200.0
"""Silence between turns, beside what the model leaves itself."""


class Conversation:
    """Speaks turns: iterate over `sound`; `record` says how it went.

    Args:
        live: Sound leaves as it is made; otherwise what went wrong with it can still be taken back.
    """

    def __init__(self, tts: MisoTTS, turns: Sequence[Turn], options: SpeechOptions, *, live: bool) -> None:
        self._tts, self._turns, self._options, self._live = tts, turns, options, live
        self._speeches: list[Speech] = []
        self._waits_s: list[float] = []
        """Of each turn's wall time, what was spent outside: a player takes sound no faster than it plays."""

    def sound(self) -> Generator[Samples, None, None]:
        """Float32 `[n]` at 24 kHz, in pieces. Close it when it is not read to its end. Raises as `MisoTTS.stream`."""
        history: list[Segment] = []
        last: float | None = None
        for turn in self._turns:
            waited_s = 0.0
            with closing(self._turn(turn, history)) as pieces:
                for number, samples in enumerate(pieces):
                    self._waits_s[-1] = waited_s
                    piece = samples if number or last is None else joined_to(last, samples, TURN_GAP_MS)
                    last = float(samples[-1])
                    begin = time.perf_counter()
                    yield piece
                    waited_s += time.perf_counter() - begin
            history = self._recent(history + self._speeches[-1].segments)

    def _turn(self, turn: Turn, history: Sequence[Segment]) -> Generator[Samples, None, None]:
        text, voice, speaker, options = turn.text, turn.voice, turn.speaker, self._options
        if options.loudness_lufs is not None:
            speech = self._tts.generate(text, voice=voice, context=history, speaker=speaker, options=options)
            self._add(speech)
            if speech.parts:
                yield speech.samples
            return
        with self._tts.stream(
            text, voice=voice, context=history, speaker=speaker, options=options, live=self._live
        ) as stream:
            self._add(stream.speech)
            for chunk in stream:
                yield chunk.samples
                stream.speech.parts.clear()  # hours of it would fill the memory

    def _add(self, speech: Speech) -> None:
        self._speeches.append(speech)
        self._waits_s.append(0.0)

    def _recent(self, history: list[Segment]) -> list[Segment]:
        """What of the history can have room in a prompt at all."""
        room = self._tts.engine.spec.max_positions
        kept = len(history)
        while kept and (room := room - len(history[kept - 1].codes)) > 0:
            kept -= 1
        return history[kept:]

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
