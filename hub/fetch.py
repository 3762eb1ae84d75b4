"""One revision of a repository: what it holds, and of that only what is needed, looked at or fetched.

Whatever is taken of a repository is of one commit. Where the hub is out of reach, that is the commit that was fetched
last, and what is in the cache of it is all there is.
"""

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from ..core.errors import HubError
from .cache import Cache, Progress
from .client import TIMEOUT_S, calling, library
from .path import HubPath

_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".json", ".ckpt", ".gguf")
_IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40,64})/.+", re.ASCII)
_LATEST = "main"

log = logging.getLogger(__name__)


def is_repo_id(name: str) -> bool:
    """Whether `name` can be OWNER/NAME on the hub, rather than a mistyped path to a file."""
    # The hub forbids "--" and "..", and huggingface-hub raises on them.
    return bool(_REPO_ID.fullmatch(name)) and not name.endswith(_FILE_SUFFIXES) and not re.search(r"--|\.\.", name)


def _is_plain(name: str) -> bool:
    """Whether a file of this name stays inside the folder of its repository, on any system."""
    parts = PureWindowsPath(name).parts
    return bool(parts) and name.isprintable() and ".." not in parts and not PureWindowsPath(name).anchor


def origin(path: Path | HubPath) -> tuple[str, str] | None:
    """(repository, commit) of a file that came from the hub, by where it lies."""
    if isinstance(path, HubPath):
        return None if path.commit is None else (path.repo, path.commit)
    found = re.search(_IN_CACHE, path.absolute().as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else None


@contextmanager
def no_progress(_label: str, _total: int) -> Iterator[Any]:
    """A `Progress` that shows nothing."""
    yield lambda _amount: None


class Hub:
    """The hub as one command meets it: each repository at one revision, and out of reach once is out of reach."""

    def __init__(self, progress: Progress = no_progress) -> None:
        self._progress = progress
        self._opened: dict[str, Repository] = {}
        self._unreachable: str | None = None
        """Why, up to where a remedy follows."""

    def open(self, repo: str, remedy: str, revision: str | None = None) -> "Repository":
        """A repository. The first revision that is asked for counts. Raises `HubError` that ends in `remedy`."""
        if repo not in self._opened:
            self._opened[repo] = self._open(repo, remedy, revision)
        return self._opened[repo]

    def _open(self, repo: str, remedy: str, revision: str | None) -> "Repository":
        what = f"{repo}@{revision}" if revision else repo
        hub = library(what)
        cache = calling(repo, remedy, lambda: Cache(repo))
        try:
            if self._unreachable is not None:
                raise HubError(f"{what}: {self._unreachable}{remedy}")
            # Not list_repo_files: it retries for half a minute before it says that there is no network.
            info = calling(what, remedy, lambda: hub.HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_S))
        except HubError as error:
            if self._unreachable is None and getattr(error.__cause__, "response", None) is None:
                self._unreachable = _reason(error, remedy)
            commit = cache.commit(revision or _LATEST)
            if commit is None:
                raise
            log.warning("%s; going on with what was downloaded before, of commit %s", error, commit[:12])
            reason = _reason(error, remedy)
            return Repository(repo, commit, cache.files(commit), cache, self._progress, unreachable=reason)
        if not isinstance(info.sha, str) or not re.fullmatch("[0-9a-f]{40,64}", info.sha):
            raise HubError(f"{what}: the hub does not say which commit that is: {remedy}")
        # They become paths in the cache, and whoever serves a mirror is a stranger too.
        files = [file.rfilename for file in info.siblings or () if _is_plain(file.rfilename)]
        return Repository(repo, info.sha, files, cache, self._progress, revision=revision or _LATEST)


class Repository:
    """One commit of a repository. Made by `Hub.open`."""

    def __init__(
        self,
        repo: str,
        commit: str,
        files: Collection[str],
        cache: Cache,
        progress: Progress,
        unreachable: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.repo, self.commit = repo, commit
        self.files = files
        """Their names; where the hub is out of reach, of those that were fetched before."""
        self._cache, self._progress, self._unreachable, self._revision = cache, progress, unreachable, revision

    def __str__(self) -> str:
        return self.repo

    def require(self, name: str, remedy: str) -> None:
        """Raises `HubError` if it cannot be known whether the repository has this file: the hub is out of reach."""
        if self._unreachable is not None and self._cached(name) is None:
            raise self._missing(name, remedy)

    def get(self, name: str, remedy: str, *, size_bytes: int | None = None, sha256: str | None = None) -> Path:
        """One file, fetched unless it was before. Raises `HubError` that ends in `remedy`.

        A file that was fetched before and has another size than `size_bytes` is fetched again; one that is fetched now
        must have `sha256`.
        """
        if self._revision is not None:
            self._cache.remember(self._revision, self.commit)
        if (found := self._cached(name, size_bytes)) is not None:
            return found
        if self._unreachable is not None:
            raise self._missing(name, remedy)
        file = HubPath(self.repo, name, self.commit)
        return calling(str(file), remedy, lambda: self._cache.bring(file, remedy, self._progress, sha256))

    def look(self, name: str, remedy: str) -> Path | HubPath:
        """The same file where it lies: on this machine, or on the hub. Raises `HubError` that ends in `remedy`."""
        if self._unreachable is None:
            file = HubPath(self.repo, name, self.commit)
            file.require(remedy)
            return file
        if (found := self._cached(name)) is None:
            raise self._missing(name, remedy)
        return found

    def _cached(self, name: str, size_bytes: int | None = None) -> Path | None:
        path = self._cache.path(self.commit, name)
        is_there = path.is_file() and size_bytes in (None, path.stat().st_size)
        return path if is_there else None

    def _missing(self, name: str, remedy: str) -> HubError:
        return HubError(f"{self.repo}/{name}: was not downloaded before, and {self._unreachable}{remedy}")


def _reason(error: HubError, remedy: str) -> str:
    """What went wrong, without what it was about and up to where its remedy follows: the next file has another."""
    return str(error).partition(": ")[2].removesuffix(remedy)
