"""How much of a text was misheard, in any script: its words, or its characters where no spaces part the words.

It knows no recogniser and no sound.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

_SPACELESS = (
    *("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "YI"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TAI", "NEW_TAI", "AHOM", "JAVANESE", "BALINESE"),
)
"""With what the names of letters begin whose scripts put no spaces between words. Korean does.

Source: Unicode Standard Annex #14, classes ID, SA and AK, of scripts in use.
"""
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u2032\u02bc\u00b4`"), "'")
_ZERO_WIDTH_SPACE = "\u200b"
_TATWEEL = "\u0640"
"""It makes an Arabic word longer on paper."""


def tokens(text: str) -> list[str]:
    """What can be misheard of `text`, without case and punctuation: words, or single characters of spaceless scripts.

    A letter keeps its marks: the vowel signs of Devanagari, Arabic or Thai are said like letters, and an accent is the
    same whether it is a character of its own or not. Apostrophes inside a word stay; digits of all scripts are those of
    ASCII. Numbers stay as they are written: "3" and "three" differ, so a text with digits counts errors that are none.
    """
    plain = _plain(text)
    found: list[str] = []
    in_word = has_base = False
    for character, following in zip(plain, plain[1:] + " ", strict=False):
        kind = unicodedata.category(character)[0]
        if kind == "M":
            if has_base:
                found[-1] += character
            continue
        if kind in "LN" and _is_spaceless(character):
            found.append(character)
            in_word, has_base = False, True
        elif kind in "LN" or (character == "'" and in_word and _goes_on_with(following)):
            if in_word:
                found[-1] += character
            else:
                found.append(character)
            in_word = has_base = True
        else:
            in_word = has_base = False
    return found


def _plain(text: str) -> str:
    """In one spelling: composed, without case, and without what is never seen nor heard."""
    same = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    return "".join(
        str(unicodedata.decimal(character, character))
        for character in unicodedata.normalize("NFKC", same)
        if not _is_ignored(character)
    )


def _is_ignored(character: str) -> bool:
    """Joiners and signs of direction, variants of a glyph, marks around a character: the word goes on after them."""
    category = unicodedata.category(character)
    is_variant = category == "Mn" and "VARIATION SELECTOR" in unicodedata.name(character, "")
    return (category in ("Cf", "Me") and character != _ZERO_WIDTH_SPACE) or is_variant or character == _TATWEEL


def _goes_on_with(character: str) -> bool:
    """Whether it can be part of the word before it: a character of a spaceless script is one of its own."""
    return unicodedata.category(character)[0] in "LN" and not _is_spaceless(character)


@cache
def _is_spaceless(character: str) -> bool:
    name = unicodedata.name(character, "").replace("NEW TAI", "NEW_TAI").replace("-", " ")
    return name.split(" ")[0] in _SPACELESS


def is_latin(text: str) -> bool:
    """Whether all letters of `text` are Latin; also if there are none."""
    letters = (character for character in unicodedata.normalize("NFKC", text) if character.isalpha())
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)


def edit_distance(reference: Sequence[str], heard: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that make one of the other.

    Source: Levenshtein (1966); Wagner and Fischer's recurrence, row by row.
    """
    row = list(range(len(heard) + 1))
    for index, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], index
        for column, found in enumerate(heard, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (wanted != found))
    return row[-1]


def word_error_rate(text: str, heard: str) -> float:
    """Errors in % of the `tokens` of `text`; above 100 if much was heard that is not there.

    Raises `ValueError` if `text` has none: there is nothing to get wrong.
    """
    reference = tokens(text)
    if not reference:
        raise ValueError(f"{text!r} has no words: leave it out, its word error rate is undefined")
    return 100 * edit_distance(reference, tokens(heard)) / len(reference)
