"""What `--file` reads: who says what, as plain text, as dialogue, or as JSON lines.

- JSON lines, when the file is called `.jsonl` or `.ndjson` or begins with `{`: an object a line, with `text`, and if
  wanted `speaker` (a number from 0, or a name) and `voice` (a path, handed on as written).
- Dialogue, when every line is `speaker: text`. A speaker is a number or a name of at most three words. One such line
  alone may be prose ("Note: this"): it takes two, or a number.
- Anything else is plain text of speaker 0, in one piece, paragraphs and all.

Names become the numbers that the file does not use, in order of appearance. This module knows neither sentences nor
what a voice is.
"""

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_SCRIPT_BYTES = 16 << 20
"""A few hundred hours of speech. What is longer is no script."""
MAX_SPEAKER = 9999

_KEYS = ("speaker", "text", "voice")
# By what a name does not have: many scripts write vowels as marks, which `\w` leaves out.
_NAME_CHAR = r"""[^\s:\uff1a,;!?"()\[\]{}/\\]"""
_NAME = rf"[^\W\d_]{_NAME_CHAR}*(?:[ \t]+{_NAME_CHAR}+){{0,2}}"
_DIALOGUE = re.compile(rf"(?P<speaker>\d{{1,4}}|{_NAME})\s*(?::\s+|\uff1a\s*)(?P<text>\S.*)")


@dataclass(frozen=True)
class Line:
    """One turn: what one speaker says."""

    speaker: int
    text: str
    """As written, surrounding space removed; with at least one letter or digit."""
    voice: str | None
    """Path of the voice to use, as written in the file."""
    number: int
    """Line of the file where it begins, from 1."""


@dataclass(frozen=True)
class _Turn:
    """A `Line` before names are numbers."""

    speaker: int | str
    text: str
    voice: str | None
    number: int


def read_script(path: Path) -> list[Line]:
    """The turns in the file `path`. Raises as `parse_script`, and `OSError` if the file cannot be read."""
    if path.is_dir():
        raise ValueError(f"{path}: a directory, not a script; pass a text file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SCRIPT_BYTES + 1)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; check the path of the script") from error
    return parse_script(content, str(path))


def parse_script(content: bytes, name: str) -> list[Line]:
    """The turns in `content`; `name` is what errors call it, and its extension may give the format.

    Turns without a letter or digit ("...") are left out with a warning. Raises `ValueError`, naming the line, on what
    is not UTF-8, not JSON where it should be, has unknown keys or wrong values, or leaves nothing to say.
    """
    lines = _decoded(content, name).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{name}: nothing to say: the file is empty; write some text into it")
    if name.lower().endswith((".jsonl", ".ndjson")) or numbered[0][1].lstrip().startswith("{"):
        turns = [_json_turn(line, f"{name}, line {number}", number) for number, line in numbered]
    else:
        first = numbered[0][0]
        turns = _dialogue(numbered, name) or [_Turn(0, "\n".join(lines[first - 1 :]).strip(), None, first)]
    numbers = _speaker_numbers(turn.speaker for turn in turns)
    spoken = []
    for turn in turns:
        if any(map(str.isalnum, turn.text)):
            spoken.append(Line(numbers[turn.speaker], turn.text, turn.voice, turn.number))
        else:
            log.warning("%s, line %d: left out, nothing to say in %r", name, turn.number, turn.text[:40])
    if not spoken:
        raise ValueError(f"{name}: nothing to say: no letter or digit in its text; write some words into it")
    if named := {speaker: number for speaker, number in numbers.items() if isinstance(speaker, str)}:
        log.info("%s: speakers %s", name, ", ".join(f"{number} = {speaker}" for speaker, number in named.items()))
    return spoken


def _decoded(content: bytes, name: str) -> str:
    if len(content) > MAX_SCRIPT_BYTES:
        raise ValueError(f"{name}: longer than {MAX_SCRIPT_BYTES >> 20} MB, which is no script; split it")
    # Without its mark UTF-16 shows by the zero in every other byte of Latin text.
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:64].count(0) * 3 > len(content[:64]):
        raise ValueError(f"{name}: looks like UTF-16, expected UTF-8; save it again as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}: not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}, line {where}; "
            "save it again as UTF-8"
        ) from error


def _dialogue(numbered: list[tuple[int, str]], name: str) -> list[_Turn] | None:
    """The turns if this is a dialogue."""
    matches = [(number, _DIALOGUE.fullmatch(line.strip())) for number, line in numbered]
    others = [number for number, match in matches if match is None]
    turns = [_Turn(_speaker(match["speaker"]), match["text"], None, number) for number, match in matches if match]
    if not others and (len(turns) > 1 or isinstance(turns[0].speaker, int)):
        return turns
    if others and len(turns) > len(others):
        log.warning("%s: read as plain text, not as dialogue: line %d is not `speaker: text`", name, others[0])
    return None


def _json_turn(line: str, where: str, number: int) -> _Turn:
    try:
        entry = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:  # all that json raises, bad numbers included
        what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"{where}: no JSON ({what}); write one object a line") from error
    if not isinstance(entry, dict):
        raise ValueError(f'{where}: a JSON {type(entry).__name__}, expected an object like {{"text": "Hello"}}')
    if unknown := sorted(entry.keys() - set(_KEYS)):
        raise ValueError(f"{where}: unknown key {unknown[0][:40]!r}; known are {', '.join(_KEYS)}")
    text, speaker, voice = entry.get("text"), entry.get("speaker", 0), entry.get("voice")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "text" must be some text, not {_short(text)}')
    if not _is_speaker(speaker):
        raise ValueError(
            f'{where}: "speaker" must be a number from 0 to {MAX_SPEAKER} or a name, not {_short(speaker)}'
        )
    if voice is not None and (not isinstance(voice, str) or not voice.strip()):
        raise ValueError(f'{where}: "voice" must be the path of a voice, not {_short(voice)}')
    return _Turn(_speaker(speaker), text.strip(), voice, number)


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


def _speaker_numbers(speakers: Iterable[int | str]) -> dict[int | str, int]:
    """Number of every speaker: their own, or the lowest ones that are free, in order of appearance."""
    appeared = list(dict.fromkeys(speakers))
    own = {speaker for speaker in appeared if isinstance(speaker, int)}
    free = (number for number in count() if number not in own)
    return {speaker: speaker if isinstance(speaker, int) else next(free) for speaker in appeared}
