"""Fetching a checkpoint from the Hugging Face hub: the small and the gated files first, the 33 GB last.

Downloads resume and show their own progress; both are huggingface-hub's work.
"""

import errno
import importlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..models.errors import CheckpointError
from .hf_layout import CODEC_PREFIX
from .sharded import read_index
from .tokenizer import read_tokenizer

TOKENIZER_REPOS = ("unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B")
"""Tried in this order: upstream names the second, which is gated; the first is an ungated mirror."""
MIMI_REPO = "kyutai/moshiko-pytorch-bf16"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_WHOLE = ("model.safetensors", "ckpt.pt")
_TOKENIZER = "tokenizer.json"
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json")
_TIMEOUT_S = 20
_PASS_CHECKPOINT = "download it by other means and pass the file or directory"
_PASS_TOKENIZER = "pass a tokenizer.json with --tokenizer FILE"
_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".json")

T = TypeVar("T")
log = logging.getLogger(__name__)


def is_repo_id(name: str) -> bool:
    """Whether `name` can be OWNER/NAME on the hub, rather than a mistyped path to a file."""
    # The hub forbids "--" and "..", and huggingface-hub raises on them.
    return bool(_REPO_ID.fullmatch(name)) and not name.endswith(_FILE_SUFFIXES) and not re.search(r"--|\.\.", name)


def download(repo: str, mimi: Path | None, tokenizer: str | None) -> tuple[Path, Path | None, Path]:
    """(checkpoint, codec or None if inside the checkpoint, tokenizer) as local files. Raises `CheckpointError`.

    The tokenizer is fetched and read before anything large, so that a missing permission costs no download.
    """
    files = _files_of(repo, "pass a local checkpoint instead")
    tokenizer_path = find_tokenizer(tokenizer) if tokenizer else _default_tokenizer(repo, files)
    read_tokenizer(tokenizer_path)
    if _CONFIG in files:
        _fetch(repo, _CONFIG, _PASS_CHECKPOINT)
    if _INDEX in files:
        checkpoint = _fetch(repo, _INDEX, _PASS_CHECKPOINT)
        owner = read_index(checkpoint)
        mimi = mimi if mimi or any(name.startswith(CODEC_PREFIX) for name in owner) else _mimi()
        for shard in sorted(set(owner.values())):
            _fetch(repo, shard, _PASS_CHECKPOINT)
        return checkpoint, mimi, tokenizer_path
    for name in _WHOLE:
        if name in files:
            mimi = mimi or _mimi()
            return _fetch(repo, name, _PASS_CHECKPOINT), mimi, tokenizer_path
    raise CheckpointError(f"{repo}: the repository holds no {_WHOLE[0]}, {_INDEX} or {_WHOLE[1]}")


def find_tokenizer(name: str) -> Path:
    """The `tokenizer.json` that `name` means: a file, a directory or a repo that has one. Raises `CheckpointError`."""
    path = Path(name)
    if not path.exists() and is_repo_id(name):
        return download_tokenizer(name)
    path = path / _TOKENIZER if path.is_dir() else path
    if path.exists():
        return path
    raise CheckpointError(
        f"{path}: no such file: pass Llama 3.2's tokenizer.json with --tokenizer FILE "
        f"(it is in {TOKENIZER_REPOS[1]}, gated, and its mirror {TOKENIZER_REPOS[0]})"
    )


def download_tokenizer(repo: str) -> Path:
    """`tokenizer.json` of `repo`, and the small files that explain it."""
    files = _files_of(repo, _PASS_TOKENIZER)
    for extra in _TOKENIZER_EXTRAS:
        if extra in files:
            _fetch(repo, extra, _PASS_TOKENIZER)
    return _fetch(repo, _TOKENIZER, _PASS_TOKENIZER)


def _default_tokenizer(repo: str, files: list[str]) -> Path:
    if _TOKENIZER in files:
        return download_tokenizer(repo)
    problems = []
    for candidate in TOKENIZER_REPOS:
        try:
            return download_tokenizer(candidate)
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(f"no tokenizer can be fetched; {_PASS_TOKENIZER}. " + " ".join(problems))


def _mimi() -> Path:
    return _fetch(MIMI_REPO, MIMI_FILE, "pass Kyutai's Mimi checkpoint with --mimi FILE")


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            "fetching from the Hugging Face hub needs huggingface-hub: pip install 'miso-gguf[hub]', "
            "or pass a local checkpoint"
        ) from error


def _files_of(repo: str, remedy: str) -> list[str]:
    """The repository's files; offline, those of interest that were downloaded before."""
    hub = _hub()
    try:
        # Not list_repo_files: it retries for half a minute before it says that there is no network.
        info = _calling(repo, remedy, lambda: hub.HfApi().model_info(repo, timeout=_TIMEOUT_S))
        return [file.rfilename for file in info.siblings or ()]
    except CheckpointError as error:
        wanted = (_INDEX, _CONFIG, *_WHOLE, _TOKENIZER, *_TOKENIZER_EXTRAS)
        cached = [name for name in wanted if isinstance(hub.try_to_load_from_cache(repo, name), str)]
        if not cached:
            raise
        log.warning("%s; going on with what was downloaded before", error)
        return cached


def _fetch(repo: str, name: str, remedy: str) -> Path:
    hub = _hub()
    return Path(_calling(f"{repo}/{name}", remedy, lambda: str(hub.hf_hub_download(repo, name))))


def _calling(what: str, remedy: str, call: Callable[[], T]) -> T:
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return call()
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{what}: the repository is gated: accept its terms and run `hf auth login`, or {remedy}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{what}: no such repository on the hub (or it is private): {remedy}") from error
    except Exception as error:  # connection errors differ between versions of the library
        # "Local": not in the cache, and the hub did not answer.
        is_local = isinstance(error, errors.LocalEntryNotFoundError)
        if isinstance(error, errors.EntryNotFoundError) and not is_local:
            raise CheckpointError(f"{what}: the hub has no such file: {remedy}") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"{what}: the disk is full ({error.filename or 'the cache of the hub'})") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{what}: cannot be fetched, the hub is out of reach ({reason}): {remedy}") from error
