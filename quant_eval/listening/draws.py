"""What is left to chance in a study, as a function of names: the same on every machine, and in the page's script.

What a listener hears as A, as B and as X is drawn from the listener's name: each listener draws anew, so that habits
("always A") which listeners share do not add up over them. The page draws with the same function: `templates/abx.js`.
"""

import unicodedata
from typing import NamedTuple

_PRIME, _BASIS = 0x01000193, 0x811C9DC5
"""Of FNV-1a with 32 bits. Source: Fowler, Noll and Vo; RFC 9923."""
_WORD = 0xFFFFFFFF


def draw(*words: str) -> int:
    """32 bits that depend on all words: FNV-1a of their UTF-8, mixed as the end of MurmurHash3 does.

    Without the mixing the lowest bit would only be the parity of all bytes' lowest bits.
    Source: Appleby, MurmurHash3, `fmix32`.
    """
    bits = _BASIS
    for byte in "/".join(words).encode("utf-8", "replace"):
        bits = (bits ^ byte) * _PRIME & _WORD
    bits = (bits ^ bits >> 16) * 0x85EBCA6B & _WORD
    bits = (bits ^ bits >> 13) * 0xC2B2AE35 & _WORD
    return bits ^ bits >> 16


class Sides(NamedTuple):
    """What a listener hears in a trial.

    Attributes:
        swapped: Whether A is the second of the trial's two sounds.
        x: Which of A and B is X.
    """

    swapped: bool
    x: str


def sides(study: str, listener: str, trial: str) -> Sides:
    """Of one trial, for one listener of a study."""
    bits = draw(study, plain_name(listener), trial)
    return Sides(bool(bits & 1), "B" if bits & 2 else "A")


def plain_name(listener: str) -> str:
    """A name as it counts: without control and format characters and spaces around it, its accents written one way.

    Without these characters Python and JavaScript take the same for space.
    """
    visible = "".join(letter for letter in listener if unicodedata.category(letter) not in ("Cc", "Cf", "Cs"))
    return unicodedata.normalize("NFC", visible.strip())
