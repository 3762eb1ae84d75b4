# ruff: noqa: RUF001  (marks that resemble others are what this file is about)
"""Text as it arrives becomes pieces that one synthesis call can say, each as soon as nothing can change it.

Rules and small tables, no language model: the languages of the world share the few marks that end a sentence. Where a
rule is in doubt it does not split, because a missing split costs nothing until a piece is too long. This module knows
neither tokens nor speakers; line-per-speaker files are `dialogue/script.py`'s.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from .characters import BLANK, LINE, Folding, is_between_graphemes, is_speakable, normalise_text, slices
from .whole_words import WholeWords

__all__ = ["MAX_CHARS", "MIN_CHARS", "SentenceSplitter", "in_two", "normalise_text", "split_sentences"]

MAX_CHARS = 250
"""About 18 s of English or 60 s of Chinese: voice, previous sentence and this one stay within 2048 positions."""
MIN_CHARS = 20
"""Shorter than this, a piece is joined with the next: each costs a prefill, and a lone "Yes." sounds poor."""

_WIDE = "。．！？｡।॥؟۔։።፧፨។៕။"
"""Marks that end a sentence with or without a space after them."""
_WIDE_SET = frozenset(_WIDE)
_ENDS = re.compile(
    rf"{BLANK}|(?P<run>[.!?…‼⁇⁈⁉{_WIDE}]{{1,20}})"
    # Closing quotes and brackets belong to what they close. Some open elsewhere: those must stand before a space.
    r"""(?:["'”’»›)\]}）】」』〉》〕]|[“«‹‘](?=\s)){0,8}(?: [»›](?=\s))?"""
    r"(?P<space>(?=\s))?"
)
"""Of bounded length, so that text of marks alone has an end."""
_OPENERS = f"{LINE}{BLANK} \"'“‘«‹([{{¿¡„‚-–—"
_LOOKAHEAD = 8
"""Characters looked at for the next visible one behind an end."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_ENDS = _words(
    "mr mrs ms mx dr prof rev hon gen col capt cmdr lt sgt sen rep gov st ste mt messrs mme mlle "
    "e.g i.e cf vs viz approx esp resp incl "
    "z.b d.h u.a bzw ca vgl sog hr fr p.ex sra srta dra ud uds"
)
"""Abbreviations with a word after them, in lower case and without the last full stop."""
_NUMBERED = _words("no nos nr núm fig figs eq vol vols ch chap sec sect art para p pp pg ed op str")
"""Abbreviations only before a number: "No. 5", but "No. I will not"."""
_MAYBE_ENDS = _words("etc inc ltd co corp jr sr bros dept est u.s u.k usw al ave blvd rd")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_SHORT_NUMBER = re.compile(r"\d{1,2}")
_LONGEST_WORD = 12
"""Characters looked at before a full stop: more than any abbreviation has."""

_CUTS = tuple(
    re.compile(pattern)
    for pattern in (r"""[;:]["'”’»)\]]*(?=\s)|[；：]""", r"""[,،؛]["'”’»)\]]*(?=\s)|[，、—]|–(?=\s)""", r"(?=\s)")
)
"""Behind these a sentence that is too long is cut, the best places first."""


class _Kind(IntEnum):
    """What a place that may end a sentence is worth."""

    DOUBTFUL = 0
    """Not enough, but a good place to cut what is too long."""
    PLAIN = 1
    LINE = 2
    """With a line break behind it: nothing joins across."""
    BLANK = 3


class _End(NamedTuple):
    at: int
    kind: _Kind


