"""The answers of one listener, from the file that the page saved. It judges nothing."""

from pathlib import Path

from pydantic import Field, ValidationError

from ..results import Document
from .draws import plain_name
from .study import Key

ANSWERS_VERSION = 1


class Answer(Document):
    """To one trial: which of A and B the listener took for X, and after how many seconds."""

    trial: str
    answer: str = Field(pattern="^[AB]$")
    seconds: float = 0.0


class Rating(Document):
    """Of one item: 0 to 100 for each sound, by its number."""

    item: str
    values: dict[str, float]
    seconds: float = 0.0


class Answers(Document):
    """All of one listener.

    Attributes:
        miso_abx_answers: Version.
        study: As the key has it.
        listener: A name.
        finished: Whether the page was gone through to the end.
        answers: To the trials.
        ratings: Of the items.
    """

    miso_abx_answers: int
    study: str
    listener: str = Field(min_length=1)
    finished: bool
    answers: list[Answer]
    ratings: list[Rating]


def load_answers(path: Path, key: Key) -> Answers:
    """The answers in a file, which fit the key.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged, or of another study, or answers what was not asked or twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give the file that the page saved (`Save answers`)")
    try:
        found = Answers.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: is damaged, or no file of answers: save it from the page again") from error
    if found.miso_abx_answers != ANSWERS_VERSION:
        raise ValueError(f"{path}: is of version {found.miso_abx_answers}, this program reads {ANSWERS_VERSION}")
    if found.study != key.study:
        raise ValueError(f"{path}: answers study {found.study}, the key is of {key.study}: give the key of its page")
    if not plain_name(found.listener):
        raise ValueError(f"{path}: names no listener: save it from the page again")
    _check(path, [each.trial for each in found.answers], {trial.id for trial in key.trials})
    takes = {item.id: set(item.takes) for item in key.items}
    _check(path, [each.item for each in found.ratings], set(takes))
    for rating in found.ratings:
        if rating.values.keys() != takes[rating.item] or not all(0 <= value <= 100 for value in rating.values.values()):
            raise ValueError(f"{path}: {rating.item} has not one rating of 0 to 100 for each take: save it again")
    return found


def load_all(paths: list[Path], key: Key) -> list[Answers]:
    """Of all listeners, by name. Raises as `load_answers`, and `ValueError` for a listener who is there twice."""
    found: dict[str, tuple[Path, Answers]] = {}
    for path in paths:
        answers = load_answers(path, key)
        name = plain_name(answers.listener)
        if name in found:
            raise ValueError(f"{path}: is of {name}, as {found[name][0]} is: give one file of each listener")
        found[name] = path, answers
    return [found[name][1] for name in sorted(found)]


def _check(path: Path, given: list[str], asked: set[str]) -> None:
    if unknown := sorted(set(given) - asked):
        raise ValueError(f"{path}: answers {unknown[0]}, which the study does not ask: save it from the page again")
    if len(set(given)) < len(given):
        raise ValueError(f"{path}: answers a question twice: save it from the page again")
