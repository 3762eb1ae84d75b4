"""Which trials and which items a study has, drawn evenly over the categories; and the key that is kept from listeners.

What is random here depends on the study's seed alone. It knows neither samples nor the page.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator

from ..metric import FREE, ONE_STEP
from ..results import Document
from .chance import LEVEL, trials_to_find
from .kept import KeptSound, KeptSounds

KEY_VERSION = 1
KEY_NAME, PAGE_NAME = "abx-key.json", "abx.html"
RATINGS = 8
"""Items by default. BS.1534 asks for one and a half times as many items as there are systems, and 5 at least."""
ANCHOR = "anchor"

MOST_TRIALS, MOST_RATINGS = 1000, 200
"""More than anyone listens to."""

Clip = tuple[str, int]
"""Prompt and seed."""


class Trial(Document):
    """One ABX trial.

    Attributes:
        id: As the page and the answers call it; it says nothing.
        level: Heard beside the reference.
        prompt: Id in the corpus.
        seed: Of the noise.
        sounds: Numbers of the page's two sounds, in random order.
        reference: Which of the two is the reference's: 0 or 1.
    """

    id: str
    level: str
    prompt: str
    seed: int
    sounds: tuple[str, str]
    reference: Literal[0, 1]


class Item(Document):
    """One prompt whose takes are rated.

    Attributes:
        id: As the page and the answers call it.
        prompt: Id in the corpus.
        seed: Of the noise.
        reference: Number of the sound that is labelled as the reference.
        takes: What each other number is: a level, the reference's name (hidden), or "anchor".
    """

    id: str
    prompt: str
    seed: int
    reference: str
    takes: dict[str, str]


class Key(Document):
    """What is behind the page.

    Attributes:
        miso_abx_key: Version.
        study: Identifies the study: a hash of all of it, and of the sounds.
        reference: Level that the others are held against.
        levels: Under test.
        trials: In no order: each listener has an order of their own.
        items: The same.
    """

    miso_abx_key: int = KEY_VERSION
    study: str
    reference: str
    levels: list[str]
    trials: list[Trial]
    items: list[Item]

    @model_validator(mode="after")
    def _fits_together(self) -> "Key":
        takes = sorted([self.reference, *self.levels, ANCHOR])
        if len(set(takes)) < len(takes):
            raise ValueError("a level is there twice")
        if unknown := {trial.level for trial in self.trials} - set(self.levels):
            raise ValueError(f"trials of unknown levels: {sorted(unknown)}")
        if not all(sorted(item.takes.values()) == takes and item.reference not in item.takes for item in self.items):
            raise ValueError("an item has not one take of each level, the reference and the anchor")
        names = [*(trial.id for trial in self.trials), *(item.id for item in self.items)]
        if len(set(names)) < len(names):
            raise ValueError("a trial or item is there twice")
        return self


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        levels: To be heard; none for all.
        trials: Of each level; None for as many as find a listener who is right in 80 %.
        ratings: Items to be rated.
        seed: Of all that is drawn.
    """

    levels: Sequence[str] = ()
    trials: int | None = None
    ratings: int = RATINGS
    seed: int = 0


def chosen_levels(sounds: KeptSounds, wanted: Sequence[str]) -> list[str]:
    """The levels of a study. Raises `ValueError` for one that the evaluation does not have, or has none."""
    if unknown := [level for level in wanted if level not in sounds.levels]:
        raise ValueError(
            f"--levels: no {', '.join(unknown)} beside {sounds.reference}, only {', '.join(sounds.levels)}"
        )
    levels = list(dict.fromkeys(wanted)) or sounds.levels
    if not levels:
        raise ValueError(f"there is no level beside {sounds.reference}: evaluate one with `miso-eval run`")
    return levels


def pairs_of(sounds: KeptSounds, level: str) -> list[tuple[KeptSound, KeptSound]]:
    """The one-step clips of a level, each after the reference's of the same prompt and seed."""
    base = _by_clip(sounds, sounds.reference, ONE_STEP)
    own = _by_clip(sounds, level, ONE_STEP)
    return [(base[clip], own[clip]) for clip in sorted(base.keys() & own.keys())]


def takes_of(sounds: KeptSounds, levels: Sequence[str]) -> list[dict[str, KeptSound]]:
    """The free clips that the reference and all levels have, by level."""
    by_level = {level: _by_clip(sounds, level, FREE) for level in (sounds.reference, *levels)}
    common = set.intersection(*(set(clips) for clips in by_level.values()))
    return [{level: clips[clip] for level, clips in by_level.items()} for clip in sorted(common)]


def _by_clip(sounds: KeptSounds, level: str, stage: str) -> dict[Clip, KeptSound]:
    return {(each.prompt, each.seed): each for each in sounds.sounds if (each.level, each.stage) == (level, stage)}


def counted(count: int, noun: str) -> str:
    """A number with what it counts: "1 clip", "2 clips"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def level_of_each(levels: int) -> float:
    """Of each level's test by itself, so that those of all levels together keep 5 %, whatever comes out."""
    return LEVEL / max(1, levels)


def count_of_trials(wanted: int | None, levels: int) -> int:
    """Of each level: as asked for, or what a listener who is right in 80 % takes."""
    return trials_to_find(level=level_of_each(levels)) if wanted is None else wanted


def evenly(categories: Mapping[Clip, str], count: int, seed: int, purpose: str) -> list[Clip]:
    """`count` clips, the categories in turn; all again where there are too few. None of none."""
    by_category: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(categories, key=lambda clip: shuffled(seed, purpose, *map(str, clip))):
        by_category[categories[clip]].append(clip)
    turns = [
        (turn, shuffled(seed, purpose, str(turn), category), clip)
        for category, clips in by_category.items()
        for turn, clip in enumerate(clips)
    ]
    order = [clip for _, _, clip in sorted(turns)]
    return [order[index % len(order)] for index in range(count)] if order else []


def shuffled(seed: int, *words: str) -> str:
    """What to sort by to get a random order that depends on the seed alone."""
    return hashlib.sha256("\0".join([str(seed), *words]).encode("utf-8", "replace")).hexdigest()


def study_id(parts: object) -> str:
    """Identifies a study by all that it consists of, as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_key(path: Path) -> Key:
    """The key in a file, or in the folder that has it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged, or of another version.
    """
    file = path / KEY_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: `miso-eval abx` writes it beside {PAGE_NAME}; give its folder")
    try:
        key = Key.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{file}: is no key of a listening test, or damaged: give the {KEY_NAME} of the page"
        ) from error
    if key.miso_abx_key != KEY_VERSION:
        raise ValueError(f"{file}: is of version {key.miso_abx_key}, this program reads {KEY_VERSION}")
    return key
