"""The operator's own voices: `voices.toml` in the directory of voices, read once, when the server starts.

[voices]
narrator = "tom.safetensors"
alloy = { file = "anna.safetensors", speaker = 1 }
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.voice import Voice
from .spelling import check_name, spelled

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "voices.toml"


def named_voices(directory: Path) -> dict[str, Voice]:
    """The voices that `voices.toml` names; none without one. Paths in it start where it lies.

    Raises `ValueError` with one line that says what is wrong in it.
    """
    path = directory / FILE_NAME
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no TOML ({error})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    if unknown := sorted(document.keys() - {"voices"}):
        raise ValueError(f"{path}: unknown entry {unknown[0]!r}; expected one table, [voices]")
    table = document.get("voices", {})
    if not isinstance(table, dict):
        raise ValueError(f"{path}: voices must be a table: write [voices], and a line for each")
    voices = dict[str, Voice]()
    for name, entry in table.items():
        try:
            check_name(name)
            voices[spelled(name)] = _voice(directory, entry)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {name!r}: {error}") from error
    return voices


def _voice(directory: Path, entry: Any) -> Voice:
    known: dict[str, Any] = entry if isinstance(entry, dict) else {"file": entry}
    if unknown := sorted(known.keys() - {"file", "speaker"}):
        raise ValueError(f"unknown entry {unknown[0]!r}; known are file and speaker")
    file = known.get("file")
    if not isinstance(file, str) or not file or "\0" in file:
        raise ValueError(f"its file must be a path in quotes, not {file!r}; `miso-speak --save-voice` makes one")
    voice = Voice.load(directory / file)
    return replace(voice, speaker=known.get("speaker", voice.speaker))
