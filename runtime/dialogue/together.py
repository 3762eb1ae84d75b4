"""Turns that do not depend on each other, several of them spoken at once. It knows no files and no script formats."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice

from ..audio.samples import Samples, after_pause
from ..options import SpeechOptions
from ..speech import Speech
from ..synthesis.plan import SpeechPlan
from ..tts import MisoTTS
from .conversation import TURN_GAP_MS, Conversation
from .turns import Turn


class Together(Conversation):
    """Speaks turns as many at once as the model has sequences; sound leaves in their order, each turn when it is whole.

    Turns that come are read a few ahead, so that a turn leaves when those are there.
    """

    _spent_s = 0.0

    def sound(self) -> Generator[Samples, None, None]:
        """As of a conversation. Raises as `MisoTTS.generate_each`."""
        begin, waited_s = time.perf_counter(), 0.0
        with closing(self._tts.generate_each(self._plans())) as speeches:
            for speech in speeches:
                self._add(speech)
                self._spent_s = time.perf_counter() - begin - waited_s
                if speech.parts:
                    samples = speech.samples
                    speech.parts.clear()
                    left = time.perf_counter()
                    yield after_pause(samples, TURN_GAP_MS) if self._is_begun else samples
                    self._is_begun = True
                    waited_s += time.perf_counter() - left

    def _plans(self) -> Iterator[SpeechPlan]:
        for turn in self._turns:
            yield self._tts.plan(turn.text, voice=turn.voice, speaker=turn.speaker, options=self._options)

    @property
    def record(self) -> Speech:
        """As of a conversation; its time is the whole one, in which the turns had theirs side by side."""
        whole = super().record
        whole.timing.wall_s = self._spent_s
        return whole


def conversation_of(
    tts: MisoTTS, turns: Iterable[Turn], options: SpeechOptions, *, live: bool, is_independent: bool
) -> Conversation:
    """The one that speaks `turns`: several at once if they are independent and there are sequences for it.

    A text that comes in pieces is one turn: its sentences hear each other, and are spoken as they come.
    """
    if tts.engine.sequences == 1 or not is_independent:
        return Conversation(tts, turns, options, live=live, is_independent=is_independent)
    if not isinstance(turns, Sequence):
        rest = iter(turns)
        begun = list(islice(rest, 1))
        turns = chain(begun, rest)
        if begun and not isinstance(begun[0].text, str):
            return Conversation(tts, turns, options, live=live, is_independent=True)
    return Together(tts, turns, options, live=live, is_independent=True)
