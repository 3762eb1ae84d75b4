"""What `--file` reads: who says what, as plain text, as dialogue, or as JSON lines.

- JSON lines, when the file is called `.jsonl` or `.ndjson` or begins with `{`: an object a line, with `text`, and if
  wanted `speaker` (a number from 0, or a name) and `voice` (a path, handed on as written).
- Dialogue, when every line is `speaker: text`. A speaker is a number or a name of at most three words. One such line
  alone may be prose ("Note: this"): it takes two, or a number.
- Anything else is plain text of nobody in particular, in one piece, paragraphs and all.

Names become the numbers that the file does not use, in order of appearance. This module knows neither sentences nor
what a voice is; what is read while it comes is `standard_input.py`'s.
"""

import logging
from pathlib import Path

from .grammar import Line, Numbered, Written, dialogue_turn, is_json, json_turn, nothing_to_say, spoken

log = logging.getLogger(__name__)

MAX_SCRIPT_BYTES = 16 << 20
"""A few hundred hours of speech. What is longer is no script."""


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
    numbered = [Numbered(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise nothing_to_say(name, is_empty=True)
    if name.lower().endswith((".jsonl", ".ndjson")) or is_json(numbered[0].text):
        turns = [json_turn(line, name) for line in numbered]
    else:
        first = numbered[0].number
        turns = _dialogue(numbered, name) or [Written(None, "\n".join(lines[first - 1 :]).strip(), None, first)]
    return list(spoken(turns, name, own=[turn.speaker for turn in turns if isinstance(turn.speaker, int)]))


def check_encoding(head: bytes, name: str) -> None:
    """Raise `ValueError` if what begins so is UTF-16. Without its mark that shows by the zero in every other byte."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:64].count(0) * 3 > len(head[:64]):
        raise ValueError(f"{name}: looks like UTF-16, expected UTF-8; save it again as UTF-8")


def not_utf8(name: str, byte: int, offset: int, line: int) -> ValueError:
    """The error of a byte that is not UTF-8."""
    return ValueError(f"{name}: not UTF-8: byte 0x{byte:02x} at offset {offset}, line {line}; save it again as UTF-8")


def _decoded(content: bytes, name: str) -> str:
    if len(content) > MAX_SCRIPT_BYTES:
        raise ValueError(f"{name}: longer than {MAX_SCRIPT_BYTES >> 20} MB, which is no script; split it")
    check_encoding(content, name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise not_utf8(name, content[error.start], error.start, line) from error


def _dialogue(numbered: list[Numbered], name: str) -> list[Written] | None:
    """The turns if this is a dialogue."""
    found = [(line, dialogue_turn(line)) for line in numbered]
    others = [line.number for line, turn in found if turn is None]
    turns = [turn for _, turn in found if turn is not None]
    if not others and (len(turns) > 1 or isinstance(turns[0].speaker, int)):
        return turns
    if others and len(turns) > len(others):
        log.warning("%s: read as plain text, not as dialogue: line %d is not `speaker: text`", name, others[0])
    return None
