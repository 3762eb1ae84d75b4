"""Sentences of the tiny model: which words, by whom, which variants, with what pauses; and how they sound, as samples.

A sentence is the renderings of its words one after the other, the last one with the ending's melody; between two words
there may be whole frames of silence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...mimi import FRAME_SAMPLES
from .renderings import Rendering, Renderings
from .words import ENDINGS, VARIANTS

Samples = NDArray[np.float32]

_PAUSES, _PAUSE_ODDS = (0, 1, 2), (0.75, 0.15, 0.1)
MOST_PAUSE_FRAMES = max(_PAUSES)


@dataclass(frozen=True)
class Sentence:
    """One way of saying something.

    Attributes:
        speaker: Name of the speaker.
        words: In the vocabulary's spelling.
        ending: ".", "?" or ",".
        variants: Of each word but the last.
        pauses: Frames of silence after each word but the last.
    """

    speaker: str
    words: tuple[str, ...]
    ending: str
    variants: tuple[int, ...]
    pauses: tuple[int, ...]

    @property
    def text(self) -> str:
        """As it is written: a capital at the start, the ending at the end."""
        joined = " ".join(self.words) + self.ending
        return joined[0].upper() + joined[1:]


def plain_sentence(speaker: str, words: tuple[str, ...], ending: str) -> Sentence:
    """The sentence with first variants and without pauses."""
    inner = (0,) * (len(words) - 1)
    return Sentence(speaker, words, ending, inner, inner)


def random_delivery(speaker: str, words: tuple[str, ...], ending: str, rng: np.random.Generator) -> Sentence:
    """One of the many ways to say these words: variants and pauses are drawn."""
    inner = len(words) - 1
    variants = tuple(int(v) for v in rng.integers(0, VARIANTS[""], inner))
    pauses = tuple(int(p) for p in rng.choice(_PAUSES, inner, p=_PAUSE_ODDS))
    return Sentence(speaker, words, ending, variants, pauses)


def random_sentence(renderings: Renderings, rng: np.random.Generator, least: int = 2, most: int = 6) -> Sentence:
    """`least` to `most` words, any speaker, any ending, any delivery."""
    speaker = str(rng.choice(list(renderings.speakers)))
    count = int(rng.integers(least, most + 1))
    words = tuple(str(word) for word in rng.choice(renderings.words, count))
    return random_delivery(speaker, words, str(rng.choice(ENDINGS)), rng)


def parts(renderings: Renderings, sentence: Sentence) -> list[Rendering | int]:
    """Renderings, and between them numbers of silent frames.

    Raises `ValueError` if variants or pauses are not one fewer than the words, or something is not in the renderings.
    """
    inner = len(sentence.words) - 1
    if inner < 0 or len(sentence.variants) != inner or len(sentence.pauses) != inner:
        raise ValueError(f"{sentence} must have one variant and one pause for each word but the last")
    result: list[Rendering | int] = []
    for word, variant, pause in zip(sentence.words[:-1], sentence.variants, sentence.pauses, strict=True):
        result.append(renderings.get(word, "", sentence.speaker, variant))
        if pause:
            result.append(pause)
    result.append(renderings.get(sentence.words[-1], sentence.ending, sentence.speaker))
    return result


def samples_of(renderings: Renderings, sentence: Sentence) -> Samples:
    """The reference rendition, float32 `[frames * 1920]` at 24 kHz. Raises as `parts` does."""
    return np.concatenate(
        [
            np.zeros(part * FRAME_SAMPLES, np.float32) if isinstance(part, int) else part.samples
            for part in parts(renderings, sentence)
        ]
    )
