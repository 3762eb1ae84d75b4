"""The prosody of two audio files, side by side: what `miso-eval prosody` shows. It measures nothing itself."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from ...runtime.audio.reader import read_audio
from .compare import compare_aligned, compare_free
from .pitch import PitchRange
from .recording import measure_both


@dataclass(frozen=True)
class PairReport:
    """A reference recording, another one, and what lies between them.

    Attributes:
        pitch_range: Of the reference's speaker; F0 was looked for in it in both.
        reference: `Prosody.scalars` of the first.
        test: The same of the second.
        free: `compare_free`.
        aligned: `compare_aligned` if both have the same number of steps of 10 ms, else None. It says something only
            if they were made from aligned frames; equal length alone does not prove that.
    """

    pitch_range: PitchRange
    reference: dict[str, float]
    test: dict[str, float]
    free: dict[str, float]
    aligned: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; no NaN, values that do not exist are absent."""
        return asdict(self)


def pair_report(reference: str | os.PathLike[str], test: str | os.PathLike[str]) -> PairReport:
    """Compare two recordings of any sample rate; channels are averaged.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One is not audio, or not usable: empty, silence, not finite, below 0.3 s.
        MisoError: One cannot be read.
    """
    first, second = measure_both(read_audio(reference), read_audio(test))
    is_equally_long = first.contours.steps == second.contours.steps
    return PairReport(
        pitch_range=first.contours.pitch_range,
        reference=first.scalars(),
        test=second.scalars(),
        free=compare_free(first, second),
        aligned=compare_aligned(first.contours, second.contours) if is_equally_long else None,
    )
