"""A process of its own that reads one clip of a stranger: bytes at standard input, samples at standard output.

Decoders are where strangers' bytes do harm. What they can reach here is this process alone: it may take a little
memory and time, and open nothing. It ends with 0 and float32 samples, 24 kHz, mono; or with `REFUSED` and one line.
"""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.reader import EMPTY, read_sound, usable
from ...runtime.audio.samples import Samples

REFUSED = 3
"""Neither Python nor a signal ends a process so."""

MEMORY_BYTES = 1 << 30
"""Of addresses, most of which are never touched: Python, NumPy and FFmpeg take 0.2 GB of them."""
CPU_S = 10
"""Starting and reading 30 s of sound take 1 s."""

_CONTAINERS = (
    ("matroska", 0, b"\x1a\x45\xdf\xa3"),
    ("mov", 4, b"ftyp"),
    ("aac", 0, b"\xff\xf1"),
    ("aac", 0, b"\xff\xf9"),
    ("amr", 0, b"#!AMR"),
)
"""What browsers and phones record and libsndfile does not read: FFmpeg's name, and which bytes stand where.

FFmpeg gets nothing else and guesses nothing: it knows formats that are lists of other files, to be opened."""
_FORMATS = "WAV, FLAC, Ogg, MP3, AIFF, AAC, AMR, MP4 (M4A, MOV) and WebM"
"""All that is read."""
_CODECS = ("aac", "alac", "amrnb", "amrwb", "flac", "mp3", "opus", "pcm_s16le", "pcm_f32le", "vorbis")


def main(max_seconds: float) -> int:
    """Read the clip, write what is in it, and return how to end."""
    data = sys.stdin.buffer.read()
    container = next((name for name, start, magic in _CONTAINERS if data.startswith(magic, start)), None)
    if container is not None:
        # While files may be opened; 0.1 s that most clips do not need. PyAV would import the second when it opens one.
        importlib.import_module("av"), importlib.import_module("av.subtitles.stream")
    _shut_in()
    try:
        if not data:
            raise ValueError(EMPTY)
        if container is None:
            samples = read_sound(io.BytesIO(data), max_seconds=max_seconds, formats=_FORMATS)
        else:
            samples = _read_container(data, container, max_seconds)
        answer = samples[: int(max_seconds * SAMPLE_RATE_HZ)].tobytes()  # the resampler may round up
    except (ValueError, MemoryError) as error:
        sys.stdout.buffer.write((str(error) or "it needs more memory than a clip may").encode())
        return REFUSED
    sys.stdout.buffer.write(answer)
    return 0


def _shut_in() -> None:
    """Take from this process what decoding does not need. Windows has nothing of it."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415

    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        with suppress(ValueError):  # macOS limits no addresses; and lower limits than these may stay
            resource.setrlimit(what, (most, most))


def _read_container(data: bytes, container: str, max_seconds: float) -> Samples:
    import av  # noqa: PLC0415

    try:
        with av.open(io.BytesIO(data), format=container, options={"codec_whitelist": ",".join(_CODECS)}) as file:
            if not file.streams.audio:
                raise ValueError("there is no sound in it. Record or export it again.")
            stream = file.streams.audio[0]
            if (codec := stream.codec_context.name) not in _CODECS:
                raise ValueError(f"its sound is {codec[:40]!r}, expected one of {', '.join(_CODECS)}")
            resampler = av.AudioResampler(format="fltp")

            def blocks() -> Iterator[Samples]:
                for frame in file.decode(stream):
                    for plain in resampler.resample(frame):
                        yield plain.to_ndarray().astype(np.float32, copy=False).T

            promised_s = None if file.duration is None else file.duration / av.time_base
            return usable(blocks(), stream.rate, max_seconds=max_seconds, promised_s=promised_s)
    except av.FFmpegError as error:
        raise ValueError(
            f"not audio that can be read ({error.strerror}). Record it again, or convert it, for example with "
            "`ffmpeg -i IN voice.wav`."
        ) from error


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
