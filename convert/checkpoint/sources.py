"""Where a conversion's inputs are: the checkpoint, the codec and the tokenizer, found from what the user typed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import CheckpointError
from ...models import tiny
from ...models.mimi import MIMI_NAME
from ...models.synthetic import TOKENIZER_NAME
from .hub import MIMI_FILE, find_sources, find_tokenizer, is_repo_id
from .source_path import SourcePath

TINY_NAME = "tiny"
DEFAULT_CHECKPOINT = "MisoLabs/MisoTTS"
_MIMI_NAMES = (MIMI_NAME, MIMI_FILE)

log = logging.getLogger(__name__)


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
    checkpoint: str, mimi: Path | None = None, tokenizer: str | None = None, *, fetch: bool = True
) -> Iterator[Sources]:
    """Find, fetch or make the inputs.

    Args:
        checkpoint: A path, a Hugging Face repo id, or `tiny`.
        mimi: The codec's checkpoint; default: beside the checkpoint, or from the hub.
        tokenizer: A `tokenizer.json`, or a repo that has one; default: beside the checkpoint, or the hub's mirror.
        fetch: Whether to download what is on the hub; else it is looked at where it lies, and nothing is written.

    Yields:
        The files.

    Raises:
        CheckpointError: Something is not there, with what to pass instead.
    """
    path = Path(checkpoint)
    if checkpoint.lower() == TINY_NAME:
        yield _local(tiny.DIRECTORY, mimi, tokenizer, fetch)
    elif path.exists():
        yield _local(path, mimi, tokenizer, fetch)
    elif is_repo_id(checkpoint):
        yield Sources(*find_sources(checkpoint, mimi, tokenizer, fetch=fetch))
    else:
        raise CheckpointError(
            f"{checkpoint}: no such file or directory, and not a Hugging Face repo id (OWNER/NAME) or '{TINY_NAME}'"
        )


@contextmanager
def resolve_for_verify(
    checkpoint: str, mimi: str | None, tokenizer: str | None, revision: str | None = None
) -> Iterator[Found]:
    """What a bundle is compared with: codec and tokenizer only where they lie with the checkpoint or are passed."""
    path = Path(checkpoint)
    if path.exists() and checkpoint.lower() != TINY_NAME:
        directory = path if path.is_dir() else path.parent
        beside = directory / TOKENIZER_NAME
        found = find_tokenizer(tokenizer) if tokenizer else beside if beside.exists() else None
        yield Found(path, Path(mimi) if mimi else _mimi_beside(directory), found)
    else:
        with resolve(checkpoint, Path(mimi) if mimi else None, tokenizer) as sources:
            yield sources


def _local(path: Path, mimi: Path | None, tokenizer: str | None, fetch: bool) -> Sources:
    directory = path if path.is_dir() else path.parent
    tokenizer_path = find_tokenizer(tokenizer or str(directory / TOKENIZER_NAME), fetch=fetch)
    return Sources(path, mimi or _mimi_beside(directory), tokenizer_path)


def _mimi_beside(directory: Path) -> Path | None:
    for name in _MIMI_NAMES:
        if (directory / name).exists():
            return directory / name
    return None
