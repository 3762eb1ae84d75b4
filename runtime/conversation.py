"""Turns spoken one after the other, each on those before it: one piece of sound, one record.

It knows no files and no script formats.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import fields
from typing import Any

import numpy as np

from .audio import SAMPLE_RATE_HZ, Samples, faded, silence
from .options import SpeechOptions
from .prompt import Segment
from .speech import Speech, Timing
from .tts import MisoTTS
from .turns import Turn

PAUSE_MS = 200.0
"""Silence between turns, beside what the model leaves itself."""
_FADE_MS = 5.0
_RAMP_SAMPLES = round(_FADE_MS * SAMPLE_RATE_HZ / 1e3)


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
                    piece = samples if number or last is None else _joint(last, samples)
                    last = float(samples[-1])
                    begin = time.perf_counter()
                    yield piece
                    waited_s += time.perf_counter() - begin
            history = self._recent(history + self._speeches[-1].segments)

    def _turn(self, turn: Turn, history: Sequence[Segment]) -> Generator[Samples, None, None]:
        if self._live:
            with self._tts.stream(
                turn.text, voice=turn.voice, context=history, speaker=turn.speaker, options=self._options
            ) as stream:
                self._add(stream.speech)
                for chunk in stream:
                    yield chunk.samples
        else:
            speech = self._tts.generate(
                turn.text, voice=turn.voice, context=history, speaker=turn.speaker, options=self._options
            )
            self._add(speech)
            if speech.parts:
                yield speech.samples

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


def _joint(last: float, samples: Samples) -> Samples:
    """What goes between two turns, and the second one's begin: down from the last sample, a pause, up again."""
    ramp = faded(np.full(_RAMP_SAMPLES, last, np.float32), end_ms=_FADE_MS)
    return np.concatenate([ramp, silence(PAUSE_MS), faded(samples, start_ms=_FADE_MS)])