class SentenceSplitter:
    """Splits one text that comes in pieces; how it is cut into pieces changes nothing. See `split_sentences`.

    Keeps no more than a few sentences' length of the text.
    """

    def __init__(self, max_chars: int = MAX_CHARS, min_chars: int = MIN_CHARS, whole_words: Sequence[str] = ()) -> None:
        """Raises `ValueError` on impossible limits."""
        if max_chars < 1 or min_chars < 0:
            raise ValueError(f"max_chars must be at least 1 and min_chars at least 0, not {max_chars} and {min_chars}")
        self._max_chars, self._min_chars = max_chars, min_chars
        self._folding = Folding()
        self._words = WholeWords(whole_words)
        self._start = 0
        """Of the sentence that is to be decided next, in what is kept of the text: as all positions."""
        self._scanned = 0
        """All ends up to here are known."""
        self._ends: list[_End] = []
        self._waiting: tuple[int, int] | None = None
        """A piece that is too short to be given out alone."""
        self._has_spoken = False

    def feed(self, piece: str) -> list[str]:
        """Take the text's next piece. Returns the sentences that are complete now."""
        sentences = []
        for part in slices(piece):
            self._folding.feed(part)
            sentences += self._decide(self._folding.settled + self._folding.tail, self._folding.certain)
        return sentences

    def end(self) -> list[str]:
        """The rest of the sentences: the text is complete.

        Raises `ValueError` if there was nothing to say in it.
        """
        self._folding.end()
        text = self._folding.settled
        sentences = list(self._decide(text + BLANK, len(text), at_end=True))
        if not self._has_spoken:
            raise self._folding.nothing_to_say()
        return sentences

    def _decide(self, text: str, certain: int, *, at_end: bool = False) -> list[str]:
        self._words.scan(text, certain, at_end=at_end)
        self._scan(text, len(text) if at_end else len(self._folding.settled), at_end=at_end)
        sentences = list(self._sentences(text, certain))
        self._forget()
        return sentences

    def _scan(self, text: str, settled: int, *, at_end: bool) -> None:
        """Find ends, up to the first that what follows may still change."""
        for match in _ENDS.finditer(text, self._scanned):
            end = match.end() if match["run"] else match.start()
            is_last = at_end and end == len(text) - 1
            if end > self._words.sure or not (
                at_end or match["run"] is None or _is_decided(match, text[end : end + _LOOKAHEAD])
            ):
                self._scanned = match.start()
                return
            if is_last or end not in self._words.inside:
                kind = _kind(match, text) if match["run"] else _Kind.BLANK
                if kind is not None:
                    self._ends.append(_End(end, kind))
            # A gap at the end is looked at once more: its kind may still change.
            self._scanned = min(match.end(), max(settled, end))
        self._scanned = max(self._scanned, settled)

    def _sentences(self, text: str, certain: int) -> Iterator[str]:
        """Sentences, and the parts of those that are too long, joined where they are short."""
        furthest = 2 * self._max_chars
        while True:
            self._start += text[self._start : self._start + 1].isspace()
            end = next((end for end in self._ends if end.kind and end.at >= self._start - 1), None)
            length = min(end.at - self._start if end else furthest, furthest)
            if end is None and min(self._scanned, self._words.sure, certain) < self._start + furthest:
                return
            if length > self._max_chars:
                cut = self._cut(text, self._start + length)
                yield from self._joined(text, cut, _Kind.PLAIN)
                self._start = cut
                continue
            assert end is not None
            yield from self._joined(text, end.at, end.kind)
            self._start = max(self._start, end.at)
            self._ends = self._ends[self._ends.index(end) + 1 :]

    def _joined(self, text: str, end: int, kind: _Kind) -> Iterator[str]:
        """The piece up to `end`, with the one that waits, unless it has to wait itself."""
        span = (self._start, end) if self._start < end else None
        if span and self._waiting and span[1] - self._waiting[0] <= self._max_chars:
            span, self._waiting = (self._waiting[0], span[1]), None
        waiting, self._waiting = self._waiting, None
        if waiting and (span or kind is _Kind.BLANK):
            yield from self._given(text[slice(*waiting)])
            waiting = None
        if span is None:
            self._waiting = waiting
        elif kind is _Kind.BLANK or self._is_enough(text[slice(*span)], kind):
            yield from self._given(text[slice(*span)])
        else:
            self._waiting = span

    def _is_enough(self, piece: str, kind: _Kind) -> bool:
        is_long = kind is _Kind.LINE or not self._has_spoken or len(piece) >= self._min_chars
        return is_long and is_speakable(piece)

    def _given(self, piece: str) -> Iterator[str]:
        if is_speakable(piece):
            self._has_spoken = True
            yield piece.replace(LINE, " ").replace(BLANK, " ").strip()

    def _cut(self, text: str, end: int) -> int:
        """Where to end the first part of a long sentence: near an even share of it, so that no crumb is left over."""
        start, max_chars = self._start, self._max_chars
        share = math.ceil((end - start) / math.ceil((end - start) / max_chars))
        lowest, highest = start + max(1, share // 2), start + max_chars
        weak = [end.at for end in self._ends if not end.kind]
        inside = self._words.inside
        cut = _best(_places(text, lowest, highest, weak), start + share, lambda cut: cut not in inside)
        if cut is not None:
            return cut
        anywhere = (*range(start + share, start, -1), *range(start + share + 1, highest))
        return next((cut for cut in anywhere if cut not in inside and is_between_graphemes(text, cut)), highest)

    def _forget(self) -> None:
        """Let go of the text that is decided, but for what an abbreviation behind it may need."""
        kept_from = self._waiting[0] if self._waiting else self._start
        used = min(kept_from - _LONGEST_WORD, self._scanned - _LONGEST_WORD, len(self._folding.settled))
        if used < self._max_chars:
            return
        self._folding.settled = self._folding.settled[used:]
        self._start -= used
        self._scanned -= used
        self._words.forget(used)
        self._ends = [_End(end.at - used, end.kind) for end in self._ends if end.at >= used]
        if self._waiting:
            self._waiting = (self._waiting[0] - used, self._waiting[1] - used)


def split_sentences(
    text: str, max_chars: int = MAX_CHARS, min_chars: int = MIN_CHARS, whole_words: Sequence[str] = ()
) -> list[str]:
    """The sentences of `text`, in order, each with a letter or digit and at most `max_chars` characters long.

    A blank line ends a sentence, and so does a line break behind the mark of an end; another one is a space. The first
    sentence stays as it is, since somebody waits for it. A later one shorter than `min_chars` is joined with the next
    one of its line where that fits. One longer than `max_chars` is cut into parts, even ones as far as twice that
    length shows: behind a doubtful end of a sentence, else at ; or :, else at a comma or dash, else at a space, else
    between two characters as a reader sees them. Pieces are slices of `normalise_text(text)`; what is left out of them
    is white space and lines without a letter or digit ("* * *"). None of `whole_words`, as "<uh... laugh>", is cut into
    parts: the leftmost and longest counts.

    Raises `ValueError` on text with nothing to say, and on impossible limits.
    """
    splitter = SentenceSplitter(max_chars, min_chars, whole_words)
    return splitter.feed(text) + splitter.end()


def in_two(text: str, whole_words: Sequence[str] = ()) -> tuple[str, str] | None:
    """A piece that is too long, as two with a letter or digit each, cut at the best place near its middle.

    None if there is no such place: it is one character as a reader sees it, or one whole word.
    """
    words = WholeWords(whole_words)
    words.scan(text, len(text), at_end=True)
    ends = [match.end() for match in _ENDS.finditer(text) if match["run"] and _kind(match, text) is not None]
    said = [index for index, char in enumerate(text) if char.isalnum()]

    def is_possible(cut: int) -> bool:
        return cut not in words.inside and bool(said) and said[0] < cut <= said[-1]

    quarter = len(text) // 4
    spaces = [index for index, char in enumerate(text) if char == " "]
    anywhere = [cut for cut in range(1, len(text)) if is_between_graphemes(text, cut)]
    near = _places(text, quarter, len(text) - quarter, ends)
    cut = _best((*near, spaces, anywhere), len(text) // 2, is_possible)
    return None if cut is None else (text[:cut].strip(), text[cut:].strip())


def _is_decided(match: re.Match[str], following: str) -> bool:
    """Whether text that is still to come cannot change what this is."""
    if following.startswith(BLANK) or (following.startswith(LINE) and not _is_doubtful(match)):
        return True
    return len(following) == _LOOKAHEAD or bool(following.lstrip(_OPENERS + "»›"))


def _word_before(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - _LONGEST_WORD) : match.start()]
    return re.split(r"\s", before)[-1].lstrip(_OPENERS).lower()


def _is_doubtful(match: re.Match[str]) -> bool:
    """Whether the word before a full stop is often written with one."""
    if match["run"] != ".":
        return False
    word = _word_before(match)
    is_initial = len(word) == 1 and word.upper() != word
    is_known = is_initial or word in _NEVER_ENDS or word in _NUMBERED or word in _MAYBE_ENDS
    return is_known or bool(_DOTTED.fullmatch(word) or _SHORT_NUMBER.fullmatch(word))


def _kind(match: re.Match[str], text: str) -> _Kind | None:
    """What the place behind a mark is worth; None if a sentence cannot end there."""
    end = match.end()
    following = text[end : end + _LOOKAHEAD].lstrip(_OPENERS)[:1]
    is_wide = not _WIDE_SET.isdisjoint(match["run"])
    if end < len(text) and match["space"] is None and (not is_wide or (match["run"] == "．" and following.isdecimal())):
        return None  # 3.14, example.com
    is_doubtful = _is_doubtful(match)
    if is_doubtful:
        word = _word_before(match)
        if word in _NEVER_ENDS or (word in _NUMBERED and following.isdecimal()):
            return None
        if len(word) == 1 and word.upper() != word:
            return None  # an initial
        is_doubtful = word not in _NUMBERED
    if is_doubtful:
        return _Kind.DOUBTFUL
    if text[end : end + 1] in (LINE, BLANK):
        return _Kind.LINE
    return _Kind.DOUBTFUL if following.islower() else _Kind.PLAIN


def _places(text: str, lowest: int, highest: int, doubtful: Sequence[int]) -> Iterator[list[int]]:
    """Where to cut between two positions, the best kind of places first."""
    yield list(doubtful[bisect_left(doubtful, lowest) : bisect_right(doubtful, highest)])
    for pattern in _CUTS:
        # One character more, for those that look at the space behind the cut.
        cuts = (match.end() for match in pattern.finditer(text, lowest, highest + 1))
        yield [cut for cut in cuts if cut <= highest]


def _best(
    places: Iterator[list[int]] | Sequence[list[int]], aim: int, is_possible: Callable[[int], bool]
) -> int | None:
    """Of the first kind that has possible places, the one nearest to `aim`."""
    for kind in places:
        if possible := [cut for cut in kind if is_possible(cut)]:
            return min(possible, key=lambda cut: abs(cut - aim))
    return None
