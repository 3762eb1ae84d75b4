"""Files of a conversion by the directory or repository that holds them: a checkpoint, a codec, a tokenizer.

A repository is looked at or fetched, as the command needs it; a directory is a repository that is here already.
"""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from copy import copy
from pathlib import Path

from ...core.errors import CheckpointError
from ...hub.cache import Progress
from ...hub.fetch import Hub, Repository, is_repo_id, no_progress
from ...models.mimi import MIMI_NAME
from ...models.synthetic import TOKENIZER_NAME
from .directory import PREFERRED, checkpoint_name, shards_of
from .foreign import refuse_directory
from .layouts import CONFIG_NAMES
from .sharded import read_index
from .tensor_store import SourcePath

GATED_REPO = "meta-llama/Llama-3.2-1B"
TOKENIZER_REPOS = ("unsloth/Llama-3.2-1B", GATED_REPO)
"""Tried in this order: upstream names the second, which is gated; the first is an ungated mirror."""
MIMI_REPO = "kyutai/moshiko-pytorch-bf16"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
MIMI_NAMES = (MIMI_NAME, MIMI_FILE)
"""What can only be the codec, beside whatever it lies."""
PASS_TOKENIZER = "pass Llama 3.2's tokenizer.json with --tokenizer FILE, DIR or REPO"
PASS_MIMI = "pass Kyutai's Mimi checkpoint with --mimi FILE, DIR or REPO"
PASS_CHECKPOINT = "download it by other means and pass the file or directory"
_CONFIG = "config.json"
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json")

Place = Path | Repository
"""A directory on this machine, or a repository on the hub."""


