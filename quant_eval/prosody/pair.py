"""The prosody of two audio files, side by side: what `miso-eval prosody` shows. It measures nothing itself."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from ...runtime.audio.reader import read_audio
from .compare import compare_aligned, compare_free
from .pitch import PitchRange
from .recording import Prosody, measure_both
from .sound import STEP_S
from .synchrony import synchrony


@dataclass(frozen=True)
class PairReport:
    """A reference recording, another one, and what lies between them.

    Attributes:
        pitch_range: Of both speakers; F0 was looked for in it in both.
        reference: `Prosody.scalars` of the first.
        test: The same of the second.
        free: `compare_free`.
        aligned: `compare_aligned` of recordings of equal length that run in step, else None.
        why_not_aligned: What forbids comparing them step by step; None if nothing does.
    """

    pitch_range: PitchRange
    reference: dict[str, float]
    test: dict[str, float]
    free: dict[str, float]
    aligned: dict[str, float] | None
    why_not_aligned: str | None

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
    why_not = _why_not_aligned(first, second)
    return PairReport(
        pitch_range=first.contours.pitch_range,
        reference=first.scalars(),
        test=second.scalars(),
        free=compare_free(first, second),
        aligned=None if why_not else compare_aligned(first.contours, second.contours),
        why_not_aligned=why_not,
    )


def _why_not_aligned(first: Prosody, second: Prosody) -> str | None:
    if first.contours.steps != second.contours.steps:
        lengths = [each.contours.steps * STEP_S for each in (first, second)]
        return f"they are {lengths[0]:.2f} s and {lengths[1]:.2f} s long"
    found = synchrony(first.cepstra, second.cepstra)
    return found.why_not_aligned if found else "one of them is the same throughout"
