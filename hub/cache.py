"""The hub's cache on this machine, one repository of it: a file comes whole and checked, and goes on where it was cut.

It is the library's: laid out as its documentation says (`blobs`, `refs`, `snapshots`), so that each finds what the
other fetched. The download is not the library's: recent versions begin a 33 GB file anew after a Ctrl-C, and their
retries talk.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from ..core.errors import HubError
from ..core.files import write_whole
from ..core.units import size_text
from .client import library, streamed
from .path import HubPath

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A bar for so many bytes, labelled: it yields what advances it."""

_TRIES = 3
"""Connections in a row that bring nothing new, before it is given up."""
_PAUSE_S = 1.0
_BLOCK_BYTES = 4 << 20


class Cache:
    """The folder of one repository, `OWNER/NAME`. Raises `HubError` if there is no place for it; makes nothing yet."""

    def __init__(self, repo: str) -> None:
        library()
        from huggingface_hub import constants  # noqa: PLC0415  (an extra)

        root = Path(constants.HF_HUB_CACHE)
        if root.parts and root.parts[0].startswith("~"):
            raise HubError(f"{repo}: no home directory to keep it in: set HF_HOME to a folder that can be written")
        name = f"models--{repo.replace('/', '--')}"
        self._folder = root / name
        self._locks = root / ".locks" / name

    def commit(self, revision: str) -> str | None:
        """What `revision` was when the hub was last asked; None if nothing of it was fetched."""
        commit = revision
        with suppress(OSError, ValueError):
            commit = self._ref(revision).read_text("utf-8").strip()
        return commit if re.fullmatch("[0-9a-f]{40,64}", commit) and self.files(commit) else None

    def files(self, commit: str) -> list[str]:
        """What of that commit was fetched."""
        folder = self._folder / "snapshots" / commit
        with suppress(OSError):
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return []

    def path(self, commit: str, name: str) -> Path:
        """Where a file of that commit is, once it was fetched."""
        return self._folder / "snapshots" / commit / name

    def remember(self, revision: str, commit: str) -> None:
        """That the hub says so; for when it is out of reach. A cache that cannot be written stays as it is."""
        with suppress(OSError, ValueError):
            ref = self._ref(revision)
            if revision != commit and not (ref.exists() and ref.read_text("utf-8") == commit):
                ref.parent.mkdir(parents=True, exist_ok=True)
                write_whole(ref, commit.encode())

    def bring(self, file: HubPath, remedy: str, progress: Progress, sha256: str | None) -> Path:
        """Fetch `file`, from where it was cut off. Raises `OSError`, `HubError`, and whatever the library raises.

        Its size, and its sha256 where the hub names it or `sha256` does, are checked before it gets its name.
        """
        assert file.commit is not None
        pointer = self.path(file.commit, file.file)
        size_bytes, etag = file.require(remedy)
        wanted = {digest for digest in (etag, sha256) if digest and re.fullmatch("[0-9a-f]{64}", digest)}
        if len(wanted) > 1:
            raise HubError(f"{file}: is another file than it should be (sha256 {etag[:12]}, not {sha256}): {remedy}")
        is_plain = re.fullmatch(r"[\w-][\w.-]*", etag, re.ASCII)
        blob = self._folder / "blobs" / (etag if is_plain else hashlib.sha256(etag.encode()).hexdigest())
        for folder in (pointer.parent, blob.parent, self._locks):
            folder.mkdir(parents=True, exist_ok=True)
        # The library's own lock: whoever fetches the same file through it is waited for.
        from filelock import FileLock  # noqa: PLC0415  (of the same extra)

        with FileLock(self._locks / f"{blob.name}.lock"):
            if pointer.is_file() and pointer.stat().st_size == size_bytes:  # another process was quicker
                return pointer
            if not blob.is_file() or blob.stat().st_size != size_bytes:
                blob.unlink(missing_ok=True)
                _transfer(file, blob, size_bytes, wanted, remedy, progress)
            pointer.unlink(missing_ok=True)
            try:
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))
            except (OSError, NotImplementedError):  # Windows, to whoever may not make links
                blob.replace(pointer)
        return pointer

    def _ref(self, revision: str) -> Path:
        if ".." in Path(revision).parts or Path(revision).is_absolute():
            raise ValueError(revision)
        return self._folder / "refs" / revision


def _transfer(file: HubPath, blob: Path, size_bytes: int, wanted: set[str], remedy: str, progress: Progress) -> None:
    partial = blob.with_name(f"{blob.name}.incomplete")
    digest = hashlib.sha256()
    with partial.open("a+b") as target, progress(file.name, size_bytes) as bar:
        have = target.seek(0, os.SEEK_END)
        if have > size_bytes:
            have = target.truncate(0)
        if shutil.disk_usage(partial.parent).free < size_bytes - have:
            raise HubError(
                f"{file}: {size_text(size_bytes - have)} are to be fetched, more than is free in {partial.parent}: "
                f"free some space, set HF_HOME to a folder on another disk, or {remedy}"
            )
        target.seek(0)
        while block := target.read(_BLOCK_BYTES):
            digest.update(block)
        bar(have)
        for new in _blocks(file, have, size_bytes, remedy):
            if new is None:
                bar(-target.tell())
                digest = hashlib.sha256()
                target.truncate(0)
            else:
                target.write(new)
                digest.update(new)
                bar(len(new))
        target.flush()
        os.fsync(target.fileno())
    if wanted and digest.hexdigest() not in wanted:
        partial.unlink()
        raise HubError(
            f"{file}: what arrived is damaged (its sha256 is {digest.hexdigest()[:12]}, expected {min(wanted)[:12]}) "
            f"and was discarded: try again, or {remedy}"
        )
    partial.replace(blob)


def _blocks(file: HubPath, have: int, size_bytes: int, remedy: str) -> Iterator[bytes | None]:
    """The bytes from `have` on, over as many connections as it takes. None: all from the start once more."""
    furthest, tries = have, 0
    errors: Any = library().errors
    while have < size_bytes:
        try:
            with streamed(file.url, f"bytes={have}-" if have else None) as (status, part, chunks):
                if have and status != 206:  # a server that gives no parts
                    yield None
                    have = 0
                elif have and not part.startswith(f"bytes {have}-"):
                    raise HubError(f"{file}: the server sent another part ({part!r}) than the one from byte {have} on")
                for chunk in chunks:
                    have += len(chunk)
                    if have > size_bytes:
                        yield None
                        raise HubError(f"{file}: more came than the {size_bytes} bytes that the hub names: {remedy}")
                    yield chunk
            cut: Exception = HubError(f"{file}: only {have} bytes of {size_bytes} came: try again, or {remedy}")
        except (HubError, errors.HfHubHTTPError):
            raise
        except Exception as error:  # the connection; each version of the library has its own errors for that
            cut = error
        tries = 0 if have > furthest else tries + 1
        furthest = max(furthest, have)
        if have < size_bytes and tries:
            if tries == _TRIES:
                raise cut
            time.sleep(_PAUSE_S)
