"""A study made of what an evaluation has left in its folder: sounds are chosen, cut, numbered and put in a page."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...core.files import open_whole
from ...runtime.audio.samples import Samples, to_pcm16
from ..report.words import label_of
from .chance import found_share, needed_right
from .excerpts import anchor, are_equal, beginning, encoded, heard_pair, is_short, read_sound
from .kept import KeptSound, KeptSounds, load_sounds
from .page import page
from .study import (
    ANCHOR,
    KEY_NAME,
    PAGE_NAME,
    Clip,
    Item,
    Key,
    Trial,
    Wanted,
    chosen_levels,
    count_of_trials,
    counted,
    evenly,
    level_of_each,
    load_key,
    pairs_of,
    shuffled,
    study_id,
    takes_of,
)


@dataclass(frozen=True)
class LevelOfStudy:
    """What a study has of one level.

    Attributes:
        level: Its key.
        clips: One-step clips that were kept.
        equal: Of these, which equal the reference's: nothing can be told there.
        trials: In the study.
        needed: Right answers that show more than luck; None if not even all would.
        found: The share of right answers that is found with 80 % power; None if none is.
    """

    level: str
    clips: int
    equal: int
    trials: int
    needed: int | None
    found: float | None


@dataclass(frozen=True)
class Made:
    """A study.

    Attributes:
        key: What is kept from listeners.
        page: HTML.
        levels: What each level has in it.
        is_lossy: Whether the sounds had to be MP3.
        notes: What is not as was asked for, each in one sentence.
    """

    key: Key
    page: str
    levels: list[LevelOfStudy]
    is_lossy: bool
    notes: list[str]


@dataclass
class _Heard:
    """One trial or item before it has numbers: its sounds by what they are."""

    level: str
    prompt: str
    seed: int
    text: str
    sounds: dict[str, Samples]
    numbers: dict[str, str] = field(default_factory=dict)


_REFERENCE, _LEVEL = "reference", "level"
_Pair = tuple[KeptSound, KeptSound]
"""The reference's clip and the level's."""


def make_study(report: Path, wanted: Wanted) -> Made:
    """Of the evaluation in a folder.

    Raises:
        FileNotFoundError: The evaluation, or one of its clips, is not there.
        ValueError: There is nothing to be heard, or a level is not there; with the remedy.
        MisoError: The extra `eval` is not installed.
    """
    sounds = load_sounds(report)
    levels = chosen_levels(sounds, wanted.levels)
    clips = report / "clips"
    counts, notes = [], []
    audible = {level: _audible(pairs_of(sounds, level), clips) for level in levels}
    heard_levels = [level for level in levels if audible[level]]
    each = count_of_trials(wanted.trials, len(heard_levels))
    trials: list[_Heard] = []
    for level in levels:
        pairs, all_clips = audible[level], len(pairs_of(sounds, level))
        chosen = evenly({clip: own.category for clip, (_, own) in pairs.items()}, each, wanted.seed, f"abx {level}")
        trials += [_trial(level, pairs[clip], clips) for clip in chosen]
        alpha = level_of_each(len(heard_levels))
        needed = needed_right(len(chosen), alpha) if chosen else None
        found = found_share(len(chosen), alpha) if chosen else None
        counts.append(LevelOfStudy(level, all_clips, all_clips - len(pairs), len(chosen), needed, found))
        notes += _notes(sounds, level, all_clips, len(pairs), len(chosen))
    items = _items(sounds, levels, clips, wanted)
    notes += _equal_takes(sounds.reference, levels, items)
    if wanted.ratings and not items:
        notes.append("nothing to rate: no free run is kept: add --stages free to `miso-eval run`")
    if not trials and not items:
        why = "; ".join(notes) or "neither trials nor ratings are asked for"
        raise ValueError(f"{report}: there is nothing to listen to: {why}")
    return _made(sounds.reference, levels, trials, items, counts, notes, wanted)


def write_study(made: Made, folder: Path, *, force: bool = False) -> list[Path]:
    """The page and its key, whole: neither is replaced before both are written.

    Raises:
        ValueError: The folder has the key of another study, without which its answers cannot be judged; or a folder
            has the name of either.
        OSError: Writing failed.
    """
    shown, path = folder / PAGE_NAME, folder / KEY_NAME
    if taken := [each for each in (shown, path) if each.is_dir()]:
        raise ValueError(f"{taken[0]}: is a folder, and a file is to be written there: move it away")
    if path.is_file() and not force and load_key(path).study != made.key.study:
        raise ValueError(
            f"{path}: is the key of another study, whose answers could no longer be judged: "
            f"move it and {PAGE_NAME} away, or give --force"
        )
    with open_whole(path) as key_file, open_whole(shown) as page_file:
        key_file.write((made.key.model_dump_json(indent=1) + "\n").encode())
        page_file.write(made.page.encode())
    return [shown, path]


def _audible(pairs: Sequence[_Pair], clips: Path) -> dict[Clip, _Pair]:
    """Those of a level that differ from the reference's in what a trial plays."""
    return {
        (own.prompt, own.seed): (base, own)
        for base, own in pairs
        if not are_equal(*heard_pair(clips / base.audio, clips / own.audio))
    }


