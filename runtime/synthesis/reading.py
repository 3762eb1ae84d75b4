"""How long saying a text takes: a brisk reader's time, and the longest that is believed. Knows characters only."""

import math
import re
import unicodedata
from collections import Counter

from ...models.mimi import FRAME_RATE_HZ
from .characters import is_between_graphemes, is_speakable

_LETTER_S, _CAPITAL_S, _SYLLABLE_S, _DIGIT_S, _PUNCTUATION_S, _SYMBOL_S = 0.065, 0.2, 0.25, 0.4, 0.2, 0.4
_CAP_FACTOR = 4.0
_CAP_HEAD_S = 1.5
_CAP_LEAST_S = 3.0

LEAST_FRAMES = math.ceil(_CAP_LEAST_S * FRAME_RATE_HZ)
"""No text's cap is below this."""

_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff65\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, kana, Chinese characters and their marks: scripts that put no space between words."""


def reading_s(text: str) -> float:
    """Seconds that a brisk reader needs.

    A letter takes 65 ms, a capital 0.2 s because it may be spelled, a Chinese character, kana or Korean syllable
    0.25 s, a digit 0.4 s, a mark 0.2 s, a symbol or emoji 0.4 s.
    """
    return sum(count * _seconds(char) for char, count in Counter(text).items())


def speech_cap_frames(text: str) -> int:
    """More frames than saying `text` can need: a generation that gets there has run away.

    Four times what a brisk reader needs (`reading_s`): the slowest that users report is a word a second. Never under
    3 s.
    """
    return math.ceil(max(_CAP_LEAST_S, _CAP_HEAD_S + _CAP_FACTOR * reading_s(text)) * FRAME_RATE_HZ)


def said_within(text: str, seconds: float) -> str:
    """The beginning of `text` that a brisk reader says in so many seconds, up to the end of a word.

    In scripts without spaces, up to the end of what a reader sees as one character. At least the first of these, and
    all of `text` from `reading_s(text)` on.
    """
    if seconds >= reading_s(text):
        return text
    said, spent_s = "", 0.0
    for index, char in enumerate(text):
        if _ends_word(text, index):
            if said and spent_s > seconds:
                return said
            said = text[:index]
        spent_s += _seconds(char)
    return said if said and spent_s > seconds else text


def _ends_word(text: str, index: int) -> bool:
    """Whether what stands before `index` can be all that was said."""
    if not is_speakable(text[:index]):
        return False
    if text[index].isspace():
        return not text[index - 1].isspace()
    pair = text[index - 1 : index + 1]
    return bool(_SPACELESS.search(pair)) and text[index].isalnum() and is_between_graphemes(text, index)


def _seconds(char: str) -> float:
    """Time to read one character; see `reading_s`."""
    category = unicodedata.category(char)
    if char.isnumeric():
        return _DIGIT_S
    if category[0] == "L":
        if unicodedata.east_asian_width(char) in "WF":
            return _SYLLABLE_S
        # Scripts without case write fewer letters for the same sounds: no vowels, or one letter a syllable.
        return _LETTER_S if category == "Ll" else _CAPITAL_S
    if category[0] == "S" or char in "%&@#*/\\":
        return _SYMBOL_S
    return {"M": _LETTER_S, "P": _PUNCTUATION_S}.get(category[0], 0.0)
