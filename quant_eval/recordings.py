"""People's speech as prompts: a directory of sound files, each with its words in a text file of the same name.

All that is wrong with any of them is said at once, before a model is loaded. It knows no codec.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from ..core.errors import MisoError
from ..core.files import file_sha256
from ..core.printable import printable
from ..models.mimi import FRAME_RATE_HZ
from ..runtime.audio.reader import FORMATS
from .corpus import Corpus, Prompt, unwritable

_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
"""How files of `FORMATS` are called."""
NAME = "recordings"
"""Of a corpus of these."""
_MOST_TEXT_BYTES = 1 << 16
_NAMED = 20
"""Faults that are said one by one."""


class RecordingsError(MisoError):
    """Recordings cannot be used."""


def read_recordings(directory: Path, max_positions: int) -> tuple[Prompt, ...]:
    """Prompts with `audio`, by name, so that their order is the same everywhere.

    Args:
        directory: Sound files, and NAME.txt for each; what is neither, and what lies deeper, is passed over.
        max_positions: Of the model: a recording must fit in with its words.

    Raises:
        FileNotFoundError: There is no such directory.
        RecordingsError: It has no recordings; or some lack their words, are no sound or too long, each of them named.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory; expected one of recordings ({FORMATS})")
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise RecordingsError(
            f"{directory}: has no recordings; expected {FORMATS}, and NAME.txt with the words of each"
        )
    read = {path: (_words(path), _sound_fault(path, max_positions)) for path in paths}
    faults = [fault for words, sound in read.values() for fault in (words[1], sound) if fault]
    names = Counter(
        path.name.casefold() for path in paths
    )  # clips are called by them, also where case is no difference
    faults += [
        f"{path.name} is there twice, but for case: rename it" for path in paths if names[path.name.casefold()] > 1
    ]
    if faults:
        raise RecordingsError(f"{directory}: {in_a_line(faults)}")
    return tuple(Prompt(path.name, "recording", words[0], audio=path) for path, (words, _) in read.items())


def recordings_corpus(prompts: tuple[Prompt, ...]) -> Corpus:
    """Recordings as a corpus of their own."""
    return Corpus(NAME, prompts, recordings_sha256(prompts))


def beside(corpus: Corpus, recordings: Corpus) -> Corpus:
    """A corpus, and recordings after it. Raises `RecordingsError` if a recording is called as a prompt of it is."""
    prompts = (*corpus.prompts, *recordings.prompts)
    ids = Counter(prompt.id.casefold() for prompt in prompts)
    if faults := [
        f"{prompt.id} is called as a prompt of {corpus.name}"
        for prompt in recordings.prompts
        if ids[prompt.id.casefold()] > 1
    ]:
        raise RecordingsError(f"{in_a_line(faults)}: rename the recording")
    parts = (corpus, recordings)
    both = hashlib.sha256(json.dumps([part.sha256 for part in parts]).encode()).hexdigest()
    return Corpus(f"{corpus.name} + {recordings.name}", prompts, both, parts)


def recorded_s(audio: Path) -> float:
    """How long a recording is, as its header says. Errors as `soundfile.info`."""
    return float(soundfile.info(str(audio)).duration)


def in_a_line(faults: Sequence[str]) -> str:
    """The first faults, and how many more there are."""
    more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return f"{printable('; '.join(faults[:_NAMED]))}{more}"


def recordings_sha256(prompts: Iterable[Prompt]) -> str:
    """It changes with their names, their words and their sound."""
    plain = [[each.id, each.text, file_sha256(each.audio)] for each in prompts if each.audio is not None]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _words(path: Path) -> tuple[str, str]:
    """What is said, and what is wrong with it."""
    words_path = path.with_suffix(".txt")
    name = words_path.name
    if words_path.exists() and not words_path.is_file():  # a named pipe would be waited for
        return "", f"{name} is no file"
    try:
        with words_path.open("rb") as file:
            text = file.read(_MOST_TEXT_BYTES + 1)
        words = " ".join(text.decode("utf-8-sig").split())
    except FileNotFoundError:
        return "", f"{path.name} has no {name} with its words"
    except OSError as error:
        return "", f"{name} cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        return "", f"{name} is not UTF-8 text"
    fault = unwritable(words)
    if not words or len(text) > _MOST_TEXT_BYTES:
        fault = f"is {'empty' if not words else 'too long'}: it must have the words of {path.name}"
    return ("", f"{name} {fault}") if fault else (words, "")


def _sound_fault(path: Path, max_positions: int) -> str:
    """What is wrong with the sound, as far as its header says."""
    if path.exists() and not path.is_file():
        return f"{path.name} is no file"
    try:
        with soundfile.SoundFile(str(path)) as file:
            seconds = file.frames / file.samplerate
    except UnicodeEncodeError:
        return f"{path.name} has a name that is not UTF-8: rename it"
    except (soundfile.SoundFileRuntimeError, OSError):
        return f"{path.name} is not sound that can be read"
    most_s = max_positions / FRAME_RATE_HZ
    return (
        f"{path.name} has {seconds:.0f} s, the model hears {most_s:.0f} s at most: cut it" if seconds > most_s else ""
    )
