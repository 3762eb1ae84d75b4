"""What is said in an evaluation: prompts by category, from this package or from a JSONL file, with a hash.

A line is an object: `text`, and if wanted `id`, `category`, `speaker`, `before` (turns of a dialogue, each a pair of
speaker and text, spoken by the reference and then given to all levels) and `audio` (a recording of the text, replayed
through every level instead of what the reference says). It knows no model and speaks nothing.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..core.errors import MisoError
from ..core.files import file_sha256
from .results import CorpusInfo

BUILTIN = ("builtin", "tiny")
"""The corpora that are part of the package; `tiny` stays within the tiny model's vocabulary."""

_KEYS = {"id", "category", "text", "speaker", "before", "audio"}


class CorpusError(MisoError):
    """A corpus cannot be used."""


@dataclass(frozen=True)
class Prompt:
    """One thing to say.

    Attributes:
        id: Its name in records and reports.
        category: "statement", "question", …: results are also given by it.
        text: To be said.
        speaker: Number of the speaker.
        before: Turns that came before: speaker and text.
        audio: A recording of the text, or None.
    """

    id: str
    category: str
    text: str
    speaker: int = 0
    before: tuple[tuple[int, str], ...] = ()
    audio: Path | None = None


@dataclass(frozen=True)
class Corpus:
    """Prompts with distinct ids. `sha256` changes with everything that changes what is said."""

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str

    def info(self, seeds: list[int]) -> CorpusInfo:
        """For the results."""
        categories: dict[str, int] = {}
        for prompt in self.prompts:
            categories[prompt.category] = categories.get(prompt.category, 0) + 1
        return CorpusInfo(
            name=self.name, sha256=self.sha256, prompts=len(self.prompts), categories=categories, seeds=seeds
        )

    def first(self, count: int) -> "Corpus":
        """The corpus cut down to `count` prompts, evenly over the file, so that every category stays."""
        if count >= len(self.prompts):
            return self
        chosen = tuple(self.prompts[index * len(self.prompts) // count] for index in range(count))
        return Corpus(f"{self.name}:{count}", chosen, _sha256(chosen))


def load_corpus(source: str | Path) -> Corpus:
    """A corpus of the package by its name, or a JSONL file.

    Raises:
        FileNotFoundError: There is no such file; a recording that a line names is missing.
        CorpusError: A line is not a prompt; it names line, fault and what is expected.
    """
    if str(source) in BUILTIN:
        text = resources.files(__package__).joinpath("corpora").joinpath(f"{source}.jsonl").read_text("utf-8")
        return _parse(str(source), text, Path())
    path = Path(source)
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such corpus; give a JSONL file, or one of {', '.join(BUILTIN)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    return _parse(path.stem, text, path.parent)


def _parse(name: str, text: str, directory: Path) -> Corpus:
    prompts = [
        _prompt(line, number, name, directory) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not prompts:
        raise CorpusError(f"corpus {name} is empty: one JSON object a line is expected")
    ids = [prompt.id.casefold() for prompt in prompts]  # they become file names, also where case is no difference
    for twice in {one for one in ids if ids.count(one) > 1}:
        raise CorpusError(f"corpus {name}: the id {twice!r} is there twice; ids must differ")
    return Corpus(name, tuple(prompts), _sha256(tuple(prompts)))


def _prompt(line: str, number: int, name: str, directory: Path) -> Prompt:
    where = f"corpus {name}, line {number}"
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{where}: no JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"].strip():
        raise CorpusError(f'{where}: expected an object with a "text" that says something')
    if unknown := entry.keys() - _KEYS:
        raise CorpusError(f"{where}: unknown entry {sorted(unknown)[0]!r}; known are {', '.join(sorted(_KEYS))}")
    speaker, before, audio = entry.get("speaker", 0), entry.get("before", []), entry.get("audio")
    if isinstance(speaker, bool) or not isinstance(speaker, int) or speaker < 0:
        raise CorpusError(f"{where}: speaker must be a number from 0, not {speaker!r}")
    if not isinstance(before, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and isinstance(turn[0], int) and isinstance(turn[1], str)
        for turn in before
    ):
        raise CorpusError(f"{where}: before must be a list of [speaker, text]")
    if audio is not None:
        audio = directory / str(audio)
        if not audio.is_file():
            raise FileNotFoundError(f"{where}: {audio} is not there")
    prompt_id = entry.get("id", f"{number:03d}")
    if not isinstance(prompt_id, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", prompt_id):
        raise CorpusError(f"{where}: id must be letters, digits, . _ or -, not {prompt_id!r}: clips are named by it")
    return Prompt(
        id=prompt_id,
        category=str(entry.get("category", "other")),
        text=entry["text"],
        speaker=speaker,
        before=tuple((int(who), said) for who, said in before),
        audio=audio,
    )


def _sha256(prompts: tuple[Prompt, ...]) -> str:
    plain = [
        {**asdict(prompt), "audio": file_sha256(prompt.audio) if prompt.audio is not None else None}
        for prompt in prompts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
