"""Reading a recording, such as a reference voice, as samples. The formats are libsndfile's.

Knows no codec and no model: what a voice needs beyond being heard is decided elsewhere.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from ...core.errors import MisoError
from ...models.mimi import SAMPLE_RATE_HZ
from .samples import RATES_HZ, Samples, peak_dbfs, resampled

log = logging.getLogger(__name__)

SILENT_RECORDING_DBFS = -60.0
MIN_SECONDS = 0.3
FORMATS = "WAV, FLAC, OGG, MP3 and AIFF"
"""What people have of libsndfile's."""
EMPTY = "the file is empty (0 bytes). Record or copy it again."

_BLOCK_VALUES = 1 << 16
"""Of all channels together, read at once."""


def read_audio(
    path: str | os.PathLike[str], *, sample_rate_hz: int = SAMPLE_RATE_HZ, max_seconds: float = math.inf
) -> Samples:
    """A recording as mono float32 samples `[n]` at `sample_rate_hz`; channels are averaged.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not audio, or not usable: silence, not finite, below 0.3 s, above `max_seconds`.
        MisoError: It cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            if not os.fstat(raw.fileno()).st_size:
                raise ValueError(EMPTY)
        return read_sound(str(path), sample_rate_hz=sample_rate_hz, max_seconds=max_seconds)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file. Expected a recording: WAV, FLAC, OGG or MP3.") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path}: a directory. Expected a recording: WAV, FLAC, OGG or MP3.") from error
    except OSError as error:
        raise MisoError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_sound(
    source: str | BinaryIO,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    max_seconds: float = math.inf,
    formats: str = FORMATS,
) -> Samples:
    """What libsndfile finds in a file that is open, or in that of a name, as `read_audio`.

    Raises `ValueError` that does not say of which file it speaks, but that `formats` can be read; and `OSError`.
    """
    try:
        with soundfile.SoundFile(source) as file:
            rate_hz = int(file.samplerate)
            # Some headers promise what is not there, or nothing: the length is no more than a hint.
            promised_s = file.frames / rate_hz if file.frames < 1 << 40 else None
            name = source if isinstance(source, str) else "a recording"
            return usable(_blocks(file), rate_hz, sample_rate_hz, max_seconds, promised_s, name)
    except soundfile.SoundFileRuntimeError as error:
        reason = str(error).rsplit(": ", 1)[-1].rstrip(".") or "damaged"
        raise ValueError(
            f"not audio that can be read ({reason}). {formats} are: "
            "convert it, for example with `ffmpeg -i IN voice.wav`."
        ) from error


def usable(
    blocks: Iterable[Samples],
    rate_hz: int,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    max_seconds: float = math.inf,
    promised_s: float | None = None,
    name: str = "a recording",
) -> Samples:
    """Sound that comes in `blocks` [n, channels], as `read_audio`; it is read no further than `max_seconds`.

    Raises `ValueError`, which says that there are `promised_s` if it is too long. `name` is for the log.
    """
    if rate_hz not in RATES_HZ:
        raise ValueError(f"a sample rate of {rate_hz} Hz, expected {RATES_HZ[0]} to {RATES_HZ[-1]}")
    parts, count = [np.zeros(0, np.float32)], 0
    for block in blocks:
        parts.append(block.mean(axis=1, dtype=np.float32))
        count += len(block)
        if count > max_seconds * rate_hz:
            length = f"over {max_seconds:g} s" if promised_s is None else f"{promised_s:.1f} s"
            raise ValueError(
                f"{length} of audio, at most {max_seconds:g} s can be used. Cut it, for example with "
                f"`ffmpeg -i IN -t {max_seconds:g} short.wav`."
            )
    samples = np.concatenate(parts)
    if (seconds := len(samples) / rate_hz) < MIN_SECONDS:
        raise ValueError(f"{seconds:.2f} s of audio, too short to hear a voice in. Give at least some seconds.")
    if (peak := check_audible(samples, "")) > 0:
        log.warning("%s: louder than full scale (by %.1f dB): scaled down", name, peak)
        samples = samples / np.abs(samples).max()
    return resampled(samples, rate_hz, sample_rate_hz)


def check_audible(samples: Samples, what: str) -> float:
    """The peak of `samples` in dBFS. Raises `ValueError` that begins with `what` on silence and on NaN."""
    if not np.isfinite(samples).all():
        message = f"{what} holds values that are not finite (NaN or infinity). Export it again, as 16-bit PCM."
        raise ValueError(message.lstrip())
    if (peak := peak_dbfs(samples)) < SILENT_RECORDING_DBFS:
        message = f"{what} is silence (its peak is {peak:.0f} dBFS). Check the recording, or amplify it."
        raise ValueError(message.lstrip())
    return peak


def _blocks(file: soundfile.SoundFile) -> Iterator[Samples]:
    """Bit by bit: many channels need no more memory than one."""
    frames = max(1, _BLOCK_VALUES // file.channels)
    while len(block := file.read(frames, dtype="float32", always_2d=True)):
        yield block
