"""What is to be said, for the frame loop: a prompt, and how to sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from .prompt import Block


@dataclass(frozen=True)
class Utterance:
    """One utterance."""

    blocks: Sequence[Block]
    max_frames: int
    seed: int = 0
    stream: int = 0
    """Tells utterances of one seed apart."""
    temperature: float = 0.9
    top_k: int = 50