class Places:
    """Directories and repositories as one command meets them: with `fetch` what is on the hub comes to this machine."""

    def __init__(self, *, fetch: bool = True, progress: Progress = no_progress) -> None:
        self._hub = Hub(progress)
        self._fetch = fetch

    def only_looking(self) -> "Places":
        """The same, of which nothing more is fetched."""
        result = copy(self)
        result._fetch = False
        return result

    def repository(self, repo: str, remedy: str, revision: str | None = None) -> Repository:
        """A repository, opened once. Raises `HubError`."""
        return self._hub.open(repo, remedy, revision)

    def take(self, place: Place, name: str, remedy: str) -> SourcePath:
        """A file, on this machine if the command fetches."""
        if isinstance(place, Repository):
            return place.get(name, remedy) if self._fetch else place.look(name, remedy)
        return place / name

    def checkpoint_in(self, repository: Repository) -> SourcePath:
        """A look at a repository's checkpoint: that it is one, all of its files are there, and that one is let in."""

        def read(name: str) -> bytes | None:
            there = name in repository.files
            return repository.look(name, PASS_CHECKPOINT).read_bytes() if there else None

        refuse_directory(repository.files, read, repository)
        try:
            name = checkpoint_name(repository.files, repository)
        except CheckpointError:
            repository.require(PREFERRED[0], PASS_CHECKPOINT)
            raise
        looked = repository.look(name, PASS_CHECKPOINT)
        for file in checkpoint_files(looked, repository.files, repository):
            if file != looked.name:
                repository.look(file, PASS_CHECKPOINT)
        return looked

    def take_checkpoint(self, repository: Repository, looked: SourcePath) -> SourcePath:
        """All files of the checkpoint that was looked at, the small ones first."""
        if not self._fetch:
            return looked
        for config in CONFIG_NAMES:
            if config in repository.files:
                self.take(repository, config, PASS_CHECKPOINT)
        checkpoint = self.take(repository, looked.name, PASS_CHECKPOINT)
        for file in checkpoint_files(checkpoint, repository.files, repository):
            self.take(repository, file, PASS_CHECKPOINT)
        return checkpoint

    def tokenizer(self, name: str) -> SourcePath:
        """The `tokenizer.json` that `name` means: a file, or a directory or repository that has one."""
        found = self._place(name, PASS_TOKENIZER)
        return found if isinstance(found, Path) and not found.is_dir() else self.tokenizer_in(found)

    def tokenizer_in(self, place: Place) -> SourcePath:
        """`tokenizer.json`, with the small files that explain it. Raises `CheckpointError`."""
        if isinstance(place, Path) and not (place / TOKENIZER_NAME).exists():
            raise CheckpointError(f"{place / TOKENIZER_NAME}: no such file: {PASS_TOKENIZER}")
        for extra in _TOKENIZER_EXTRAS:
            if extra in names_in(place):
                self.take(place, extra, PASS_TOKENIZER)
        return self.take(place, TOKENIZER_NAME, PASS_TOKENIZER)

    def mimi(self, name: str) -> SourcePath:
        """The codec that `name` means: a file, or a directory or repository that has one. Raises `CheckpointError`."""
        found = self._place(name, PASS_MIMI)
        return found if isinstance(found, Path) and not found.is_dir() else self.mimi_in(found)

    def mimi_in(self, place: Place) -> SourcePath:
        """Kyutai's file, or Hugging Face's with its config. Raises `CheckpointError`."""
        names = names_in(place)
        weights = [name for name in names if name.endswith(".safetensors")]
        wanted = next((name for name in (MIMI_FILE, MIMI_NAME, "model.safetensors") if name in names), None)
        if wanted is None and len(weights) == 1:
            wanted = weights[0]
        if wanted is None:
            raise CheckpointError(f"{place}: holds no Mimi codec ({MIMI_FILE} or model.safetensors): {PASS_MIMI}")
        if _CONFIG in names and wanted not in MIMI_NAMES:
            self._check_is_mimi(place)
        return self.take(place, wanted, PASS_MIMI)

    def default_tokenizer(self) -> SourcePath:
        """The one that upstream names, from the hub. Raises `CheckpointError` that says of each repo why not."""
        problems = []
        for repo in TOKENIZER_REPOS:
            try:
                return self.tokenizer_in(self.repository(repo, PASS_TOKENIZER))
            except CheckpointError as error:
                problems.append(error)
        raise _neither("no tokenizer.json beside the checkpoint", PASS_TOKENIZER, problems)

    def default_mimi(self) -> SourcePath:
        """Kyutai's, from the hub. Raises `CheckpointError`."""
        try:
            return self.take(self.repository(MIMI_REPO, PASS_MIMI), MIMI_FILE, PASS_MIMI)
        except CheckpointError as error:
            raise _neither("no codec inside the checkpoint or beside it", PASS_MIMI, [error]) from error

    def _check_is_mimi(self, place: Place) -> None:
        """Before something large is fetched for it: other models' files have the same name."""
        config: object = None
        path = self.take(place, _CONFIG, PASS_MIMI)
        with suppress(OSError, ValueError, RecursionError):
            config = json.loads(path.read_text("utf-8"))
        if isinstance(config, dict) and config.get("model_type", "mimi") != "mimi":
            kind = str(config["model_type"])
            raise CheckpointError(f"{path}: says that this is {kind[:40]!r}, not Mimi: {PASS_MIMI}")

    def _place(self, name: str, remedy: str) -> Place:
        path = Path(name)
        if path.exists():
            return path
        if is_repo_id(name):
            return self.repository(name, remedy)
        raise CheckpointError(f"{path}: no such file: {remedy}")


def names_in(place: Place) -> Collection[str]:
    """The names of the files of a directory or repository."""
    if isinstance(place, Repository):
        return place.files
    with suppress(OSError):
        return sorted(path.name for path in place.iterdir())
    return []


def _neither(what: str, remedy: str, problems: list[CheckpointError]) -> CheckpointError:
    """What is not there, nor to be had from the hub; the remedy that each of the problems ends in is said once."""
    reasons = [re.sub(f"(, or|:) {re.escape(remedy)}$", "", str(problem)) for problem in problems]
    return CheckpointError(f"{what}, and the hub's cannot be had: {remedy} ({'; '.join(reasons)})")


def checkpoint_files(checkpoint: SourcePath, names: Collection[str], place: object) -> list[str]:
    """The files that hold the weights of a checkpoint: itself, its shards, or those that it is the index of."""
    if checkpoint.name.endswith(".index.json"):
        return sorted(set(read_index(checkpoint).values()))
    return shards_of(checkpoint.name, names, place)
