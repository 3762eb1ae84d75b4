"""What is to be said, how and by whom: checked, not yet begun. It knows no engine."""

from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ...core.checked import expect
from ...models.spec import ModelSpec
from ..lm.prompt import Block, PromptBuilder
from ..options import SpeechOptions
from ..speech import Segment
from ..voice import Voice
from .characters import slices
from .sentences import SentenceSplitter, normalise_text, split_sentences


class Earlier(NamedTuple):
    """A segment of the context."""

    block: Block
    is_own: bool
    """Whether it is of the speaker who is to speak."""


@dataclass(frozen=True)
class SpeechPlan:
    """What is to be said, how and by whom. A text that comes in pieces is read while it is spoken, so only once."""

    sentences: Iterable[str]
    """An empty one is none: more of the text has been read, and whoever reads it may stop there."""
    speaker: int
    voices: Sequence[Block]
    """In their order; of a dialogue all, so that its turns begin alike."""
    has_voice: bool
    """Whether one of them is the speaker's own."""
    context: Sequence[Earlier]
    """Oldest first."""
    options: SpeechOptions


class Planner:
    """Checks what is asked of one model."""

    def __init__(self, prompts: PromptBuilder, spec: ModelSpec, codebooks: int) -> None:
        """`codebooks` are the codec's."""
        self._prompts, self._spec, self._codebooks = prompts, spec, codebooks

    def plan(
        self,
        text: str | Iterable[str],
        voice: Voice | Sequence[Voice] | None,
        context: Sequence[Segment],
        speaker: int | None,
        options: SpeechOptions,
    ) -> SpeechPlan:
        """The plan. See `MisoTTS.stream` for arguments and errors."""
        expect("context", context, Sequence)
        for said in context:
            expect("each of context", said, Segment, Voice)
        voices = self._checked_voices(voice)
        number = speaker if speaker is not None else voices[0].speaker if voices else 0
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise ValueError(f"a speaker is a number from 0, not {number!r}")
        number = int(number)
        if isinstance(voice, Voice):
            # Only if both have the same number does the model take the voice for the speaker's.
            voices = [replace(voice, speaker=number)]
        return SpeechPlan(
            _sentences(text, self._prompts.added_tokens, split=options.split_sentences),
            number,
            self._voice_blocks(voices, number),
            any(one.speaker == number for one in voices),
            [Earlier(self._prompts.segment(said), said.speaker == number) for said in context],
            options,
        )

    def _checked_voices(self, voice: Any) -> list[Voice]:
        voices: list[Voice] = [] if voice is None else list(voice) if isinstance(voice, list | tuple) else [voice]
        for one in voices:
            expect("voice", one, Voice)
            one.check(self._codebooks, self._spec.audio_vocab)
        return voices

    def _voice_blocks(self, voices: Sequence[Voice], speaker: int) -> list[Block]:
        """Those of a dialogue as far as they fit into half of the positions, and in any case the speaker's own.

        Which these are does not follow from who speaks: prompts that begin alike are computed once.
        """
        room, blocks = self._spec.max_positions // 2, list[Block]()
        for voice in voices:
            block = self._prompts.segment(Segment(voice.text, voice.codes, voice.speaker), is_voice=True)
            room -= len(block)
            if room >= 0 or voice.speaker == speaker:
                blocks.append(block)
        return blocks


def _sentences(text: str | Iterable[str], whole_words: Sequence[str], *, split: bool) -> Iterable[str]:
    """The sentences of a text; of one that comes in pieces each when it is complete. Without `split` it is one.

    Raises `ValueError` on text with nothing to say and `TypeError` on what is no text, in pieces when that is seen.
    """
    if isinstance(text, str):
        return split_sentences(text, whole_words=whole_words) if split else [normalise_text(text)]
    given: object = text
    if isinstance(given, AsyncIterable):
        raise TypeError("a text whose pieces are awaited is for astream; stream and generate take str, or an iterable")
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        expect("text", given, str)
    return _Once(_as_they_come(text, whole_words, split=split))


class _Once:
    """Sentences of which a second reader would find none."""

    def __init__(self, sentences: Iterator[str]) -> None:
        self._sentences: Iterator[str] | None = sentences

    def __iter__(self) -> Iterator[str]:
        sentences, self._sentences = self._sentences, None
        if sentences is None:
            raise ValueError("a plan whose text came in pieces has been spoken, and they are gone: plan it again")
        return sentences


def _as_they_come(pieces: Iterable[str], whole_words: Sequence[str], *, split: bool) -> Iterator[str]:
    splitter, whole = SentenceSplitter(whole_words=whole_words), list[str]()
    for piece in pieces:
        # A long one in parts too, so that its first sentence does not wait for its last.
        for part in slices(_checked(piece)) or [""]:
            if split:
                yield from splitter.feed(part)
            else:
                whole.append(part)
            yield ""
    yield from splitter.end() if split else [normalise_text("".join(whole))]


def _checked(piece: str) -> str:
    expect("each piece of text", piece, str)
    return piece
