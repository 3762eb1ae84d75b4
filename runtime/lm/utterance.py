"""What is asked of the language models: one utterance, and how to sample it. It knows nothing of how that is done."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.checked import Rule, check, number, whole
from .prompt import Block

_MOST = (1 << 64) - 1
_SAMPLING: dict[str, Rule] = {
    "max_frames": whole(1, _MOST),
    "seed": whole(0, _MOST),
    "stream": whole(0, _MOST),
    "temperature": number(0, sys.float_info.max),
    "top_k": whole(1, _MOST),
}


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
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not all(isinstance(block, Block) for block in self.blocks):
            raise ValueError("a prompt is a list of blocks, as PromptBuilder makes them")
        if self.rows < 1:
            raise ValueError("a prompt must have at least one row")
        check(self, _SAMPLING)

    @property
    def rows(self) -> int:
        """Positions of the prompt."""
        return sum(map(len, self.blocks))
