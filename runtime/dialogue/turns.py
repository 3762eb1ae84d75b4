"""What is to be said, by whom, in whose voice: from the words of a command, a script file or a pipe, to turns.

It reads and checks; nothing here needs the model, but for a recording, which becomes a voice when a codec is there.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import cast

from ...core.errors import MisoError
from ..audio.samples import Samples
from ..synthesis.characters import is_speakable
from ..voice import Encoder, Voice, read_recording
from .grammar import Line
from .script import read_script
from .standard_input import blocks_of, lines_as_they_come

SAVED_VOICE_SUFFIX = ".safetensors"
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Turn:
    """One piece of text of one speaker."""

    text: str | Iterable[str]
    speaker: int | None
    """None: the voice's, or 0."""
    voice: Voice | None

    @property
    def number(self) -> int:
        """Of the speaker."""
        if self.speaker is not None:
            return self.speaker
        return self.voice.speaker if self.voice is not None else 0


@dataclass(frozen=True)
class Recording:
    """A voice that has yet to be encoded."""

    path: Path
    samples: Samples
    text: str


def read_lines(text: str | None, file: str | None) -> list[Line] | Iterator[Line]:
    """The lines of a text, or of a script file; "-" for either is standard input, whose lines are read as they come.

    Raises `ValueError` on text with nothing to say, and as `script.read_script`; of standard input when it is read.
    """
    if STANDARD_INPUT in (text, file):
        if sys.stdin is None:
            raise MisoError("standard input is closed: pass the text, or --file")
        return lines_as_they_come(blocks_of(cast(BufferedIOBase, sys.stdin.buffer)), "standard input")
    if file is not None:
        return read_script(Path(file))
    assert text is not None
    if not is_speakable(text):
        raise ValueError(f"nothing to say: no letter or digit in {text[:40]!r}; pass some words")
    return [Line(None, text, None, 1)]


def read_voice(path: Path, text: str | None) -> Voice | Recording:
    """A saved voice, or a recording with the words that are said in it.

    Raises `ValueError` if a recording has no `text`, or a saved voice has one too many, and as `read_audio` and
    `Voice.load`.
    """
    if path.suffix == SAVED_VOICE_SUFFIX:
        if text is not None:
            raise ValueError(f"{path}: a saved voice has its text in it: leave --voice-text out")
        return Voice.load(path)
    samples = read_recording(path)
    if text is None or not text.strip():
        raise ValueError(f"{path}: a recording needs --voice-text, the words that are said in it, word for word")
    return Recording(path, samples, text)


def encoded(voice: Voice | Recording | None, codec: Encoder, speaker: int | None) -> Voice | None:
    """The voice, as that of `speaker` if one is given."""
    if isinstance(voice, Recording):
        return Voice.from_audio(voice.samples, voice.text, codec, speaker=speaker or 0, name=voice.path.stem)
    return voice if voice is None or speaker is None else replace(voice, speaker=speaker)


class Cast:
    """Who speaks the lines of a script, and in whose voice: in that which a line names, or else in the default.

    In a prompt the voice and the text have the same speaker: only then does the model take the one for the other's.

    Args:
        directory: Where paths in a script start.
        speaker: Number of whoever is not named.
    """

    def __init__(self, directory: Path, speaker: int | None = None) -> None:
        self._directory, self._speaker = directory, speaker
        self._voices: dict[str, Voice] = {}

    def checked(self, lines: list[Line] | Iterator[Line]) -> list[Line] | Iterator[Line]:
        """The lines, of which all that are known are looked at, and the first of those that come. Raises as `voice`."""
        if isinstance(lines, list):
            for line in lines:
                self.voice(line)
            return lines
        first = next(lines)
        self.voice(first)
        return chain([first], lines)

    def voice(self, line: Line) -> Voice | None:
        """The voice that a line names. It is read once.

        Raises `ValueError` or `FileNotFoundError` with the line, also if it has a speaker of its own and there is one.
        """
        if line.speaker is not None and self._speaker is not None:
            raise ValueError(f"line {line.number}: has a speaker of its own: leave --speaker out")
        if line.voice is None:
            return None
        if line.voice not in self._voices:
            path = self._directory / line.voice
            if path.suffix != SAVED_VOICE_SUFFIX:
                raise ValueError(
                    f"line {line.number}: voice {line.voice!r} is no saved voice ({SAVED_VOICE_SUFFIX}). Make one of a "
                    f"recording: --voice {line.voice} --voice-text WORDS --save-voice {path.stem}{SAVED_VOICE_SUFFIX}"
                )
            try:
                self._voices[line.voice] = Voice.load(path)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"line {line.number}: {error}") from error
        return self._voices[line.voice]

    def turn(self, line: Line, default: Voice | None) -> Turn:
        """The turn of a line. Raises as `voice`."""
        voice = self.voice(line) or default
        number = self._speaker if line.speaker is None else line.speaker
        if voice is not None and number is not None:
            voice = replace(voice, speaker=number)
        return Turn(line.text, number, voice)
