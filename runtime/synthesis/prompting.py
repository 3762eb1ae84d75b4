"""What each sentence of a text is spoken on: voices, what was said before, and what is left out where room is short.

Prompt and speech share the model's positions. A prompt is the voices, the context and the text's own sentences so far,
in the order in which they were said, and the sentence: what comes next begins as this did, and only what is new is
computed. This module knows neither sampling nor sound.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ...core.arrays import I64Array
from ...models.mimi import FRAME_RATE_HZ
from ...models.spec import ModelSpec
from ..lm.prompt import Block, PromptBuilder
from ..lm.utterance import Utterance
from ..speech import Segment
from .characters import is_speakable
from .plan import Earlier, SpeechPlan
from .reading import LEAST_FRAMES, reading_s, said_within, speech_cap_frames
from .sentences import in_two

_PIECE_SHARE = 3 / 5
"""Of the positions that voices leave: most for one sentence and what is said of it. Two of the others fill the rest, so
that none of them ever has no room."""
_SEGMENT_SHARE = 1 / 5
_OWN_SHARE = 1 / 5
"""For the text's own sentences. A reply of half a minute stays whole, so that the next turn need not compute it; more
would make each step of a long text slower."""
_ANCHOR_ROWS = 50
"""What tells how a speaker sounds: a "Hello!" alone does not, some three seconds and their words do."""
_KEPT_SHARE = 0.6
"""Of the room for context, when it is full. Every time that its beginning changes all of it is computed again, so that
must be seldom."""
_ROOM_STEPS = 4
"""Steps in which the room for context is counted: it differs with each sentence, but what is left out shall not."""


class Prompting:
    """The prompts of one text, sentence after sentence. What had no room once is left out from then on."""

    def __init__(self, prompts: PromptBuilder, spec: ModelSpec, plan: SpeechPlan) -> None:
        """Raises `ValueError` if the voices leave no room for anything."""
        self._prompts, self._spec, self._plan = prompts, spec, plan
        self._context = list(plan.context)
        self._own: list[Block] = []
        self._anchor: list[Block] = []
        self._left = spec.max_positions - _rows(plan.voices)
        text = prompts.text("a", plan.speaker)
        if plan.voices and self._left < len(text) + min(plan.options.max_frames, LEAST_FRAMES):
            raise self._no_room(text)

    @property
    def dropped(self) -> int:
        """How many segments of the context are left out, the oldest ones."""
        return len(self._plan.context) - len(self._context)

    def pieces(self, sentence: str) -> list[str]:
        """The sentence, in as many parts as it takes for each to have room."""
        if self._plan.options.split_sentences and not self._has_room(sentence):
            parts = in_two(sentence, self._prompts.added_tokens)
            if parts is not None:
                return [piece for part in parts for piece in self.pieces(part)]
        return [sentence]

    def _has_room(self, text: str) -> bool:
        frames = self._wanted(text)
        rows = len(self._prompts.text(text, self._plan.speaker)) + frames
        return rows <= _PIECE_SHARE * self._left or (frames <= LEAST_FRAMES and rows <= self._left)

    def prepare(self, text: str) -> Utterance:
        """`text` after what was said before it.

        It may last as long as its words can take, or as there is room: what was said before gives way first.

        Raises `ValueError` if there is not even room to read the text aloud.
        """
        options, said, wanted = self._plan.options, self._prompts.text(text, self._plan.speaker), self._wanted(text)
        room = self._left - len(said)
        if room < min(wanted, max(LEAST_FRAMES, math.ceil(reading_s(text) * FRAME_RATE_HZ))):
            raise self._no_room(said)
        before = self._before(room - wanted)
        blocks = [*self._plan.voices, *before, said]
        return Utterance(blocks, min(wanted, room), options.seed, 0, options.temperature, options.top_k)

    def said(self, text: str, codes: I64Array) -> None:
        """`text` was said so. What follows is said after it, unless nothing was heard."""
        block = self._segment(text, codes) if len(codes) else None
        if block is not None:
            self._own.append(block)
            if _rows(self._anchor) < _ANCHOR_ROWS:
                self._anchor.append(block)

    def _wanted(self, text: str) -> int:
        return min(self._plan.options.max_frames, speech_cap_frames(text))

    def _segment(self, text: str, codes: I64Array) -> Block | None:
        """What was said, without its beginning if it is too long; None if nothing would be left."""
        speaker = self._plan.speaker
        block = self._prompts.segment(Segment(text, codes, speaker))
        excess = len(block) - int(_SEGMENT_SHARE * self._left)
        if excess <= 0:
            return block
        # Nobody knows which words are gone: as many as the share of the time.
        words = text[len(said_within(text, reading_s(text) * excess / len(codes))) :].lstrip()
        if excess >= len(codes) or not is_speakable(words):
            return None
        return self._prompts.segment(Segment(words, codes[excess:], speaker))

    def _before(self, room: int) -> list[Block]:
        """Context and own sentences that fit into `room`."""
        is_long = _rows(self._own) > _OWN_SHARE * self._left
        if is_long or _rows([*self._context_blocks, *self._recent]) > room:
            # The one before is new to the cache anyway: without those between it and the context nothing is lost.
            del self._own[:-1]
        self._context = _newest(self._context, room - _rows(self._recent), self._left)
        before = [*self._context_blocks, *self._recent]
        while before and _rows(before) > room:
            del before[0]
        return before

    @property
    def _context_blocks(self) -> list[Block]:
        return [earlier.block for earlier in self._context]

    @property
    def _recent(self) -> list[Block]:
        """Own sentences; the first ones stay where nothing else says how the speaker sounds."""
        if self._plan.has_voice or any(earlier.is_own for earlier in self._context):
            return self._own
        return [*(first for first in self._anchor if all(first is not own for own in self._own)), *self._own]

    def _no_room(self, text: Block) -> ValueError:
        taken = _rows(self._plan.voices) + len(text)
        return ValueError(
            f"the prompt takes {taken} positions ({len(text)} of them text) of {self._spec.max_positions}, which "
            "leaves too few to be spoken in: use a shorter voice clip, or split the text"
        )


def _newest(context: list[Earlier], room: int, most: int) -> list[Earlier]:
    """`context` if it fits into `room`; else its newest segments, which fill about 60 % of it.

    The same ones as the context grows, until they fill it again: it is cut only at multiples of what is dropped. `most`
    is what the room could be.
    """
    ends = [0, *accumulate(len(earlier.block) for earlier in context)]
    step = most / _ROOM_STEPS
    stepped = max(room // step * step, min(room, step))
    if not context or ends[-1] <= stepped:
        return context
    for cut in range(0, ends[-1], max(1, round((1 - _KEPT_SHARE) * stepped))):
        start = bisect_right(ends, cut) - 1
        if ends[-1] - ends[start] <= stepped:
            return context[start:]
    # What was said last is what is answered.
    return context[-1:] if len(context[-1].block) <= room else []


def _rows(blocks: Sequence[Block]) -> int:
    return sum(map(len, blocks))
