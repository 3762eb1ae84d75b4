"""The sound formats that a client may ask for, by the names of OpenAI's `response_format`, and what HTTP calls them."""

from dataclasses import dataclass
from typing import Literal

FormatName = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
"""What a request may say. Each has a line in `FORMATS`, and a way to be encoded in `encoding.py`."""


@dataclass(frozen=True)
class Format:
    """One of them."""

    name: FormatName
    media_type: str
    """Not `application/octet-stream`: Chromium plays that only when all of it is there."""

    @property
    def ending(self) -> str:
        """Of a file's name, with its dot."""
        return f".{self.name}"


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("mp3", "audio/mpeg"),
        Format("opus", "audio/opus"),
        Format("aac", "audio/aac"),
        Format("flac", "audio/flac"),
        Format("wav", "audio/wav"),
        Format("pcm", "audio/pcm"),
    )
}
"""All formats. Opus lies in Ogg, AAC in ADTS; PCM is 24 kHz, signed 16 bit, little endian, mono, without a header."""
