"""Conversations that the language model learns from, drawn at random: a few turns, each with its text and codes.

Two speaker ids are the two speakers, in one of two ways: a conversation's first turn tells which. So an id alone means
a speaker by default, and a clip given before (voice cloning) says otherwise.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from .corpus import Corpus
from .rvq import Codes
from .sentences import random_delivery, random_sentence
from .words import canonical

MOST_TURNS = 7
_TURNS = np.arange(1, MOST_TURNS + 1)
_TURN_ODDS = np.array([0.3, 0.3, 0.15, 0.1, 0.05, 0.05, 0.05])
_SAME_SPEAKER_ODDS = 0.4
"""Of conversations that are one speaker's monologue (or clip and target); in the others two take turns."""
_SWAPPED_ODDS = 0.5
_LOWER_CASE_ODDS = 0.15
_ENDING_WRITTEN = {".": (".", ".", ".", ".", ".", ".", "!", ""), "?": ("?",), ",": (",",)}
"""How an ending may be written; equally likely. People write "!" and forget the full stop."""
_HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Turn:
    """What is said, as the model's prompt has it, and the speech.

    Attributes:
        speaker_id: As in the prompt.
        text: Without the speaker.
        codes: Int64 `[frames, codebooks]`.
        learnt: False if nothing before it tells who the id is: no model can know.
    """

    speaker_id: int
    text: str
    codes: Codes
    learnt: bool


def is_held_out(words: tuple[str, ...]) -> bool:
    """Whether this word sequence is never trained on: one in twenty, chosen by its hash."""
    return zlib.crc32(" ".join(canonical(word) for word in words).encode()) % _HELD_OUT_ONE_IN == 0


def random_turn_count(rng: np.random.Generator) -> int:
    """1 to `MOST_TURNS`."""
    return int(rng.choice(_TURNS, p=_TURN_ODDS))


def random_conversation(corpus: Corpus, turns: int, rng: np.random.Generator) -> list[Turn]:
    """`turns` turns of sentences that are not held out."""
    names = list(corpus.renderings.speakers)
    swapped = turns > 1 and bool(rng.random() < _SWAPPED_ODDS)
    one_speaker = bool(rng.random() < _SAME_SPEAKER_ODDS)
    speaker_id = int(rng.integers(2))
    result: list[Turn] = []
    for index in range(turns):
        name = names[speaker_id ^ swapped]
        drawn = random_sentence(corpus.renderings, rng)
        while is_held_out(drawn.words):
            drawn = random_sentence(corpus.renderings, rng)
        sentence = random_delivery(name, drawn.words, drawn.ending, rng)
        text = sentence.text.removesuffix(sentence.ending) + str(rng.choice(_ENDING_WRITTEN[sentence.ending]))
        if rng.random() < _LOWER_CASE_ODDS:
            text = sentence.words[0] + text[len(sentence.words[0]) :]
        result.append(Turn(speaker_id, text, corpus.codes(sentence), learnt=index > 0 or not swapped))
        if not one_speaker:
            speaker_id ^= 1
    return result
