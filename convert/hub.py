"""Fetching a checkpoint from the Hugging Face hub: the small and the gated files first, the 33 GB last.

Downloads resume and show their own progress; both are huggingface-hub's work.
"""

import importlib
from pathlib import Path
from typing import Any

from ..models.errors import CheckpointError
from .tokenizer import read_tokenizer

TOKENIZER_REPOS = ("unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B")
"""Tried in this order: upstream names the second, which is gated; the first is an ungated mirror."""
MIMI_REPO = "kyutai/moshiko-pytorch-bf16"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
_INDEX = "model.safetensors.index.json"


def download(repo: str, mimi: Path | None, tokenizer: str | None) -> tuple[Path, Path | None, Path]:
    """(checkpoint, codec or None if inside the checkpoint, tokenizer) as local files. Raises `CheckpointError`.

    The tokenizer is fetched and read before anything large, so that a missing permission costs no download.
    """
    files = _files_of(repo)
    tokenizer_path = _tokenizer(repo, files, tokenizer)
    read_tokenizer(tokenizer_path)
    is_transformers = "config.json" in files and _INDEX in files
    if mimi is None and not is_transformers:
        mimi = _fetch(MIMI_REPO, MIMI_FILE, "pass Kyutai's Mimi checkpoint with --mimi FILE")
    return _weights(repo, files), mimi, tokenizer_path


def download_tokenizer(repo: str) -> Path:
    """`tokenizer.json` of `repo`, and the small files that explain it."""
    files = _files_of(repo)
    for extra in ("tokenizer_config.json", "special_tokens_map.json"):
        if extra in files:
            _fetch(repo, extra, "")
    return _fetch(repo, "tokenizer.json", "pass a tokenizer.json with --tokenizer FILE")


def _tokenizer(repo: str, files: list[str], tokenizer: str | None) -> Path:
    if tokenizer is not None:
        return Path(tokenizer) if Path(tokenizer).exists() else download_tokenizer(tokenizer)
    if "tokenizer.json" in files:
        return download_tokenizer(repo)
    problems = []
    for candidate in TOKENIZER_REPOS:
        try:
            return download_tokenizer(candidate)
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(
        "no tokenizer can be fetched; pass a tokenizer.json with --tokenizer FILE. " + " ".join(problems)
    )


def _weights(repo: str, files: list[str]) -> Path:
    remedy = "download it by other means and pass the file"
    if _INDEX in files:
        shards = [name for name in files if name.endswith(".safetensors") and "/" not in name]
        for name in [*(n for n in ("config.json",) if n in files), *shards]:
            _fetch(repo, name, remedy)
        return _fetch(repo, _INDEX, remedy)
    if "config.json" in files:
        _fetch(repo, "config.json", remedy)
    for name in ("model.safetensors", "ckpt.pt"):
        if name in files:
            return _fetch(repo, name, remedy)
    raise CheckpointError(f"{repo}: the repository holds no model.safetensors, {_INDEX} or ckpt.pt")


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            "fetching from the Hugging Face hub needs huggingface-hub: pip install 'miso-gguf[hub]', "
            "or pass a local checkpoint"
        ) from error


def _files_of(repo: str) -> list[str]:
    hub = _hub()
    return list(_calling(repo, "pass a local checkpoint instead", lambda: hub.HfApi().list_repo_files(repo)))


def _fetch(repo: str, name: str, remedy: str) -> Path:
    hub = _hub()
    return Path(_calling(f"{repo}/{name}", remedy, lambda: hub.hf_hub_download(repo, name)))


def _calling(what: str, remedy: str, call: Any) -> Any:
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return call()
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{what}: the repository is gated: accept its terms and run `hf auth login`, or {remedy}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{what}: no such repository on the hub (or it is private): {remedy}") from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{what}: the hub has no such file: {remedy}") from error
    except Exception as error:  # connection errors differ between versions of the library
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{what}: cannot be fetched, the hub is out of reach ({reason}): {remedy}") from error
