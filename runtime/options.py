"""What one call asks for. What the model is stands in its bundle, never here."""

import math
from dataclasses import dataclass

from ..models.mimi import FRAME_RATE_HZ


@dataclass(frozen=True)
class SpeechOptions:
    """How to speak.

    Raises:
        ValueError: On a value that makes no sense, naming it and the range.
    """

    temperature: float = 0.9
    """0 is greedy: always the likeliest code. Source of the default: upstream."""
    top_k: int = 50
    """Candidates of each code that take part in the draw. Source of the default: upstream."""
    seed: int = 0
    """Same seed, same bundle, same machine: same codes."""
    max_seconds: float = 90.0
    """Longest audio of one sentence. Its text also sets a limit: see `sentences.speech_cap_frames`."""
    chunk_frames: int = 1
    """Frames of 80 ms in a streamed chunk; the first chunk is always one frame."""
    split_sentences: bool = True
    """Speak long text sentence by sentence; otherwise it is one utterance, and has to fit into the context."""
    retry: bool = True
    """Speak a sentence again with another seed, once, when it comes out empty, silent or as a loop."""
    loudness_lufs: float | None = None
    """Integrated loudness of the result (ITU-R BS.1770), e.g. -16; None leaves it as it is. Not when streaming."""

    @property
    def max_frames(self) -> int:
        """`max_seconds` in frames, at least one."""
        return max(1, int(self.max_seconds * FRAME_RATE_HZ))

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 10.0)
        _check("top_k", self.top_k, 1, 1 << 31)
        _check("seed", self.seed, 0, (1 << 64) - 1)
        _check("max_seconds", self.max_seconds, 0.08, 3600.0)
        _check("chunk_frames", self.chunk_frames, 1, 1 << 16)
        if self.loudness_lufs is not None:
            _check("loudness_lufs", self.loudness_lufs, -60.0, -5.0)


def _check(name: str, value: float, low: float, high: float) -> None:
    whole = isinstance(low, int)
    if isinstance(value, bool) or (whole and not isinstance(value, int)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a{' whole' if whole else ''} number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, not {value}")
