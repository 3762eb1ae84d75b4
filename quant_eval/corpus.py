"""What is said in an evaluation: prompts by category, from this package or from a JSONL file, with a hash.

A line is an object: `text`, and if wanted `id`, `category`, `speaker`, `before` (turns of a dialogue, given to all
levels: `[speaker, text]`, spoken by the reference, or `[speaker, text, "clip.wav"]`, which has a recording: a person's
voice to be cloned) and `audio` (a recording of the text, replayed through every level instead of what the reference
says). What a line holds is checked here, once and wholly: later it becomes file names, XML and pages. It knows no model
and speaks nothing.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from ..core.errors import MisoError
from ..core.files import file_sha256
from ..core.printable import printable
from .results import CorpusInfo

BUILTIN = ("builtin", "tiny", "tiny-large")
"""The corpora that are part of the package; the tiny ones stay within the tiny model's vocabulary."""

_KEYS = {"id", "category", "text", "speaker", "before", "audio"}
_LARGEST_FILE_BYTES = 64 << 20
_LONGEST_LINE = 100_000
"""Characters. No model says more than some thousand at once."""
_LONGEST_NAME = 100
"""Characters of an id or a category. A clip's file has the level's name and the seed in its name as well, and no file
system in use takes more than 255.
"""
_LARGEST_SPEAKER = 9999
_LONGEST_PATH = 1000
"""Of what is printed of one."""
_NAMED_PART = re.compile(rf"({'|'.join(BUILTIN)}):([1-9][0-9]{{0,5}})")


class CorpusError(MisoError):
    """A corpus cannot be used."""


@dataclass(frozen=True)
class Turn:
    """What came before a prompt: said by the reference, or by whoever is to be heard in the recording `audio`."""

    speaker: int
    text: str
    audio: Path | None = None


@dataclass(frozen=True)
class Prompt:
    """One thing to say.

    Attributes:
        id: Its name in records and reports.
        category: "statement", "question", …: results are also given by it.
        text: To be said.
        speaker: Number of the speaker.
        before: Turns that came before.
        audio: A recording of the text, or None.
    """

    id: str
    category: str
    text: str
    speaker: int = 0
    before: tuple[Turn, ...] = ()
    audio: Path | None = None

    @property
    def is_recording(self) -> bool:
        """Whether a person says it: it is replayed, and never spoken freely."""
        return self.audio is not None


