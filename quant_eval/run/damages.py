"""Which damages of the model an evaluation makes, and their copies: one at a time on disk, gone when it is measured."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .candidate import Candidate
from .damage import Half, check_types, damaged, parts_of

STRENGTHS = (0.1, 0.5, 0.8, 1.2, 1.6)
"""Of both halves, for the control of each gate: it is the weakest that is twice beyond the gate's margin.

Q4_0's own error is 0.09. The tiny model, which forgives the most, is twice beyond every margin at 1.6.
"""
LADDER = (0.05, 0.1, 0.2, 0.4, 0.8, 1.2)
"""Of each half by itself: along these every metric must rise."""
SPOKEN_PROMPTS, RECORDED_PROMPTS = 12, 8
"""Prompts and recordings that a damage is measured on, with the first seed. What it does is many times what they differ
by."""


@dataclass(frozen=True)
class Damage:
    """A level that is to be damaged.

    Attributes:
        half: Of the model.
        strength: See `damage.damaged`.
        candidate: In records and results. Its files are those of the whole level: see `copied`.
    """

    half: Half
    strength: float
    candidate: Candidate

    @classmethod
    def of(cls, whole: Candidate, half: Half, strength: float) -> "Damage":
        """Known before it is made: by what is damaged, and how."""
        digest = hashlib.sha256(f"{whole.digest} {half} {strength:g}".encode()).hexdigest()
        return cls(half, strength, replace(whole, name=f"damaged-{half}-{strength:g}", digest=digest))

    @property
    def copied_bytes(self) -> int:
        """That are written for it, and deleted after it."""
        files = self.candidate.files.manifest.files
        return sum(files[path.name].size_bytes for path in parts_of(self.candidate.files, self.half))

    @contextmanager
    def copied(self, directory: Path) -> Iterator[Candidate]:
        """The candidate with damaged files, in a folder of `directory`.

        They are deleted if all went well; after an error or an interrupt they stay, for the run that goes on.
        Errors as `damage.damaged`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        out = directory / self.candidate.key
        yield replace(self.candidate, files=damaged(self.candidate.files, out, strength=self.strength, half=self.half))
        shutil.rmtree(out)


def damages_of(whole: Candidate, *, controls: bool, ladder: bool) -> tuple[Damage, ...]:
    """All that are to be made, from the weakest on. Raises `MisoError` if one of them cannot be."""
    wanted: list[tuple[Half, float]] = [("both", strength) for strength in STRENGTHS if controls]
    if ladder:
        wanted += [(half, strength) for half in ("backbone", "decoder") for strength in LADDER]
    if wanted:
        check_types(whole.files)
    return tuple(Damage.of(whole, half, strength) for half, strength in wanted)
