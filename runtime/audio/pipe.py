"""Where speech goes: a sound file, or raw PCM on standard output for a player to read.

Knows what standard output may not be; the formats are `writer.py`'s.
"""

import sys
from types import TracebackType
from typing import BinaryIO

from ...core.errors import MisoError
from ...models.mimi import SAMPLE_RATE_HZ
from .samples import Samples, to_pcm16
from .writer import AudioWriter, SampleWriter

STANDARD_OUTPUT = "-"


class RawWriter(SampleWriter):
    """Raw PCM (signed 16 bit, little endian, mono) to a pipe or any binary stream, flushed chunk by chunk.

    A context manager; it does not close the stream. A `BrokenPipeError`, a player that was closed, is the caller's.
    What else cannot be written, as to a full disk, is a `MisoError`.

    Args:
        stream: For example `sys.stdout.buffer`.
        sample_rate_hz: Of the output.
        in_rate_hz: Of the samples.
    """

    def __init__(
        self, stream: BinaryIO, sample_rate_hz: int = SAMPLE_RATE_HZ, *, in_rate_hz: int = SAMPLE_RATE_HZ
    ) -> None:
        super().__init__(sample_rate_hz, in_rate_hz)
        self._stream = stream
        self._done = False

    def _emit(self, samples: Samples) -> None:
        try:
            self._stream.write(to_pcm16(samples).astype("<i2").tobytes())
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise MisoError(f"standard output cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Write what the change of sample rate held back. May be called again."""
        if not self._done:
            self._done = True
            self._take(self._resampler.rest())

    def __enter__(self) -> "RawWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def open_output(target: str, sample_rate_hz: int) -> AudioWriter | RawWriter:
    """A writer to the file `target`, or to standard output for "-". Nothing is heard of it before the first samples.

    Raises `ValueError` on a terminal, and as `AudioWriter`.
    """
    if target != STANDARD_OUTPUT:
        return AudioWriter(target, sample_rate_hz)
    if sys.stdout is None:
        raise MisoError("standard output is closed: pipe it to a player, or pass --out FILE")
    if sys.stdout.isatty():
        raise ValueError(
            "raw audio is nothing for a terminal: pipe it to a player, for example "
            f"`| aplay -f S16_LE -c 1 -r {sample_rate_hz}`, or pass --out FILE"
        )
    return RawWriter(sys.stdout.buffer, sample_rate_hz)
