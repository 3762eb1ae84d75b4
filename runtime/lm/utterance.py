"""What is asked of the language models: one utterance, and how to sample it. It knows nothing of how that is done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .prompt import Block

_WORD = 1 << 64


@dataclass(frozen=True)
class Utterance:
    """What is to be said: a prompt, and how to sample.

    Raises:
        ValueError: On a value that makes no sense.
    """

    blocks: Sequence[Block]
    max_frames: int
    seed: int = 0
    stream: int = 0
    """Tells utterances of one seed apart."""
    temperature: float = 0.9
    """0 is greedy."""
    top_k: int = 50

    def __post_init__(self) -> None:
        # Whatever is wrong is said to whoever asks, not by the thread that owns the models.
        if self.rows < 1:
            raise ValueError("a prompt must have at least one row")
        for name, low, most in (
            ("max_frames", 1, _WORD),
            ("seed", 0, _WORD),
            ("stream", 0, _WORD),
            ("top_k", 1, _WORD),
        ):
            if not low <= getattr(self, name) < most:
                raise ValueError(f"{name} must be {low} or more and a 64-bit number, not {getattr(self, name)}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")

    @property
    def rows(self) -> int:
        """Positions of the prompt."""
        return sum(map(len, self.blocks))
