"""Clips as data URIs, so that a page plays them by itself. Knows no page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import soundfile

BUDGET_BYTES = 12_000_000
"""Of 16-bit WAV in one page. Above it MP3, with which a page of 40 long clips is still a few megabytes."""


@dataclass(frozen=True)
class Sounds:
    """Data URIs by file name; names that could not be read are missing. `is_lossy` if they had to be MP3."""

    uris: dict[str, str]
    is_lossy: bool


def embedded(names: list[str], folder: Path) -> Sounds:
    """The files called `names` in `folder`. One that is not there, or is no audio, is left out.

    Names come from a document: those that lead out of the folder are left out as well.
    """
    paths = {name: folder / name for name in dict.fromkeys(names) if _is_inside(name)}
    wavs = {name: wav for name, path in paths.items() if (wav := _encoded(path, "WAV")) is not None}
    if sum(map(len, wavs.values())) <= BUDGET_BYTES:
        return Sounds({name: _data_uri("audio/wav", wav) for name, wav in wavs.items()}, is_lossy=False)
    mp3s = {name: mp3 for name in wavs if (mp3 := _encoded(paths[name], "MP3")) is not None}
    return Sounds({name: _data_uri("audio/mpeg", mp3) for name, mp3 in mp3s.items()}, is_lossy=True)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _encoded(path: Path, kind: str) -> bytes | None:
    try:
        samples, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
        if not len(samples):
            return None
        content = io.BytesIO()
        soundfile.write(content, samples, rate_hz, format=kind, subtype="PCM_16" if kind == "WAV" else None)
    except (OSError, ValueError, soundfile.LibsndfileError):
        return None
    return content.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