@dataclass(frozen=True)
class Corpus:
    """Prompts with distinct ids. `sha256` changes with everything that changes what is said.

    `parts` are the corpora that it was joined from, if it was.
    """

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str
    parts: tuple["Corpus", ...] = ()

    @property
    def spoken(self) -> tuple[Prompt, ...]:
        """The prompts that the reference says."""
        return tuple(prompt for prompt in self.prompts if not prompt.is_recording)

    @property
    def recordings(self) -> tuple[Prompt, ...]:
        """The prompts that people say."""
        return tuple(prompt for prompt in self.prompts if prompt.is_recording)

    def info(self, seeds: list[int]) -> CorpusInfo:
        """For the results."""
        categories: dict[str, int] = {}
        for prompt in self.prompts:
            categories[prompt.category] = categories.get(prompt.category, 0) + 1
        return CorpusInfo(
            name=self.name, sha256=self.sha256, prompts=len(self.prompts), categories=categories, seeds=seeds
        )

    def first(self, count: int) -> "Corpus":
        """The corpus cut down to `count` prompts, always the same, called "name:count".

        Each category stays, if there are as many prompts as categories, and has its share of them, evenly over the
        file; with fewer, the first categories have one each.
        """
        if count >= len(self.prompts):
            return self
        by_category: dict[str, list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            by_category.setdefault(prompt.category, []).append(index)
        shares = _shares([len(each) for each in by_category.values()], count)
        indices = sorted(
            members[number * len(members) // share]
            for members, share in zip(by_category.values(), shares, strict=True)
            for number in range(share)
        )
        chosen = tuple(self.prompts[index] for index in indices)
        return Corpus(f"{self.name}:{count}", chosen, _sha256(chosen))


def _shares(sizes: list[int], count: int) -> list[int]:
    """`count` seats for groups of `sizes`: one each while there are any, the others where most is missing."""
    shares = [0] * len(sizes)
    for _ in range(count):
        empty = [index for index, share in enumerate(shares) if not share]
        missing = [
            size * count / sum(sizes) - share if share < size else -count
            for size, share in zip(sizes, shares, strict=True)
        ]
        shares[empty[0] if empty else missing.index(max(missing))] += 1
    return shares


def load_corpus(source: str | Path) -> Corpus:
    """A corpus of the package by its name, a part of it ("builtin:40", see `Corpus.first`), or a JSONL file.

    Raises:
        FileNotFoundError: There is no such file; a recording that a line names is missing.
        CorpusError: A line is not a prompt; it names line, fault and what is expected.
    """
    if part := _NAMED_PART.fullmatch(str(source)):
        return load_corpus(part[1]).first(int(part[2]))
    if str(source) in BUILTIN:
        text = resources.files(__package__).joinpath("corpora").joinpath(f"{source}.jsonl").read_text("utf-8")
        return _parse(str(source), text, Path())
    path = Path(source)
    return _parse(printable(path.stem), _read(path), path.parent)


def is_part(source: str) -> bool:
    """Whether `source` names a part of a corpus of the package: "builtin:40"."""
    return _NAMED_PART.fullmatch(source) is not None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such corpus; give a JSONL file, or one of {', '.join(BUILTIN)}") from None
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from error
    if len(data) > _LARGEST_FILE_BYTES:
        raise CorpusError(f"{path}: has more than {_LARGEST_FILE_BYTES >> 20} MiB; a corpus is one prompt a line")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path}, line {line}: cannot be read as UTF-8 text ({error.reason})") from error


def _parse(name: str, text: str, directory: Path) -> Corpus:
    prompts = [
        _Line(f"corpus {name}, line {number}").prompt(line, f"{number:03d}", directory)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    if not prompts:
        raise CorpusError(f"corpus {name} is empty: one JSON object a line is expected")
    # They become file names, also where case is no difference.
    ids = Counter(prompt.id.casefold() for prompt in prompts)
    if twice := [one for one, count in ids.items() if count > 1]:
        raise CorpusError(f"corpus {name}: the id {twice[0]!r} is there twice; ids must differ")
    return Corpus(name, tuple(prompts), _sha256(tuple(prompts)))


@dataclass(frozen=True)
class _Line:
    """A line of a corpus: all of it that a prompt is made of goes through one of these checks."""

    where: str

    def prompt(self, line: str, default_id: str, directory: Path) -> Prompt:
        entry = self._json(line)
        if not isinstance(entry, dict) or "text" not in entry:
            self._fail('expected an object with a "text" that says something')
        if unknown := entry.keys() - _KEYS:
            self._fail(f"unknown entry {_short(min(unknown))}; known are {', '.join(sorted(_KEYS))}")
        prompt_id = entry.get("id", default_id)
        if not isinstance(prompt_id, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", prompt_id):
            self._fail(f"id must be letters, digits, . _ or -, not {_short(prompt_id)}: clips are named by it")
        before = entry.get("before", [])
        if not isinstance(before, list) or not all(isinstance(turn, list) and len(turn) in (2, 3) for turn in before):
            self._fail(f"before must be a list of [speaker, text] or [speaker, text, recording], not {_short(before)}")
        return Prompt(
            id=self._name(prompt_id, "id"),
            category=self._name(entry.get("category", "other"), "category"),
            text=self._said(entry["text"], "text"),
            speaker=self._speaker(entry.get("speaker", 0)),
            before=tuple(self._turn(turn, directory) for turn in before),
            audio=self._recording(entry["audio"], "audio", directory) if entry.get("audio") is not None else None,
        )

    def _turn(self, turn: list[Any], directory: Path) -> Turn:
        who, said, *recorded = turn
        audio = [self._recording(name, "the recording of before", directory) for name in recorded]
        return Turn(self._speaker(who), self._said(said, "the text of before"), *audio)

    def _json(self, line: str) -> Any:
        if len(line) > _LONGEST_LINE:
            self._fail(f"has {len(line)} characters, and may have {_LONGEST_LINE}: one prompt is one line")
        try:
            return json.loads(line, object_pairs_hook=self._distinct, parse_constant=self._no_number)
        except RecursionError:
            self._fail("no JSON of a prompt (too deeply nested)")
        except ValueError as error:
            self._fail(f"no JSON ({error})")

    def _distinct(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = Counter(key for key, _ in pairs)
        if twice := [key for key, count in keys.items() if count > 1]:
            self._fail(f"{_short(twice[0])} is there twice")
        return dict(pairs)

    def _no_number(self, name: str) -> NoReturn:
        self._fail(f"no JSON ({name} is no number of it)")

    def _said(self, value: Any, what: str) -> str:
        """Something to say, in one line or more."""
        text = self._text(value, what, "something to say")
        if all(unicodedata.category(character)[0] in "ZC" for character in text):
            self._fail(f"{what} must be text that says something, not {_short(text)}")
        return text

    def _name(self, value: Any, what: str) -> str:
        text = self._text(value, what, "a name")
        if not text.strip() or len(text) > _LONGEST_NAME or set(text) & set("\t\n\r"):
            self._fail(f"{what} must be a name in one line, of 1 to {_LONGEST_NAME} characters, not {_short(text)}")
        return text

    def _text(self, value: Any, what: str, expected: str) -> str:
        """Text that can be written everywhere: as UTF-8, in XML, on a terminal."""
        if not isinstance(value, str):
            self._fail(f"{what} must be text, {expected}, not {_short(value)}")
        if (fault := unwritable(value)) is not None:
            self._fail(f"{what} {fault}")
        return value

    def _speaker(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_SPEAKER:
            self._fail(f"speaker must be a number from 0 to {_LARGEST_SPEAKER}, not {_short(value)}")
        return value

    def _recording(self, value: Any, what: str, directory: Path) -> Path:
        path = directory / self._text(value, what, "the name of a recording")
        try:
            found = bool(value) and path.is_file()
        except OSError:  # a name that is too long for any file
            found = False
        if not found:
            raise FileNotFoundError(f"{self.where}: {printable(str(path)[:_LONGEST_PATH])} is not there, or no file")
        return path

    def _fail(self, message: str) -> NoReturn:
        raise CorpusError(f"{self.where}: {message}")


def unwritable(text: str) -> str | None:
    """What keeps a text from being written everywhere: as UTF-8, in XML, on a terminal; None if nothing does."""
    for character in text:
        if _is_unwritable(character):
            return f"holds U+{ord(character):04X}, which is {_why_unwritable(character)}: take it out"
    return None


def _is_unwritable(character: str) -> bool:
    category = unicodedata.category(character)
    is_noncharacter = ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF
    return category == "Cs" or is_noncharacter or (category == "Cc" and character not in "\t\n\r")


def _why_unwritable(character: str) -> str:
    kinds = {"Cs": "half of a character, a lone surrogate", "Cc": "a control character"}
    return kinds.get(unicodedata.category(character), "no character")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:  # what can be read can still be too deep to be written
        return type(value).__name__
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."


def _sha256(prompts: tuple[Prompt, ...]) -> str:
    plain = [
        {**asdict(prompt), "before": list(map(_plain_turn, prompt.before)), "audio": _sound_sha256(prompt.audio)}
        for prompt in prompts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _plain_turn(turn: Turn) -> list[Any]:
    return [turn.speaker, turn.text, *([] if turn.audio is None else [_sound_sha256(turn.audio)])]


def _sound_sha256(audio: Path | None) -> str | None:
    return None if audio is None else file_sha256(audio)
