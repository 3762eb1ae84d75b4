"""What is to be said, by whom, in whose voice: from the words of a command, a script file or a pipe, to turns.

It reads and checks; nothing here needs the model, but for a recording, which becomes a voice when a codec is there.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import MisoError
from ..audio.samples import Samples
from ..voice import Encoder, Voice, read_recording
from .script import MAX_SCRIPT_BYTES, Line, parse_script, read_script

SAVED_VOICE_SUFFIX = ".safetensors"
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Turn:
    """One piece of text of one speaker."""

    text: str
    speaker: int | None
    """None: the voice's, or 0."""
    voice: Voice | None


@dataclass(frozen=True)
class Recording:
    """A voice that has yet to be encoded."""

    path: Path
    samples: Samples
    text: str


def read_lines(text: str | None, file: str | None) -> list[Line]:
    """The lines of a text, or of a script file; "-" for either reads standard input, in any form that a script has.

    Raises `ValueError` on text with nothing to say, and as `script.read_script`.
    """
    if STANDARD_INPUT in (text, file):
        if sys.stdin is None:
            raise MisoError("standard input is closed: pass the text, or --file")
        return parse_script(sys.stdin.buffer.read(MAX_SCRIPT_BYTES + 1), "standard input")
    if file is not None:
        return read_script(Path(file))
    assert text is not None
    if not any(map(str.isalnum, text)):
        raise ValueError(f"nothing to say: no letter or digit in {text[:40]!r}; pass some words")
    return [Line(0, text, None, 1)]


def line_voices(lines: Iterable[Line], directory: Path) -> dict[str, Voice]:
    """The saved voices that lines name, by the name; paths are relative to `directory`.

    Raises `ValueError` or `FileNotFoundError` with the line.
    """
    voices: dict[str, Voice] = {}
    for line in lines:
        if line.voice is None or line.voice in voices:
            continue
        path = directory / line.voice
        if path.suffix != SAVED_VOICE_SUFFIX:
            raise ValueError(
                f"line {line.number}: voice {line.voice!r} is no saved voice ({SAVED_VOICE_SUFFIX}). Make one of a "
                f"recording: --voice {line.voice} --voice-text WORDS --save-voice {path.stem}{SAVED_VOICE_SUFFIX}"
            )
        try:
            voices[line.voice] = Voice.load(path)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"line {line.number}: {error}") from error
    return voices


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


def turns(
    lines: Sequence[Line], voices: dict[str, Voice], default: Voice | None, speaker: int | None = None
) -> list[Turn]:
    """The turns of a script: a line's voice is its own, else `default`.

    `speaker` is the number of lines that have none. In a prompt the voice and the text have the same speaker: only then
    does the model take the one for the other's.

    Raises `ValueError` if there is a `speaker`, and the lines have speakers of their own.
    """
    numbered = any(line.speaker for line in lines)
    if numbered and speaker is not None:
        raise ValueError("these lines have speakers of their own: leave --speaker out")
    result = []
    for line in lines:
        number = line.speaker if numbered or (len(lines) > 1 and speaker is None) else speaker
        voice = voices[line.voice] if line.voice is not None else default
        if voice is not None and number is not None:
            voice = replace(voice, speaker=number)
        result.append(Turn(line.text, number, voice))
    return result
