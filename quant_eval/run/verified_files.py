"""Whether files hold what their bundle's manifest says: what is measured is named by its bytes, not by its file's name.

What was hashed once is remembered beside the records while nothing about the file has changed, so that a run that goes
on does not read 16 GB again. It knows no model and no records.

What is promised: before the work and after it, also one that was interrupted, every file is the manifest's. Processes
map the files, so what is written into one meanwhile is computed with; after the work that is seen, and all records of
the directory are void. Not seen is a change that was undone before a run that was killed goes on.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...core.errors import BundleError
from ...core.files import file_sha256, write_whole
from ...models.manifest import MANIFEST_NAME
from ...runtime.bundle import OpenLevel

HASHES_NAME = "files.json"
"""In the directory of an evaluation."""
_VERSION = 1
_SETTLED_NS = 2_000_000_000
"""A file that changed less long ago may change again within one tick of its file system's clock (2 s of FAT).

Its hash is not remembered.
"""

Progress = Callable[[int, int], None]
"""Called with the bytes that were hashed, and of how many."""


def nobody(_done: int, _total: int) -> None:
    """Whom progress does not interest."""


class VerifiedFiles:
    """The files of some levels, before the work and after it."""

    def __init__(self, levels: Iterable[OpenLevel], out: Path) -> None:
        """What is known of them is kept in the directory `out`, which is made if it is not there."""
        self._store = out / HASHES_NAME
        # By what is expected, too: a link of one bundle to a file of another may disagree with that one's manifest.
        self._files = {(path.absolute(), _expected(path, level)): level for level in levels for path in _paths(level)}

    def check(self, progress: Progress = nobody) -> None:
        """Hash every file that is not known to be what it was.

        Raises:
            BundleError: If one holds something else than its manifest says; or if `check_after` has found one.
        """
        known, spoiled = self._known()
        if spoiled:
            raise BundleError(spoiled)
        self._hash(known, progress)

    def check_after(self) -> None:
        """See that the files are still what they were before they were measured.

        Raises:
            BundleError: If one has changed: records may be of either content, and `check` raises from now on.
        """
        known, _ = self._known()
        try:
            self._hash(known, nobody)
        except BundleError as error:
            spoiled = (
                f"{error}. It was changed while it was evaluated, so nothing that is recorded in "
                f"{self._store.parent} counts: mend it, then run again with --fresh, which forgets the records"
            )
            self._write(known, spoiled)
            raise BundleError(spoiled) from error

    def _hash(self, known: dict[str, Any], progress: Progress) -> None:
        wanted = [(path, sha256, _seen(path)) for path, sha256 in self._files]
        rest = [each for each in wanted if known.get(str(each[0])) != {**each[2], "sha256": each[1]}]
        total, done = sum(seen["size_bytes"] for _, _, seen in rest), 0

        def tell(read: int) -> None:
            nonlocal done
            done += read
            progress(done, total)

        for path, sha256, seen in rest:
            digest = file_sha256(path, tell)
            if digest != sha256:
                directory = self._files[path, sha256].directory
                raise BundleError(
                    f"{path}: holds something else than {MANIFEST_NAME} says (sha256 {digest[:12]}..., expected "
                    f"{sha256[:12]}...), and would be measured as what it is not. What is wrong with the bundle says "
                    f"miso-convert verify {directory}"
                )
            # A link that somebody else makes meanwhile (a damaged twin of the same bundle) moves the inode's time and
            # changes no byte. Remembered is the time before: what else may have moved it is read for next time.
            if {**_seen(path), "ctime_ns": seen["ctime_ns"]} != seen:
                raise BundleError(f"{path}: was changed while it was read. Run again when it is whole")
            if max(seen["mtime_ns"], seen["ctime_ns"]) < time.time_ns() - _SETTLED_NS:
                known[str(path)] = {**seen, "sha256": digest}
        if rest:
            self._write(known)

    def _known(self) -> tuple[dict[str, Any], str | None]:
        """What is remembered, and why the records are void; nothing, if it cannot be read."""
        try:
            document = json.loads(self._store.read_bytes())
            if document["version"] == _VERSION:
                return dict(document["files"]), document["spoiled"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return {}, None

    def _write(self, files: dict[str, Any], spoiled: str | None = None) -> None:
        self._store.parent.mkdir(parents=True, exist_ok=True)
        document = {"version": _VERSION, "spoiled": spoiled, "files": files}
        write_whole(self._store, json.dumps(document, indent=1).encode())


def _paths(level: OpenLevel) -> list[Path]:
    """All that a level is made of; the codec's encoder need not be there."""
    paths = [level.backbone, level.decoder, level.embeddings, level.codec_decoder]
    return [*paths, level.codec_encoder] if level.codec_encoder.exists() else paths


def _expected(path: Path, level: OpenLevel) -> str:
    return level.manifest.files[path.name].sha256


def _seen(path: Path) -> dict[str, int]:
    """What changes when a file does. Its own times can be set back (`cp -p`, `rsync -t`), not that of its inode."""
    stat = path.stat()
    return {
        "size_bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }
