"""Word error rate: how far a transcript is from the text that was to be said. It hears nothing (`extras.py`)."""

import re
import unicodedata
from collections.abc import Sequence

_NO_WORD = re.compile(r"[^\w']+|_")
_EDGE_APOSTROPHES = re.compile(r"(?<!\w)'+|'+(?!\w)")


def words(text: str) -> list[str]:
    """The words of `text` in lower case, without punctuation; apostrophes inside a word stay.

    Numbers stay as they are written: "3" and "three" differ, so a text with digits counts errors that are none.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return _NO_WORD.sub(" ", _EDGE_APOSTROPHES.sub(" ", plain)).split()


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
    """Errors in % of the words of `text`; above 100 if much was heard that is not there.

    Raises `ValueError` if `text` has no words: there is nothing to get wrong.
    """
    reference = words(text)
    if not reference:
        raise ValueError(f"{text!r} has no words: leave it out, its word error rate is undefined")
    return 100 * edit_distance(reference, words(heard)) / len(reference)
