"""Reading a recording, such as a reference voice, as samples. The formats are libsndfile's.

Knows no codec and no model: what a voice needs beyond being heard is decided elsewhere.
"""

import logging
import math
import os
from pathlib import Path

import numpy as np
import soundfile

from ...core.errors import MisoError
from ...models.mimi import SAMPLE_RATE_HZ
from .samples import RATES_HZ, Samples, peak_dbfs, resampled

log = logging.getLogger(__name__)

SILENT_RECORDING_DBFS = -60.0
MIN_SECONDS = 0.3


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
                raise ValueError(f"{path}: the file is empty (0 bytes). Record or copy it again.")
        samples, rate_hz = _read_mono(path, max_seconds)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file. Expected a recording: WAV, FLAC, OGG or MP3.") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path}: a directory. Expected a recording: WAV, FLAC, OGG or MP3.") from error
    except OSError as error:
        raise MisoError(f"{path}: cannot be read ({error.strerror})") from error
    except soundfile.SoundFileRuntimeError as error:
        reason = str(error).rsplit(": ", 1)[-1].rstrip(".") or "damaged"
        raise ValueError(
            f"{path}: not audio that can be read ({reason}). WAV, FLAC, OGG, MP3 and AIFF are: "
            "convert it, for example with `ffmpeg -i IN voice.wav`."
        ) from error
    seconds = len(samples) / rate_hz
    if seconds < MIN_SECONDS:
        raise ValueError(f"{path}: {seconds:.2f} s of audio, too short to hear a voice in. Give at least some seconds.")
    peak = check_audible(samples, f"{path}:")
    if peak > 0:
        log.warning("%s: louder than full scale (by %.1f dB): scaled down", path, peak)
        samples = samples / np.abs(samples).max()
    return resampled(samples, rate_hz, sample_rate_hz)


def check_audible(samples: Samples, what: str) -> float:
    """The peak of `samples` in dBFS. Raises `ValueError` that begins with `what` on silence and on NaN."""
    if not np.isfinite(samples).all():
        raise ValueError(f"{what} holds values that are not finite (NaN or infinity). Export it again, as 16-bit PCM.")
    if (peak := peak_dbfs(samples)) < SILENT_RECORDING_DBFS:
        raise ValueError(f"{what} is silence (its peak is {peak:.0f} dBFS). Check the recording, or amplify it.")
    return peak


def _read_mono(path: Path, max_seconds: float) -> tuple[Samples, int]:
    """Samples `[n]` and their rate, read second by second: many channels need no more memory than one."""
    with soundfile.SoundFile(str(path)) as file:
        rate_hz = int(file.samplerate)
        if rate_hz not in RATES_HZ:
            raise ValueError(f"{path}: a sample rate of {rate_hz} Hz, expected 4000 to 192000")
        blocks = [np.zeros(0, np.float32)]
        count = 0
        while len(block := file.read(rate_hz, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1, dtype=np.float32))
            count += len(block)
            if count > max_seconds * rate_hz:
                # Some headers promise what is not there, or nothing: they are not asked before.
                length = f"{file.frames / rate_hz:.1f} s" if file.frames < 1 << 40 else f"over {max_seconds:g} s"
                raise ValueError(
                    f"{path}: {length} of audio, at most {max_seconds:g} s can be used. Cut it, for example with "
                    f"`ffmpeg -i {path.name} -t {max_seconds:g} short.wav`."
                )
    return np.concatenate(blocks), rate_hz
