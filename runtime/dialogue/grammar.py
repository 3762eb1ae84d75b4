"""One line of a script: JSON, or `speaker: text`; and the turns that such lines are.

It knows neither files nor what a voice is.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..synthesis.characters import is_speakable

log = logging.getLogger(__name__)

MAX_SPEAKER = 9999

_KEYS = ("speaker", "text", "voice")
# By what a name does not have: many scripts write vowels as marks, which `\w` leaves out.
_NAME_CHAR = r"""[^\s:\uff1a,;!?"()\[\]{}/\\]"""
_NAME = rf"[^\W\d_]{_NAME_CHAR}*(?:[ \t]+{_NAME_CHAR}+){{0,2}}"
_DIALOGUE = re.compile(rf"(?P<speaker>\d{{1,4}}|{_NAME})\s*(?::\s+|\uff1a\s*)(?P<text>\S.*)")
_DIALOGUE_BEGUN = re.compile(rf"(?:\d{{1,4}}|{_NAME})?\s*(?:[:\uff1a].*)?")
_LOOKED_AT = 1000
"""Characters of a line that is not whole: looking at all of it again and again would take long."""


@dataclass(frozen=True)
class Line:
    """One turn: what one speaker says."""

    speaker: int | None
    """None where nobody is named."""
    text: str | Iterable[str]
    """As written, surrounding space removed; with at least one letter or digit. In pieces if it has yet to come."""
    voice: str | None
    """Path of the voice to use, as written in the file."""
    number: int
    """Line of the file where it begins, from 1."""


class Numbered(NamedTuple):
    """A line as it is written."""

    number: int
    text: str
    end: str = ""
    """A line feed, unless it is the last one or has not ended yet."""


@dataclass(frozen=True)
class Written:
    """A `Line` before names are numbers."""

    speaker: int | str | None
    text: str
    voice: str | None
    number: int


def nothing_to_say(name: str, *, is_empty: bool) -> ValueError:
    """The error of a script without words."""
    if is_empty:
        return ValueError(f"{name}: nothing to say: the file is empty; write some text into it")
    return ValueError(f"{name}: nothing to say: no letter or digit in its text; write some words into it")


def spoken(turns: Iterable[Written], name: str, own: Iterable[int] = ()) -> Iterator[Line]:
    """The turns with their speakers' numbers: their own, or the lowest that is free, in order of appearance.

    Turns without a letter or digit ("...") are left out with a warning. `own` are numbers of speakers that are known to
    appear. Raises `ValueError` at the end if there was nothing to say.
    """
    numbers: dict[int | str, int] = {number: number for number in own}
    used, lowest, is_silent = set(numbers), 0, True
    for turn in turns:
        if isinstance(turn.speaker, int):
            used.add(turn.speaker)
            numbers.setdefault(turn.speaker, turn.speaker)
        elif turn.speaker is not None and turn.speaker not in numbers:
            while lowest in used:
                lowest += 1
            used.add(lowest)
            numbers[turn.speaker] = lowest
            log.info("%s: speaker %d is %s", name, lowest, turn.speaker)
        if is_speakable(turn.text):
            is_silent = False
            speaker = None if turn.speaker is None else numbers[turn.speaker]
            yield Line(speaker, turn.text, turn.voice, turn.number)
        else:
            log.warning("%s, line %d: left out, nothing to say in %r", name, turn.number, turn.text[:40])
    if is_silent:
        raise nothing_to_say(name, is_empty=False)


def is_json(line: str) -> bool:
    """Whether a script that begins with this line is JSON lines."""
    return line.lstrip().startswith("{")


def dialogue_turn(line: Numbered) -> Written | None:
    """The turn of a line that is `speaker: text`."""
    match = _DIALOGUE.fullmatch(line.text.strip())
    return match and Written(_speaker(match["speaker"]), match["text"], None, line.number)


def is_prose(begun: str) -> bool:
    """Whether a line that begins so will not be `speaker: text`, nor JSON, however it goes on."""
    begun = begun.lstrip()[:_LOOKED_AT].rstrip()
    return not is_json(begun) and _DIALOGUE_BEGUN.fullmatch(begun) is None


def json_turn(line: Numbered, name: str) -> Written:
    """The turn of a line that must be a JSON object. Raises `ValueError` that names the line and what is wrong."""
    where = f"{name}, line {line.number}"
    try:
        entry = json.loads(line.text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:  # all that json raises, bad numbers included
        what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"{where}: no JSON ({what}); write one object a line") from error
    if not isinstance(entry, dict):
        raise ValueError(f'{where}: a JSON {type(entry).__name__}, expected an object like {{"text": "Hello"}}')
    if unknown := sorted(entry.keys() - set(_KEYS)):
        raise ValueError(f"{where}: unknown key {unknown[0][:40]!r}; known are {', '.join(_KEYS)}")
    text, voice = entry.get("text"), entry.get("voice")
    speaker = _speaker(entry["speaker"]) if _is_speaker(entry.get("speaker")) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "text" must be some text, not {_short(text)}')
    if speaker is None and "speaker" in entry:
        raise ValueError(
            f'{where}: "speaker" must be a number from 0 to {MAX_SPEAKER} or a name, not {_short(entry["speaker"])}'
        )
    if voice is not None and (not isinstance(voice, str) or not voice.strip()):
        raise ValueError(f'{where}: "voice" must be the path of a voice, not {_short(voice)}')
    return Written(speaker, text.strip(), voice, line.number)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := [key for key in _KEYS if keys.count(key) > 1]:
        raise ValueError(f"key {twice[0]!r} twice")
    return dict(pairs)


def _is_speaker(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SPEAKER


def _speaker(value: int | str) -> int | str:
    """A number even where it is written as text; otherwise a name with its words one space apart."""
    if isinstance(value, int):
        return value
    name = " ".join(value.split())
    return int(name) if name.isdecimal() and len(name) <= len(str(MAX_SPEAKER)) else name


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."
