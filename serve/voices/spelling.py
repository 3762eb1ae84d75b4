"""What a voice may be called. Names are shown and compared, and never become paths."""

import unicodedata

from .store import ID

MOST_CHARACTERS = 100

_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Categories: control characters, halves of surrogate pairs, separators of lines and paragraphs."""


def spelled(name: str) -> str:
    """A name in one form of all that look the same: some keyboards write an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def check_name(name: str) -> None:
    """Raise `ValueError` if no voice can have this name."""
    if not name.strip():
        raise ValueError("the name of a voice is empty: give it some letters")
    if len(name) > MOST_CHARACTERS:
        raise ValueError(f"the name of a voice has {len(name)} characters, at most {MOST_CHARACTERS} are kept")
    if name != name.strip():
        raise ValueError("the name of a voice begins or ends with a space: leave that out")
    if wrong := next((char for char in name if unicodedata.category(char) in _UNSEEN), None):
        raise ValueError(f"the name of a voice has {wrong!r} in it: use letters, digits and signs")
    if ID.fullmatch(name):
        raise ValueError("the name of a voice looks like the id of one: choose another name")
