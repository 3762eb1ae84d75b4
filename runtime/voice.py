"""A voice: a few seconds of somebody's speech as codes, with the words that are said in it.

A prompt begins with it, and the model goes on in that voice. This module does not know how a prompt is built, nor how
the codec works inside; it only calls its `encode`.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from ..core.errors import MisoError
from ..core.files import write_whole
from ..models.mimi import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from .audio.reader import check_audible, read_audio

MAX_VOICE_SECONDS = 30.0
"""The prompt and what is said share 2048 positions, 163 s in all. A voice takes 12.5 of them a second in every
sentence: 30 s leave room for 90 s of speech (the default cap), its text, and the sentence before."""
MAX_VOICE_FRAMES = int(MAX_VOICE_SECONDS * FRAME_RATE_HZ)
MAX_TEXT_CHARS = 2000
"""More than anybody says in 30 s, in any script."""

_FORMAT = "1"
_CODE_LIMIT = 1 << 15
"""Codes are stored as int16."""
_MAX_FILE_BYTES = 1 << 20
"""The longest voice with 64 codebooks is 48 kB."""
_REMEDY = "make the voice again from its audio"


class Encoder(Protocol):
    """What a voice needs of a codec."""

    def encode(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Codes [frames, codebooks] of samples [n], 24 kHz mono."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A reference segment. Raises `ValueError` if it cannot be one; the codes are copied and read-only."""

    codes: npt.NDArray[np.int64]
    """[frames, codebooks]"""
    text: str
    """What is said in it, word for word."""
    speaker: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        if codes.ndim != 2 or 0 in codes.shape or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"a voice is integer codes [frames, codebooks], not {codes.dtype} {list(codes.shape)}")
        if len(codes) > MAX_VOICE_FRAMES:
            raise ValueError(_too_long(len(codes) / FRAME_RATE_HZ))
        if codes.min() < 0 or codes.max() >= _CODE_LIMIT:
            wrong = codes.min() if codes.min() < 0 else codes.max()
            raise ValueError(f"a voice has code {wrong}, expected 0 to {_CODE_LIMIT - 1}; {_REMEDY}")
        if not self.text.strip():
            raise ValueError("a voice needs the words that are said in its audio; pass them as its text")
        if len(self.text) > MAX_TEXT_CHARS:
            raise ValueError(
                f"the text of a voice has {len(self.text)} characters, at most {MAX_TEXT_CHARS} can be said in "
                f"{MAX_VOICE_SECONDS:g} s; pass only what is said in its audio"
            )
        if any("\ud800" <= char <= "\udfff" for char in self.text + self.name):
            raise ValueError("the text of a voice has bytes that are not UTF-8; pass it as UTF-8")
        if isinstance(self.speaker, bool) or not isinstance(self.speaker, int | np.integer) or self.speaker < 0:
            raise ValueError(f"a speaker is a number from 0, not {self.speaker!r}")
        object.__setattr__(self, "speaker", int(self.speaker))
        own = codes.astype(np.int64, order="C", copy=True)
        own.flags.writeable = False
        object.__setattr__(self, "codes", own)

    @classmethod
    def from_audio(
        cls, audio: Path | str | npt.NDArray[np.float32], text: str, codec: Encoder, *, speaker: int = 0, name: str = ""
    ) -> "Voice":
        """Encode a recording: an audio file, or samples [n], 24 kHz mono.

        Raises `ValueError` or `FileNotFoundError` on what is not 30 s or less of audible sound, or without its text.
        """
        if not text.strip():  # before the work, which takes seconds
            raise ValueError("a voice needs the words that are said in its audio; pass them as its text")
        samples = _checked(audio) if isinstance(audio, np.ndarray) else read_recording(Path(audio))
        return cls(codec.encode(samples), text, speaker, name)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that goes into a prompt: equal digests mean equal KV states. The name is not part of it."""
        head = f"{self.codes.shape} {self.speaker} {self.text}".encode()
        return hashlib.sha256(head + self.codes.astype("<i8").tobytes()).hexdigest()

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.codes) / FRAME_RATE_HZ

    def check(self, codebooks: int, cardinality: int) -> None:
        """Raise `ValueError` if the voice was made with another codec than one of these dimensions."""
        if self.codes.shape[1] != codebooks:
            what = f"has {self.codes.shape[1]} codebooks, the model's codec has {codebooks}"
        elif (highest := int(self.codes.max())) >= cardinality:
            what = f"has code {highest}, the model's codec has 0 to {cardinality - 1}"
        else:
            return
        named = f"voice {self.name!r}" if self.name else "the voice"
        raise ValueError(f"{named} {what}; make the voice again from its audio with this model")

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all. Raises `MisoError` if that fails."""
        path = Path(path)
        metadata = {
            "miso.voice": _FORMAT,
            "text": self.text,
            "speaker": str(self.speaker),
            "name": self.name,
            "sample_rate_hz": str(SAMPLE_RATE_HZ),
        }
        content = safetensors.numpy.save({"codes": self.codes.astype(np.int16)}, metadata)
        try:
            write_whole(path, content)
        except OSError as error:
            raise MisoError(
                f"{path}: the voice cannot be written ({error.strerror or error}); choose another place"
            ) from error

    @classmethod
    def load(cls, path: Path | str) -> "Voice":
        """Read what `save` wrote.

        Raises `FileNotFoundError`, or `ValueError` that says what is wrong with the file.
        """
        path = Path(path)
        _check_file(path)
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if "miso.voice" not in metadata or "codes" not in file.keys():  # noqa: SIM118 (no mapping)
                    raise ValueError("safetensors, but not a voice; pass a file that Voice.save wrote")
                if metadata["miso.voice"] != _FORMAT:
                    raise ValueError(
                        f"a voice of format {metadata['miso.voice'][:20]!r}, known is {_FORMAT!r}; update miso-gguf"
                    )
                entry = file.get_slice("codes")
                dtype, shape = entry.get_dtype(), entry.get_shape()
                if dtype != "I16" or len(shape) != 2 or 0 in shape:
                    raise ValueError(f"its codes are {dtype} {shape}, expected I16 [frames, codebooks]; {_REMEDY}")
                codes = file.get_tensor("codes")
            if (rate := metadata.get("sample_rate_hz")) != str(SAMPLE_RATE_HZ):
                raise ValueError(f"a voice at {str(rate)[:20]} Hz, expected {SAMPLE_RATE_HZ}; {_REMEDY}")
            speaker = metadata.get("speaker", "")
            if not (speaker.isdecimal() and len(speaker) < 10):
                raise ValueError(f"its speaker is {speaker[:20]!r}, expected a number; {_REMEDY}")
            return cls(codes, metadata.get("text", ""), int(speaker), metadata.get("name", ""))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a voice file, or a damaged one ({error}); {_REMEDY}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such voice file; check the path, or make the voice from its audio")
    if not path.is_file():
        raise ValueError(f"{path}: not a file; pass a voice file")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise ValueError(f"{path}: the voice file is empty (0 bytes); {_REMEDY}")
    if size_bytes > _MAX_FILE_BYTES:
        raise ValueError(
            f"{path}: {size_bytes} bytes, a voice file has at most {_MAX_FILE_BYTES}; "
            "an audio file must be made into a voice first"
        )


def read_recording(path: Path) -> npt.NDArray[np.float32]:
    """An audio file that can become a voice, as samples [n]. Raises as `read_audio` does; above 30 s `ValueError`."""
    samples = read_audio(path, sample_rate_hz=SAMPLE_RATE_HZ, max_seconds=MAX_VOICE_SECONDS)
    return samples[: int(MAX_VOICE_SECONDS * SAMPLE_RATE_HZ)]  # the resampler may round up


def _checked(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if samples.ndim != 1 or not samples.size or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"the audio of a voice is {samples.dtype} {list(samples.shape)}, expected float32 [n]; "
            f"mix it down to mono at {SAMPLE_RATE_HZ} Hz"
        )
    if samples.size > MAX_VOICE_SECONDS * SAMPLE_RATE_HZ:
        raise ValueError(_too_long(samples.size / SAMPLE_RATE_HZ))
    check_audible(samples, "the audio of a voice")
    return samples.astype(np.float32, copy=False)


def _too_long(seconds: float) -> str:
    return (
        f"the audio of a voice is {seconds:.1f} s long, at most {MAX_VOICE_SECONDS:g} s can be used; "
        "cut it to its best 5 to 15 s"
    )