def _trial(level: str, pair: _Pair, clips: Path) -> _Heard:
    base, own = pair
    both = heard_pair(clips / base.audio, clips / own.audio)
    return _Heard(level, own.prompt, own.seed, own.text, {_REFERENCE: both[0], _LEVEL: both[1]})


def _notes(sounds: KeptSounds, level: str, clips: int, audible: int, trials: int) -> list[str]:
    label, reference = label_of(level), label_of(sounds.reference)
    if not clips:
        return [f"{label}: no one-step clips are kept: add --stages one-step to `miso-eval run`"]
    if not audible:
        every = counted(clips, "one-step clip")
        return [f"{label}: none of {every} differs from {reference}'s: nothing can be told, so no trial"]
    if trials > audible:
        if audible == 1:
            return [f"{label}: 1 clip differs from {reference}: it is heard in all trials, which say nothing of others"]
        return [f"{label}: {audible} clips differ from {reference}: some are heard in more than one trial"]
    return []


def _items(sounds: KeptSounds, levels: Sequence[str], clips: Path, wanted: Wanted) -> list[_Heard]:
    """What is rated: preferably what is short enough to be heard whole."""
    takes = {
        (each[sounds.reference].prompt, each[sounds.reference].seed): each
        for each in (takes_of(sounds, levels) if wanted.ratings else ())
    }
    short = {clip: each for clip, each in takes.items() if all(is_short(clips / take.audio) for take in each.values())}
    categories = {clip: each[sounds.reference].category for clip, each in (short or takes).items()}
    count = min(wanted.ratings, len(categories))
    found = []
    for clip in evenly(categories, count, wanted.seed, "ratings"):
        cut = {level: beginning(read_sound(clips / take.audio)) for level, take in takes[clip].items()}
        cut[ANCHOR] = anchor(cut[sounds.reference])
        found.append(_Heard("", *clip, takes[clip][sounds.reference].text, {_REFERENCE: cut[sounds.reference], **cut}))
    return found


def _equal_takes(reference: str, levels: Sequence[str], items: Sequence[_Heard]) -> list[str]:
    """Takes that are the reference's, sample by sample, are rated as any other; the reader is told."""
    found = []
    for level in levels:
        equal = sum(are_equal(item.sounds[reference], item.sounds[level]) for item in items)
        if equal:
            takes = counted(len(items), "take")
            found.append(f"{label_of(level)}: of {takes} to be rated, equal to {label_of(reference)}'s: {equal}")
    return found


def _made(
    reference: str,
    levels: list[str],
    trials: list[_Heard],
    items: list[_Heard],
    counts: list[LevelOfStudy],
    notes: list[str],
    wanted: Wanted,
) -> Made:
    """With opaque numbers for sounds and trials, in an order that tells nothing."""
    places = [(heard, name) for heard in (*trials, *items) for name in heard.sounds]
    order = sorted(range(len(places)), key=lambda index: shuffled(wanted.seed, "sound", str(index)))
    by_number: dict[str, Samples] = {}
    for number, index in enumerate(order, 1):
        heard, name = places[index]
        heard.numbers[name] = str(number)
        by_number[str(number)] = heard.sounds[name]
    mixed = sorted(range(len(trials)), key=lambda index: shuffled(wanted.seed, "trial", str(index)))
    keyed_trials = [_keyed(f"t{place}", trials[index]) for place, index in enumerate(mixed, 1)]
    keyed_items = [_keyed_item(f"r{place}", item) for place, item in enumerate(items, 1)]
    hashes = {number: hashlib.sha256(to_pcm16(samples).tobytes()).hexdigest() for number, samples in by_number.items()}
    parts = [[each.model_dump() for each in (*keyed_trials, *keyed_items)], hashes, wanted.seed]
    key = Key(study=study_id(parts), reference=reference, levels=levels, trials=keyed_trials, items=keyed_items)
    content = encoded(by_number)
    texts = {keyed.id: item.text for keyed, item in zip(keyed_items, items, strict=True)}
    return Made(key, page(key, texts, content), counts, content.kind == "MP3", notes)


def _keyed(name: str, heard: _Heard) -> Trial:
    numbers = heard.numbers[_REFERENCE], heard.numbers[_LEVEL]
    # Numbers are given at random, so the smaller one first is a random order.
    first, second = sorted(numbers, key=int)
    place: Literal[0, 1] = 0 if first == numbers[0] else 1
    return Trial(
        id=name, level=heard.level, prompt=heard.prompt, seed=heard.seed, sounds=(first, second), reference=place
    )


def _keyed_item(name: str, heard: _Heard) -> Item:
    takes = {number: what for what, number in heard.numbers.items() if what != _REFERENCE}
    return Item(id=name, prompt=heard.prompt, seed=heard.seed, reference=heard.numbers[_REFERENCE], takes=takes)
