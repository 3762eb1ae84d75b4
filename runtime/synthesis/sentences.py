# ruff: noqa: RUF001  (marks that resemble others are what this file is about)
"""Text as it arrives becomes pieces that one synthesis call can say, and an upper bound on how long they take.

Rules and small tables, no language model: the languages of the world share the few marks that end a sentence. Where a
rule is in doubt it does not split, because a missing split costs nothing until a piece is too long. This module knows
neither tokens nor speakers; line-per-speaker files are `dialogue/script.py`'s.
"""

import logging
import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

log = logging.getLogger(__name__)

MAX_CHARS = 250
"""About 18 s of English or 60 s of Chinese: voice, previous sentence and this one stay within 2048 positions."""
MIN_CHARS = 20
"""Shorter than this, a piece is joined with its neighbour: each costs a prefill, and a lone "Yes." sounds poor."""

_WIDE = "。．！？｡।॥؟۔։።፧፨។៕။"
"""Marks that end a sentence with or without a space after them."""
_WIDE_SET = frozenset(_WIDE)
_ENDS = re.compile(
    rf"(?P<run>[.!?…‼⁇⁈⁉{_WIDE}]+)"
    # Closing quotes and brackets belong to what they close. Some open elsewhere: those must stand before a space.
    r"""(?:["'”’»›)\]}）】」』〉》〕]|[“«‹‘](?=\s|$))*(?:\s[»›](?=\s|$))?"""
    r"(?P<space>(?=\s|$))?"
)
_OPENERS = " \"'“‘«‹([{¿¡„‚-–—"


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
_VIRAMA = 9
"""Unicode's combining class of the sign that joins two Indic consonants."""

_CUTS = tuple(
    re.compile(pattern)
    for pattern in (r"""[;:]["'”’»)\]]*(?=\s)|[；：]""", r"""[,،؛]["'”’»)\]]*(?=\s)|[，、—]|–(?=\s)""", r"(?=\s)")
)
"""Behind these a sentence that is too long is cut, the best places first."""

_Span = tuple[int, int]

_LETTER_S, _CAPITAL_S, _SYLLABLE_S, _DIGIT_S, _PUNCTUATION_S, _SYMBOL_S = 0.065, 0.2, 0.25, 0.4, 0.2, 0.4
_CAP_FACTOR = 4.0
_CAP_HEAD_S = 1.5
_CAP_LEAST_S = 3.0


def normalise_text(text: str) -> str:
    """NFC, without control characters, every run of white space one space.

    Raises `ValueError` if nothing speakable remains, which takes a letter or a digit of any script.
    """
    return " ".join(_paragraphs(text))


def split_sentences(text: str, max_chars: int = MAX_CHARS, min_chars: int = MIN_CHARS, whole_words=None) -> list[str]:
    """The sentences of `text`, in order, each with a letter or digit and at most `max_chars` characters long.

    A blank line ends a sentence, a single line break is a space. A sentence shorter than `min_chars` is joined with the
    next one, or else with the one before, where that fits. One longer than `max_chars` is cut into even parts: behind
    a doubtful end of a sentence, else at ; or :, else at a comma or dash, else at a space, else between two characters
    as a reader sees them. Pieces are slices of `normalise_text(text)`; what is left out of them is white space and
    lines without a letter or digit ("* * *"). What `whole_words` finds, as "<uh... laugh>", is not cut into parts.

    Raises `ValueError` on text with nothing to say, and on impossible limits.
    """
    if max_chars < 1 or min_chars < 0:
        raise ValueError(f"max_chars must be at least 1 and min_chars at least 0, not {max_chars} and {min_chars}")
    whole_words = None
    paragraphs = _paragraphs(text)
    whole = " ".join(paragraphs)
    found = whole_words.finditer(whole) if whole_words else ()
    inside = frozenset(index for match in found for index in range(match.start() + 1, match.end()))
    breaks = {length - 1 for length in accumulate(len(paragraph) + 1 for paragraph in paragraphs)} - inside
    ends = [(end, is_strong) for end, is_strong in _sentence_ends(whole) if end not in inside]
    # A paragraph without a full stop is a title or an item of a list: it is joined to no other.
    titles = breaks.difference(end for end, _ in ends)
    strong = breaks.union(end for end, is_strong in ends if is_strong)
    weak = [end for end, is_strong in ends if not is_strong]
    pieces: list[_Span] = []

    def are_joinable(first: _Span, second: _Span) -> bool:
        fits = second[1] - first[0] <= max_chars
        if first[1] not in breaks:
            return fits
        return fits and titles.isdisjoint((first[1], second[1])) and _is_speakable(whole[slice(*second)])

    def join_short_end() -> None:
        if len(pieces) > 1 and _length(pieces[-1]) < min_chars and are_joinable(*pieces[-2:]):
            pieces[-2:] = [(pieces[-2][0], pieces[-1][1])]

    for span in _spans(whole, sorted(strong), weak, inside, max_chars):
        needs_join = pieces and (_length(pieces[-1]) < min_chars or not _is_speakable(whole[slice(*span)]))
        if needs_join and are_joinable(pieces[-1], span):
            pieces[-1] = (pieces[-1][0], span[1])
        else:
            join_short_end()  # what does not go with the next may go with the one before
            pieces.append(span)
    join_short_end()
    return [piece for span in pieces if _is_speakable(piece := whole[slice(*span)])]


def _length(span: _Span) -> int:
    return span[1] - span[0]


