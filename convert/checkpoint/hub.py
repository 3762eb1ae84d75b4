"""A checkpoint's files on the Hugging Face hub: fetched, small and gated ones first and the 33 GB last, or looked at.

Downloads resume and show their own progress; both are huggingface-hub's work. What is only looked at stays where it is
(`HubPath`).
"""

import logging
import re
from pathlib import Path

from ...core.errors import CheckpointError
from ...hub.client import TIMEOUT_S, calling, library
from ...hub.path import HubPath
from .layouts import CONFIG_NAMES, codec_prefix, may_hold_codec
from .safetensors import SafetensorsFile
from .sharded import INDEX_NAME, read_index
from .tensor_store import SourcePath
from .tokenizer import read_tokenizer

TOKENIZER_REPOS = ("unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B")
"""Tried in this order: upstream names the second, which is gated; the first is an ungated mirror."""
MIMI_REPO = "kyutai/moshiko-pytorch-bf16"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
_WHOLE = ("model.safetensors", "ckpt.pt")
_TOKENIZER = "tokenizer.json"
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json")
_PASS_CHECKPOINT = "download it by other means and pass the file or directory"
_PASS_TOKENIZER = "pass a tokenizer.json with --tokenizer FILE"
_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".json")

log = logging.getLogger(__name__)


def is_repo_id(name: str) -> bool:
    """Whether `name` can be OWNER/NAME on the hub, rather than a mistyped path to a file."""
    # The hub forbids "--" and "..", and huggingface-hub raises on them.
    return bool(_REPO_ID.fullmatch(name)) and not name.endswith(_FILE_SUFFIXES) and not re.search(r"--|\.\.", name)


def find_sources(
    repo: str, mimi: Path | None, tokenizer: str | None, *, fetch: bool = True
) -> tuple[SourcePath, SourcePath | None, SourcePath]:
    """(checkpoint, codec or None if inside the checkpoint, tokenizer). Raises `CheckpointError`.

    The tokenizer is read before anything large is fetched, so that a missing permission costs no download. Without
    `fetch` nothing is fetched to disk at all: what is on the hub is read there or, where the hub is out of reach, what
    was downloaded before.
    """
    hub = _Hub(fetch)
    files = hub.files(repo, "pass a local checkpoint instead")
    found = _find_tokenizer(hub, tokenizer) if tokenizer else _default_tokenizer(hub, repo, files)
    read_tokenizer(found)
    for config in CONFIG_NAMES:
        if config in files:
            hub.get(repo, config, _PASS_CHECKPOINT)
    if INDEX_NAME in files:
        checkpoint = hub.get(repo, INDEX_NAME, _PASS_CHECKPOINT)
        owner = read_index(checkpoint)
        codec = mimi if mimi or codec_prefix(owner) else _mimi(hub)
        for shard in sorted(set(owner.values())):
            hub.get(repo, shard, _PASS_CHECKPOINT)
        return checkpoint, codec, found
    for name in _WHOLE:
        if name in files:
            codec = mimi or (None if may_hold_codec(files) else _mimi(hub))
            checkpoint = hub.get(repo, name, _PASS_CHECKPOINT)
            return checkpoint, codec or (None if _has_codec(checkpoint) else _mimi(hub)), found
    raise CheckpointError(f"{repo}: the repository holds no {_WHOLE[0]}, {INDEX_NAME} or {_WHOLE[1]}")


def find_tokenizer(name: str, *, fetch: bool = True) -> SourcePath:
    """The `tokenizer.json` that `name` means: a file, a directory or a repo that has one. Raises `CheckpointError`."""
    return _find_tokenizer(_Hub(fetch), name)


class _Hub:
    """Files of repositories: fetched, or only looked at where they lie."""

    def __init__(self, fetch: bool) -> None:
        self._fetch = fetch
        self._commits: dict[str, str | None] = {}
        self._out_of_reach = False

    def files(self, repo: str, remedy: str) -> list[str]:
        """The repository's files; offline, those of interest that were downloaded before."""
        hub = library()
        try:
            # Not list_repo_files: it retries for half a minute before it says that there is no network.
            info = calling(repo, remedy, lambda: hub.HfApi().model_info(repo, timeout=TIMEOUT_S))
            self._commits[repo] = getattr(info, "sha", None)
            return [file.rfilename for file in info.siblings or ()]
        except CheckpointError as error:
            wanted = (INDEX_NAME, *CONFIG_NAMES, *_WHOLE, _TOKENIZER, *_TOKENIZER_EXTRAS)
            cached = [name for name in wanted if isinstance(hub.try_to_load_from_cache(repo, name), str)]
            if not cached:
                raise
            log.warning("%s; going on with what was downloaded before", error)
            self._out_of_reach = True
            return cached

    def get(self, repo: str, name: str, remedy: str) -> SourcePath:
        """One file. Raises `CheckpointError` that ends in `remedy`."""
        if not self._fetch and not self._out_of_reach:
            path = HubPath(repo, name, self._commits.get(repo))
            path.require(remedy)
            return path
        hub, options = library(), {} if self._fetch else {"local_files_only": True}
        return Path(calling(f"{repo}/{name}", remedy, lambda: str(hub.hf_hub_download(repo, name, **options))))


def _find_tokenizer(hub: _Hub, name: str) -> SourcePath:
    path = Path(name)
    if not path.exists() and is_repo_id(name):
        return _hub_tokenizer(hub, name)
    path = path / _TOKENIZER if path.is_dir() else path
    if path.exists():
        return path
    raise CheckpointError(
        f"{path}: no such file: pass Llama 3.2's tokenizer.json with --tokenizer FILE "
        f"(it is in {TOKENIZER_REPOS[1]}, gated, and its mirror {TOKENIZER_REPOS[0]})"
    )


def _hub_tokenizer(hub: _Hub, repo: str) -> SourcePath:
    """`tokenizer.json` of `repo`, and the small files that explain it."""
    files = hub.files(repo, _PASS_TOKENIZER)
    for extra in _TOKENIZER_EXTRAS:
        if extra in files:
            hub.get(repo, extra, _PASS_TOKENIZER)
    return hub.get(repo, _TOKENIZER, _PASS_TOKENIZER)


def _default_tokenizer(hub: _Hub, repo: str, files: list[str]) -> SourcePath:
    if _TOKENIZER in files:
        return _hub_tokenizer(hub, repo)
    problems = []
    for candidate in TOKENIZER_REPOS:
        try:
            return _hub_tokenizer(hub, candidate)
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(f"no tokenizer can be fetched; {_PASS_TOKENIZER}. " + " ".join(problems))


def _has_codec(checkpoint: SourcePath) -> bool:
    if checkpoint.suffix != ".safetensors":
        return False
    file = SafetensorsFile(checkpoint)
    try:
        return codec_prefix(file.shapes) is not None
    finally:
        file.close()


def _mimi(hub: _Hub) -> SourcePath:
    return hub.get(MIMI_REPO, MIMI_FILE, "pass Kyutai's Mimi checkpoint with --mimi FILE")
