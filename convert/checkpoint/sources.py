"""Where a conversion's inputs are: the checkpoint, the codec and the tokenizer, found from what the user typed.

What costs little is settled before anything large is fetched: that all of it is to be had, and what it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import CheckpointError, HubError
from ...hub.cache import Progress
from ...hub.fetch import Repository, is_repo_id, no_progress
from ...hub.path import HubPath
from ...models import tiny
from ...models.manifest import SourceFile
from ...models.synthetic import TOKENIZER_NAME
from .foreign import refuse_file
from .hub import MIMI_NAMES, PASS_MIMI, Place, Places, checkpoint_files, names_in
from .open import Checkpoint, open_checkpoint
from .tensor_store import SourcePath
from .tokenizer import read_tokenizer

TINY_NAME = "tiny"
DEFAULT_CHECKPOINT = "MisoLabs/MisoTTS"
_PASS_LOCAL = "pass a local checkpoint instead"

Opens = Callable[..., Checkpoint]
"""As `open_checkpoint`, of which all but path and `is_look` is settled."""


class OtherCheckpointError(CheckpointError):
    """The hub names other sha256 than those of the checkpoint that a bundle was made from."""


@dataclass(frozen=True)
class Found:
    """What there is to compare a bundle with. What is None was not found."""

    checkpoint: SourcePath
    mimi: SourcePath | None
    tokenizer: SourcePath | None


@dataclass(frozen=True)
class Sources(Found):
    """Files, local unless they are only looked at. `mimi` is None when the codec lies inside the checkpoint (CSM)."""

    tokenizer: SourcePath


@contextmanager
def resolve(
    checkpoint: str,
    mimi: str | Path | None = None,
    tokenizer: str | Path | None = None,
    *,
    revision: str | None = None,
    fetch: bool = True,
    progress: Progress = no_progress,
    opens: Opens = open_checkpoint,
) -> Iterator[Sources]:
    """Find, fetch or make the inputs.

    Args:
        checkpoint: A path, a Hugging Face repo id, or `tiny`.
        mimi: The codec: a file, a directory or a repo; default: inside the checkpoint, beside it, or the hub's.
        tokenizer: The same for a `tokenizer.json`; default: beside the checkpoint, or the hub's mirror.
        revision: Branch, tag or commit of the checkpoint's repo; all of the repo's files are of that one commit.
        fetch: Whether to download what is on the hub; else it is looked at where it lies, and nothing is written.
        progress: Shows what is fetched.
        opens: Opens the checkpoint, to see what it holds.

    Yields:
        The files.

    Raises:
        CheckpointError: Something is not there, with what to pass instead.
    """
    places = Places(fetch=fetch, progress=progress)
    place, looked = _look(places, checkpoint, revision)
    has_codec = None if mimi and isinstance(looked, Path) else _has_codec(looked, opens)
    problems: list[CheckpointError] = []
    found_tokenizer = found_mimi = None
    try:
        found_tokenizer = _tokenizer(places, place, tokenizer) or places.default_tokenizer()
        if isinstance(place, Repository):
            read_tokenizer(found_tokenizer)  # before gigabytes are fetched; the plan reads it anyway
    except CheckpointError as error:
        problems.append(error)
    try:
        found_mimi = _mimi(places.only_looking() if problems else places, place, mimi, has_codec)
    except CheckpointError as error:
        problems.append(error)
    if len(problems) > 1:
        raise CheckpointError(f"{checkpoint}: {problems[0]}; {problems[1]}")
    if problems:
        raise problems[0]
    assert found_tokenizer is not None
    if isinstance(place, Repository):
        looked = places.take_checkpoint(place, looked)
        if has_codec is None and not mimi:
            found_mimi = _mimi(places, place, mimi, _has_codec(looked, opens))
    yield Sources(looked, found_mimi, found_tokenizer)


@contextmanager
def resolve_for_verify(
    checkpoint: str,
    mimi: str | None,
    tokenizer: str | None,
    revision: str | None = None,
    *,
    made_from: Sequence[SourceFile] = (),
    progress: Progress = no_progress,
    opens: Opens = open_checkpoint,
) -> Iterator[Found]:
    """What a bundle is compared with: codec and tokenizer only where they lie with the checkpoint or are passed.

    Nothing of a repository is fetched if the hub names other sha256 than `made_from`, the checkpoint's files in the
    manifest: `OtherCheckpointError`. Raises `CheckpointError`.
    """
    places = Places(progress=progress)
    place, looked = _look(places, checkpoint, revision)
    if isinstance(place, Repository):
        _check_made_from(place, looked, made_from)
    has_codec = None if mimi and isinstance(looked, Path) else _has_codec(looked, opens)
    found_tokenizer = _tokenizer(places, place, tokenizer)
    found_mimi = places.mimi(mimi) if mimi else None if has_codec else _mimi_beside(places, place)
    if isinstance(place, Repository):
        looked = places.take_checkpoint(place, looked)
        if has_codec is None and not mimi and _has_codec(looked, opens):
            found_mimi = None
    yield Found(looked, found_mimi, found_tokenizer)


def _look(places: Places, checkpoint: str, revision: str | None) -> tuple[Place, SourcePath]:
    """(what holds the checkpoint, the checkpoint), of which nothing is fetched yet."""
    path = tiny.DIRECTORY if checkpoint.lower() == TINY_NAME else Path(checkpoint)
    if path.exists():
        if revision is not None:
            raise CheckpointError(f"{checkpoint} is on this machine: --revision is of a repository on the hub")
        return path if path.is_dir() else path.parent, path
    if not is_repo_id(checkpoint):
        refuse_file(path)  # where the beginning of its download lies, it says so
        raise CheckpointError(
            f"{checkpoint}: no such file or directory, and not a Hugging Face repo id (OWNER/NAME) or '{TINY_NAME}'"
        )
    repository = places.repository(checkpoint, _PASS_LOCAL, revision)
    return repository, places.checkpoint_in(repository)


def _has_codec(checkpoint: SourcePath, opens: Opens) -> bool | None:
    """Whether the codec lies inside. None if that cannot be told of what is only looked at.

    Raises `CheckpointError` on what is no checkpoint: before 33 GB of it are fetched.
    """
    try:
        with opens(checkpoint, is_look=True) as opened:
            opened.check_dtypes()
            return bool(opened.codec_shapes)
    except CheckpointError as error:
        if isinstance(error, HubError):  # a server may give no parts of files
            return None
        raise


def _tokenizer(places: Places, place: Place, name: str | Path | None) -> SourcePath | None:
    """The one that was asked for, or the one with the checkpoint."""
    if name is not None:
        return places.tokenizer(str(name))
    return places.tokenizer_in(place) if TOKENIZER_NAME in names_in(place) else None


def _mimi(places: Places, place: Place, name: str | Path | None, has_codec: bool | None) -> SourcePath | None:
    """The codec that was asked for, None for the one inside, the one beside, or the hub's. None if that is open yet."""
    if name is not None:
        return places.mimi(str(name))
    return None if has_codec is not False else _mimi_beside(places, place) or places.default_mimi()


def _mimi_beside(places: Places, place: Place) -> SourcePath | None:
    beside = next((name for name in MIMI_NAMES if name in names_in(place)), None)
    return None if beside is None else places.take(place, beside, PASS_MIMI)


def _check_made_from(repository: Repository, looked: SourcePath, made_from: Sequence[SourceFile]) -> None:
    files = [looked.with_name(name) for name in checkpoint_files(looked, repository.files, repository)]
    try:
        named = [file.sha256 for file in files if isinstance(file, HubPath)]
    except HubError:  # a server that does not name them
        return
    if named and made_from and named != [source.sha256 for source in made_from]:
        commits = {source.revision for source in made_from if source.revision and source.repo == repository.repo}
        hint = f"; it was made from commit {min(commits)}: pass that with --revision" if commits else ""
        raise OtherCheckpointError(
            f"made from other files than those of {repository} at commit {repository.commit[:12]} "
            f"(sha256 {made_from[0].sha256[:12]}, the hub's is {named[0][:12]}){hint}. Nothing was fetched"
        )
