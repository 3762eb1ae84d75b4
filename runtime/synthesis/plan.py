"""What is to be said, how and by whom: checked, not yet begun. It knows no models."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...core.checked import expect
from ..lm.prompt import Block
from ..options import SpeechOptions
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
    speaker: int
    voices: Sequence[Block]
    """In their order; of a dialogue all, so that its turns begin alike."""
    has_voice: bool
    """Whether one of them is the speaker's own."""
    context: Sequence[Earlier]
    """Oldest first."""
    options: SpeechOptions


def sentences_of(text: str | Iterable[str], whole_words: Sequence[str], *, split: bool) -> Iterable[str]:
    """The sentences of a text; of one that comes in pieces each when it is complete. Without `split` it is one.

    Raises `ValueError` on text with nothing to say and `TypeError` on what is no text, in pieces when that is seen.
    """
    if isinstance(text, str):
        return split_sentences(text, whole_words=whole_words) if split else [normalise_text(text)]
    given: object = text
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        expect("text", given, str)
    return _as_they_come(text, whole_words, split=split)


def _as_they_come(pieces: Iterable[str], whole_words: Sequence[str], *, split: bool) -> Iterator[str]:
    if not split:
        yield normalise_text("".join(map(_checked, pieces)))
        return
    splitter = SentenceSplitter(whole_words=whole_words)
    for piece in pieces:
        yield from splitter.feed(_checked(piece))
    yield from splitter.end()


def _checked(piece: str) -> str:
    expect("each piece of text", piece, str)
    return piece