def speech_cap_frames(text: str, frames_per_second: float = 12.5) -> int:
    """More frames than saying `text` can need: a generation that gets there has run away.

    Counts what a brisk reader needs (a letter 65 ms, a capital 0.2 s because it may be spelled, a Chinese character,
    kana or Korean syllable 0.25 s, a digit 0.4 s, a mark 0.2 s, a symbol or emoji 0.4 s), times 4: the slowest that
    users report is a word a second. Never under 3 s.
    """
    reading_s = sum(count * _seconds(char) for char, count in Counter(text).items())
    return math.ceil(max(_CAP_LEAST_S, _CAP_HEAD_S + _CAP_FACTOR * reading_s) * frames_per_second)


def _seconds(char: str) -> float:
    """Time to read one character; see `speech_cap_frames`."""
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


def _paragraphs(text: str) -> list[str]:
    # Whitespace stays for now, though most of it is of category Cc: blank lines still mean something.
    kept = "".join(char for char in text if char.isspace() or not _is_control(char))
    if len(kept) != len(text):
        log.warning("removed %d control characters from the text", len(text) - len(kept))
    paragraphs: list[list[str]] = [[]]
    for line in unicodedata.normalize("NFC", kept).splitlines():
        if words := line.split():
            paragraphs[-1] += words
        else:
            paragraphs.append([])
    joined = [" ".join(words) for words in paragraphs if words]
    if not any(_is_speakable(paragraph) for paragraph in joined):
        raise ValueError(f"nothing to say: no letter or digit in {text[:40]!r}; pass some words")
    return joined


def _is_control(char: str) -> bool:
    """NUL and its like, lone surrogates (no UTF-8 has them) and byte order marks. Joiners stay: Persian needs them."""
    return unicodedata.category(char) in ("Cc", "Cs") or char == "\ufeff"


def _is_speakable(text: str) -> bool:
    return any(map(str.isalnum, text))


def _sentence_ends(text: str) -> Iterator[tuple[int, bool]]:
    """Positions behind the sentences of `text`, and whether each is beyond doubt."""
    for match in _ENDS.finditer(text):
        run, end = match["run"], match.end()
        following = text[end : end + 8].lstrip(_OPENERS)[:1]
        if match["space"] is None and (_WIDE_SET.isdisjoint(run) or (run == "．" and following.isdecimal())):
            continue  # 3.14, example.com
        if run != ".":
            yield end, not following.islower()
            continue
        word = text[max(0, match.start() - _LONGEST_WORD) : match.start()].rsplit(" ", 1)[-1].lstrip(_OPENERS).lower()
        if word in _NEVER_ENDS or (word in _NUMBERED and following.isdecimal()):
            continue
        if len(word) == 1 and word.upper() != word:
            continue  # an initial
        doubtful = word in _MAYBE_ENDS or _DOTTED.fullmatch(word) or _SHORT_NUMBER.fullmatch(word)
        yield end, not doubtful and not following.islower()


def _spans(text: str, ends: list[int], weak: list[int], inside: frozenset[int], max_chars: int) -> Iterator[_Span]:
    """Sentences, and the parts of those that are too long, without space around them."""
    start = 0
    for end in ends:
        start += text.startswith(" ", start)
        while end - start > max_chars:
            cut = _cut(text, start, end, weak, inside, max_chars)
            yield start, cut
            start = cut + text.startswith(" ", cut)
        if start < end:
            yield start, end
            start = end


def _cut(text: str, start: int, end: int, weak: list[int], inside: frozenset[int], max_chars: int) -> int:
    """Where to end the first part of a long sentence: near an even share of it, so that no crumb is left over."""
    share = math.ceil((end - start) / math.ceil((end - start) / max_chars))
    lowest, highest = start + max(1, share // 2), start + max_chars
    candidates = weak[bisect_left(weak, lowest) : bisect_right(weak, highest)]
    for pattern in _CUTS:
        # One character more, for those that look at the space behind the cut.
        candidates = candidates or [match.end() for match in pattern.finditer(text, lowest, highest + 1)]
        candidates = [cut for cut in candidates if cut <= highest and cut not in inside]
    if candidates:
        return min(candidates, key=lambda cut: abs(cut - start - share))
    anywhere = (*range(start + share, start, -1), *range(start + share + 1, highest))
    return next((cut for cut in anywhere if cut not in inside and _is_between_graphemes(text, cut)), highest)


def _is_between_graphemes(text: str, index: int) -> bool:
    """Whether `index` is no place inside what a reader sees as one character.

    The rules of UAX 29 that matter here: combining marks, joiners, conjuncts, skin tones and flags.
    """
    before, after = text[index - 1], text[index]
    if before == "\u200d" or unicodedata.combining(before) == _VIRAMA:
        return False
    if unicodedata.category(after)[0] == "M" or after in "\u200c\u200d" or "\U0001f3fb" <= after <= "\U0001f3ff":
        return False
    return not (_is_flag_half(before) and _is_flag_half(after))


def _is_flag_half(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


class SentenceSplitter:
    def __init__(self, max_chars=MAX_CHARS, min_chars=MIN_CHARS, whole_words=()):
        self._t = ""

    def feed(self, piece):
        self._t += piece
        return []

    def end(self):
        return split_sentences(self._t)


def in_two(text, whole_words=()):
    words = text.split(" ")
    if len(words) < 2:
        return None
    n = len(words) // 2
    return " ".join(words[:n]), " ".join(words[n:])
