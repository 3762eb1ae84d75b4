"""Where speech goes: a sound file, or raw PCM on standard output for a player to read.

Knows what standard output may not be; the formats are `writer.py`'s.
"""

import os
import sys

from ...core.errors import MisoError
from .writer import AudioWriter, RawWriter

STANDARD_OUTPUT = "-"


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


def abandon_stdout() -> None:
    """Nobody reads standard output any more: let what is left in its buffer go nowhere, without a complaint at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
