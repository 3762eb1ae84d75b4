"""Text as it arrives, in pieces of any length, becomes NFC text without control characters and with single gaps.

What is given out is final: what the next character may still change is held back, and that is never much. This module
knows nothing of words or sentences.
"""

import logging
import re
import unicodedata

log = logging.getLogger(__name__)

LINE, BLANK = "\n", "\v"
"""The gap that a line break makes, and that of a blank line. Any other gap is a space."""
_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_ODD_GAP = re.compile(r"\s\s+|[^\S ]")
_CONTROL = re.compile("[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]")
"""NUL and its like, lone surrogates (no UTF-8 has them) and byte order marks. Joiners stay: Persian needs them."""
_MOST_MARKS = 63
"""On one letter; further ones are left out. Unicode's stream-safe text has 30."""
_LONGEST_CLUSTER = 64
"""Characters after which parts of Hangul syllables are held back no longer: only the first three make one."""
_SLICE = 1024
_VIRAMA = 9
"""Unicode's combining class of the sign that joins two Indic consonants."""


class Folding:
    """Folds one text.

    Attributes:
        settled: Folded text that nothing can change any more. Whoever reads it takes away what is used up.
    """

    def __init__(self) -> None:
        self.settled = ""
        self._cluster = ""
        """The last character with its marks, which another mark may change."""
        self._gap = ""
        """White space behind it, as it came but shortened: of what kind it is, is not known before it ends."""
        self._removed = 0
        self._head = ""

    def feed(self, piece: str) -> None:
        """Take the text's next piece."""
        self._head += piece[: 40 - len(self._head)]
        piece, removed = _CONTROL.subn("", piece)
        self._removed += removed
        text = self._gap + piece
        body = text.rstrip()
        self._gap = _shortened(text[len(body) :])
        self._compose(_ODD_GAP.sub(lambda match: _folded(match[0]), body))

    @property
    def tail(self) -> str:
        """What follows `settled` as far as is known: its first character may get marks, its gap more lines."""
        return unicodedata.normalize("NFC", self._cluster) + (_folded(self._gap) if self._gap else "")

    @property
    def certain(self) -> int:
        """Characters of `settled` and `tail` that stay as they are, but for the kind of a gap at the end."""
        return len(self.settled) + (len(self.tail) if self._gap else 0)

    def end(self) -> None:
        """Settle all but the gap at the end, and say what was removed."""
        self.settled += unicodedata.normalize("NFC", self._cluster)
        self._cluster = self._gap = ""
        if self._removed:
            log.warning("removed %d control characters from the text", self._removed)

    def nothing_to_say(self) -> ValueError:
        """The error for a text without anything speakable."""
        return ValueError(f"nothing to say: no letter or digit in {self._head!r}; pass some words")

    def _compose(self, text: str) -> None:
        if text.isascii():
            if text:
                self.settled += unicodedata.normalize("NFC", self._cluster) + text[:-1]
                self._cluster = text[-1]
            return
        done, cluster = [], self._cluster
        for char in text:
            is_joined = char > "\u02ff" and _joins(char)
            if is_joined and unicodedata.category(char)[0] == "M":
                if _marks_at_end(cluster + char) <= _MOST_MARKS:
                    cluster += char
                else:
                    self._removed += 1  # where it belongs among the others would be known only at their end
            elif is_joined and len(cluster) < _LONGEST_CLUSTER:
                cluster += char
            else:
                done.append(unicodedata.normalize("NFC", cluster))
                cluster = char
        self.settled += "".join(done)
        self._cluster = cluster


def normalise_text(text: str) -> str:
    """NFC, without control characters, every run of white space one space.

    Raises `ValueError` if nothing speakable remains, which takes a letter or a digit of any script.
    """
    folding = Folding()
    folding.feed(text)
    folding.end()
    if not is_speakable(folding.settled):
        raise folding.nothing_to_say()
    return " ".join(folding.settled.split())


def slices(piece: str) -> list[str]:
    """A long piece as short ones, so that work on what is at hand stays small."""
    return [piece[start : start + _SLICE] for start in range(0, len(piece), _SLICE)]


def is_speakable(text: str) -> bool:
    """Whether there is a letter or a digit of any script."""
    return any(map(str.isalnum, text))


def is_between_graphemes(text: str, index: int) -> bool:
    """Whether `index` is no place inside what a reader sees as one character.

    The rules of UAX 29 that matter here: combining marks, joiners, conjuncts, Thai and Lao am,
    skin tones and flags.
    """
    before, after = text[index - 1], text[index]
    if before == "\u200d" or unicodedata.combining(before) == _VIRAMA:
        return False
    if (
        unicodedata.category(after)[0] == "M"
        or after in "\u200c\u200d\u0e33\u0eb3"
        or "\U0001f3fb" <= after <= "\U0001f3ff"
    ):
        return False
    return not (_is_flag_half(before) and _is_flag_half(after))


def _is_flag_half(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _joins(char: str) -> bool:
    """Whether NFC may change what stands before `char`: marks, inner parts of Hangul syllables, Kirat Rai vowels."""
    return unicodedata.category(char)[0] == "M" or "\u1160" <= char <= "\u11ff" or "\U00016d63" <= char <= "\U00016d6a"


def _marks_at_end(text: str) -> int:
    """How many marks the end of `text` has, taken apart: so that what was composed counts as before."""
    apart = unicodedata.normalize("NFD", text)
    return next(
        (count for count, char in enumerate(reversed(apart)) if unicodedata.category(char)[0] != "M"), len(apart)
    )


def _folded(gap: str) -> str:
    breaks = len(_LINE_BREAK.findall(gap))
    return BLANK if breaks > 1 else LINE if breaks else " "


def _shortened(gap: str) -> str:
    """White space that means what `gap` does, whatever white space follows."""
    folded = _folded(gap) if gap else ""
    if folded == BLANK:
        return "\n\n"
    return "\r" if folded == LINE and gap.endswith("\r") else folded
