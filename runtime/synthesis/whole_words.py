"""Words that are not to be cut, as a tokenizer's added tokens, found in a text that grows. Knows no sentences."""

import re
from collections.abc import Sequence

from .characters import BLANK, LINE


class WholeWords:
    """Finds words that are not to be cut, in a text that grows.

    Attributes:
        inside: Positions within such a word.
        sure: Positions up to this one are not going to be added.
    """

    def __init__(self, words: Sequence[str]) -> None:
        longest_first = sorted(words, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._longest = max(map(len, longest_first), default=0)
        self._beginnings = {word[:length] for word in words for length in range(1, len(word))}
        self._scanned = self.sure = 0
        self.inside: set[int] = set()

    def scan(self, text: str, certain: int, *, at_end: bool = False) -> None:
        """Look at `text`, of which so many characters stay as they are."""
        if self._pattern is None:
            self.sure = len(text)
            return
        text = text.replace(LINE, " ").replace(BLANK, " ")
        open_from = certain
        if not at_end:
            starts = range(max(self._scanned, certain - self._longest), certain)
            open_from = next((start for start in starts if text[start:certain] in self._beginnings), certain)
        while match := self._pattern.search(text, self._scanned, certain):
            if match.start() >= open_from:
                break
            self.inside.update(range(match.start() + 1, match.end()))
            self._scanned = match.end()
        self._scanned = self.sure = max(self._scanned, open_from)

    def forget(self, used: int) -> None:
        """The text's first `used` characters are gone."""
        self._scanned, self.sure = max(0, self._scanned - used), max(0, self.sure - used)
        self.inside = {index - used for index in self.inside if index >= used}
