"""A script that is read while it comes: each turn is there as soon as it is whole, and plain text piece by piece.

The forms are those of `script.py`, told by the first lines alone: what begins with `{` is JSON lines; `1: text`, or two
lines of `name: text`, is a dialogue, in which a later line of nobody is spoken by the speaker before it; anything else
is plain text. A name becomes the lowest number that nobody has so far, so that one which appears later as a number is
then the same speaker. It knows no sentences and no voices.
"""

import codecs
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from ..synthesis.characters import is_speakable
from .grammar import (
    Line,
    Numbered,
    Written,
    dialogue_turn,
    is_json,
    is_prose,
    json_turn,
    nothing_to_say,
    spoken,
)
from .script import MAX_SCRIPT_BYTES, check_encoding, not_utf8

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 16
_HEAD_BYTES = 64
_ENOUGH_BYTES = 4
"""To tell UTF-16 from text that has only begun."""


def blocks_of(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """What is there, without waiting for more."""
    while block := stream.read1(_BLOCK_BYTES):
        yield block


def lines_as_they_come(blocks: Iterable[bytes], name: str) -> Iterator[Line]:
    """The turns in `blocks`, which are read as turns are asked for. `name` is what errors call it.

    Raises as `parse_script`, but each error after the turns before it. There is no limit but on a line that has to be
    whole.
    """
    text = _Text(_decoded(blocks, name), name)
    first = text.take(is_prose)
    if first is None:
        raise nothing_to_say(name, is_empty=True)
    if is_json(first.text):
        yield from spoken(_json_turns(chain([first], text), name), name)
        return
    begun = [first]
    turn = dialogue_turn(first)
    if turn is not None and not isinstance(turn.speaker, int):
        second = text.take(is_prose)
        begun += [] if second is None else [second]
        if second is None or dialogue_turn(second) is None:
            turn = None
    if turn is not None:
        yield from spoken(_dialogue(chain(begun, text), name), name)
    else:
        yield from _plain(begun, text, name)


class _Text:
    """Text of which lines are taken one by one, those that are not blank, or the rest as it comes."""

    def __init__(self, pieces: Iterator[str], name: str) -> None:
        self._pieces, self._name = pieces, name
        self._ahead, self._begin, self._number = "", 0, 1

    def __iter__(self) -> Iterator[Numbered]:
        while (line := self.take()) is not None:
            yield line

    def take(self, is_enough: Callable[[str], bool] = lambda _: False) -> Numbered | None:
        """The next line, or of one that has not yet ended as much as is enough. None at the end."""
        searched = self._begin
        while True:
            if (end := self._ahead.find("\n", searched)) >= 0:
                line = Numbered(self._number, self._ahead[self._begin : end], "\n")
                self._begin = searched = end + 1
                self._number += 1
                if line.text.strip():
                    return line
                continue
            begun = Numbered(self._number, self._ahead[self._begin :])
            if len(begun.text) > MAX_SCRIPT_BYTES:
                raise ValueError(
                    f"{self._name}, line {self._number}: longer than {MAX_SCRIPT_BYTES >> 20} MB, "
                    "which is no line of a script; split it"
                )
            piece = None if is_enough(begun.text) else next(self._pieces, None)
            if piece is None:
                self._ahead, self._begin = "", 0
                return begun if begun.text.strip() else None
            self._ahead, self._begin, searched = begun.text + piece, 0, len(begun.text)

    def rest(self) -> Iterator[str]:
        """What was not taken."""
        yield self._ahead[self._begin :]
        yield from self._pieces


def _json_turns(lines: Iterable[Numbered], name: str) -> Iterator[Written]:
    return (json_turn(line, name) for line in lines)


def _dialogue(lines: Iterable[Numbered], name: str) -> Iterator[Written]:
    speaker: int | str | None = None
    for line in lines:
        turn = dialogue_turn(line)
        if turn is None:
            log.warning("%s, line %d: not `speaker: text`, so the speaker before it says it", name, line.number)
            turn = Written(speaker, line.text.strip(), None, line.number)
        speaker = turn.speaker
        yield turn


def _plain(begun: list[Numbered], text: _Text, name: str) -> Iterator[Line]:
    """One turn, when there is a letter or digit in it; an error comes after it, so that what came before is said."""
    held, number = [], begun[0].number
    for line in begun:
        held.append("\n" * (line.number - number) + line.text + line.end)
        number = line.number + 1
    rest = text.rest()
    while not is_speakable(held[-1]):
        piece = next(rest, None)
        if piece is None:
            raise nothing_to_say(name, is_empty=False)
        held.append(piece)
    failures: list[ValueError] = []
    yield Line(None, chain(["".join(held).lstrip()], _up_to_error(rest, failures)), None, begun[0].number)
    if failures:
        raise failures[0]


def _up_to_error(pieces: Iterator[str], failures: list[ValueError]) -> Iterator[str]:
    try:
        yield from pieces
    except ValueError as error:
        failures.append(error)


def _decoded(blocks: Iterable[bytes], name: str) -> Iterator[str]:
    """UTF-8 as text with `\\n` for every end of a line. An error comes after the text before it."""
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    waiting, offset, line = b"", 0, 1
    for block, is_last in chain(((block, False) for block in _told_from_utf16(blocks, name)), [(b"", True)]):
        waiting += block
        error: UnicodeDecodeError | None = None
        try:
            text, taken = codecs.utf_8_decode(waiting, "strict", is_last)
        except UnicodeDecodeError as caught:
            error, taken = caught, caught.start
            text = waiting[:taken].decode()
        text = text if offset else text.removeprefix("\ufeff")
        piece = ends.decode(text, final=is_last or error is not None)
        offset, line = offset + taken, line + piece.count("\n")
        if piece:
            yield piece
        if error is not None:
            raise not_utf8(name, waiting[taken], offset, line) from error
        waiting = waiting[taken:]


def _told_from_utf16(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The blocks, the first not too short to be told from UTF-16. Raises `ValueError` if it is that."""
    head, given = b"", 0
    for block in blocks:
        if given >= _HEAD_BYTES:
            yield block
            continue
        head += block
        if len(head) >= _ENOUGH_BYTES or b"\n" in head:
            check_encoding(head, name)
            yield head[given:]
            given = len(head)
    if given < len(head):
        check_encoding(head, name)
        yield head[given:]
