"""What the answers of listeners come to: which levels they hear, by listener and together, and how they rate them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..report.words import label_of
from ..results import Document, Estimate
from ..stats.bootstrap import Bootstrap
from ..stats.counts import highest_share, lowest_share
from ..stats.estimates import as_estimate, holm
from ..stats.observations import Observations
from .answers import Answers
from .chance import LEVEL, found_share, needed_right, p_value
from .draws import plain_name, sides
from .study import ANCHOR, Clip, Key, counted, level_of_each

_GOOD_RATING, _MOST_BELOW = 90.0, 0.15
"""A listener who rates the hidden reference below 90 in more than 15 % of the items is left out of the pool.

Source: ITU-R BS.1534-3 (2015), 4.1.2, post-screening of assessors.
"""


class Heard(Document):
    """One level, heard by one listener or by all together.

    Attributes:
        level: Beside the reference.
        listener: A name; None for all together.
        trials: That were answered.
        right: Of these.
        clips: How many different ones the trials are of.
        share: Right / trials.
        low: The true share lies above, with 95 %.
        high: The true share lies below, with 95 %. Source of both: Clopper and Pearson (1934).
        p: Exact and one-sided, of so many right answers by luck.
        p_adjusted: By Holm, over the levels.
        is_heard: Whether that is at most 5 %.
        needed: Right answers that would show more than luck, however the other levels come out.
        found: The share of right answers that so many trials find with 80 % power; None if none.
    """

    level: str
    listener: str | None
    trials: int
    right: int
    clips: int
    share: float
    low: float
    high: float
    p: float
    p_adjusted: float
    is_heard: bool
    needed: int | None
    found: float | None


class Rated(Document):
    """How one kind of take was rated.

    Attributes:
        take: A level, the reference (hidden), or "anchor".
        mean: Over items and listeners, 0 to 100, with bounds of 95 % each: a bootstrap over items.
        difference: To the hidden reference, paired by item and listener; None for itself.
    """

    take: str
    mean: Estimate
    difference: Estimate | None


class Screened(Document):
    """How well one listener knew the hidden reference.

    Attributes:
        listener: A name.
        items: That were rated.
        below: Items in which the hidden reference got less than 90.
        is_left_out: Whether these are more than 15 %.
    """

    listener: str
    items: int
    below: int
    is_left_out: bool


class Judgement(Document):
    """All of it.

    Attributes:
        study: Which.
        reference: Level that the others are held against.
        listeners: Names.
        heard: By level and listener, those of all together first.
        rated: Levels, hidden reference and anchor, over the listeners who are not left out.
        screened: All listeners who rated.
        notes: What a reader must know, each in one sentence.
    """

    study: str
    reference: str
    listeners: list[str]
    heard: list[Heard]
    rated: list[Rated]
    screened: list[Screened]
    notes: list[str]


def judge(key: Key, listeners: Sequence[Answers]) -> Judgement:
    """Judge the answers of some listeners, each of whom is there once.

    Raises `ValueError` if they answered nothing.
    """
    counts = {plain_name(each.listener): _counts(key, each) for each in listeners}
    together = {level: _together([count[level] for count in counts.values()]) for level in key.levels}
    heard = _heard(None, together)
    for name, count in counts.items():
        heard += _heard(name, count) if len(counts) > 1 else []
    screened = [found for each in listeners if (found := _screened(key, each)) is not None]
    left_out = {each.listener for each in screened if each.is_left_out}
    rated = _rated(key, [each for each in listeners if plain_name(each.listener) not in left_out])
    if not heard and not screened:
        raise ValueError("nobody has answered anything: go through the page, and save the answers")
    return Judgement(
        study=key.study,
        reference=key.reference,
        listeners=list(counts),
        heard=heard,
        rated=rated,
        screened=screened,
        notes=_notes(key, listeners),
    )


@dataclass
class _Count:
    """Of one level: right answers, all, and the clips that they are of."""

    right: int = 0
    trials: int = 0
    clips: set[Clip] = field(default_factory=set)


def _counts(key: Key, answers: Answers) -> dict[str, _Count]:
    """By level."""
    trials = {trial.id: trial for trial in key.trials}
    found = {level: _Count() for level in key.levels}
    for each in answers.answers:
        trial = trials[each.trial]
        count = found[trial.level]
        count.right += each.answer == sides(key.study, answers.listener, each.trial).x
        count.trials += 1
        count.clips.add((trial.prompt, trial.seed))
    return found


def _together(counts: Sequence[_Count]) -> _Count:
    return _Count(
        sum(count.right for count in counts),
        sum(count.trials for count in counts),
        set().union(*(count.clips for count in counts)),
    )


def _heard(listener: str | None, counts: dict[str, _Count]) -> list[Heard]:
    """The levels of which something was answered, judged together."""
    answered = {level: count for level, count in counts.items() if count.trials}
    p_values = [p_value(count.right, count.trials) for count in answered.values()]
    alpha = level_of_each(len(answered))
    return [
        Heard(
            level=level,
            listener=listener,
            trials=count.trials,
            right=count.right,
            clips=len(count.clips),
            share=count.right / count.trials,
            low=lowest_share(count.right, count.trials),
            high=highest_share(count.right, count.trials),
            p=p,
            p_adjusted=adjusted,
            is_heard=adjusted <= LEVEL,
            needed=needed_right(count.trials, alpha),
            found=found_share(count.trials, alpha),
        )
        for (level, count), p, adjusted in zip(answered.items(), p_values, holm(p_values), strict=True)
    ]


def _screened(key: Key, answers: Answers) -> Screened | None:
    """None for a listener who rated nothing."""
    hidden = {item.id: _number(item.takes, key.reference) for item in key.items}
    below = [each.values[hidden[each.item]] < _GOOD_RATING for each in answers.ratings]
    if not below:
        return None
    return Screened(
        listener=plain_name(answers.listener),
        items=len(below),
        below=sum(below),
        is_left_out=sum(below) > _MOST_BELOW * len(below),
    )


def _rated(key: Key, listeners: Sequence[Answers]) -> list[Rated]:
    takes = {item.id: item.takes for item in key.items}
    rows = [
        (rating.item, index, {takes[rating.item][number]: value for number, value in rating.values.items()})
        for index, answers in enumerate(listeners)
        for rating in answers.ratings
    ]
    if not rows:
        return []

    def observed(take: str) -> Observations:
        items, seeds, values = zip(*((item, index, given[take]) for item, index, given in rows), strict=True)
        return Observations(np.array(items), np.array(seeds), np.array(values), np.ones(len(values)))

    base = observed(key.reference)
    found = []
    for take in (key.reference, *key.levels, ANCHOR):
        own = observed(take)
        difference = None if take == key.reference else as_estimate(Bootstrap(own, base), (-100.0, 100.0))
        found.append(Rated(take=take, mean=as_estimate(Bootstrap(own), (0.0, 100.0)), difference=difference))
    return found


def _number(takes: dict[str, str], what: str) -> str:
    return next(number for number, take in takes.items() if take == what)


def _notes(key: Key, listeners: Sequence[Answers]) -> list[str]:
    found = []
    for level in key.levels:
        own = [(trial.prompt, trial.seed) for trial in key.trials if trial.level == level]
        if len(set(own)) < len(own):
            clips = counted(len(set(own)), "clip")
            found.append(
                f"{label_of(level)}: its {counted(len(own), 'trial')} are of {clips}: what is heard is of these"
            )
    for each in listeners:
        done, asked = len(each.answers) + len(each.ratings), len(key.trials) + len(key.items)
        if done < asked:
            found.append(f"{plain_name(each.listener)} is not finished: {done} of {asked} are there, and count")
    return found
