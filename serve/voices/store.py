"""Uploaded voices: one file each in a directory that outlives the server. Whose names they have a caller decides."""

import logging
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import MisoError
from ...core.files import PARTIAL_SUFFIX, sync_directory
from ...runtime.voice import Voice
from ..errors import ApiError

log = logging.getLogger(__name__)

ID = re.compile(r"voice_[0-9a-f]{24}", re.ASCII)
"""What comes near the file system is of this form: no name or path of a request ever does."""

_SUFFIX = ".safetensors"
_OLD_S = 60.0
"""A half-written file of this age is nobody's: a voice is written in milliseconds."""


@dataclass(frozen=True)
class StoredVoice:
    """What is known of a voice without its codes."""

    id: str
    name: str
    created_at: int
    """Seconds since 1970."""

    def as_dict(self) -> dict[str, str | int]:
        """In the contract's shape."""
        return {"object": "audio.voice", "id": self.id, "name": self.name, "created_at": self.created_at}


class VoiceStore:
    """The voices in a directory, as they are at the moment: other processes may add and delete some. Thread-safe."""

    def __init__(self, directory: Path, *, most: int) -> None:
        """Make the directory if need be, and clear away what was half-written when a process ended.

        Raises `ValueError` if it cannot be used.
        """
        self._directory, self._most = directory, most
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[tuple[int, int, int], StoredVoice | None]] = {}
        """What was read of each file, and of which state; None: it could not be read."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for path in directory.glob(f"voice_*{PARTIAL_SUFFIX}"):
                if time.time() - path.stat().st_mtime > _OLD_S:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"{directory}: voices cannot be kept there ({error.strerror or error}); choose another directory"
            ) from error

    def all(self) -> list[StoredVoice]:
        """All of them, oldest first."""
        with self._lock:
            return self._scan()

    def get(self, id: str) -> StoredVoice:
        """One of them. Raises `ApiError` (404) if it is not there."""
        found = next((voice for voice in self.all() if voice.id == id), None) if ID.fullmatch(id) else None
        if found is None:
            raise _missing(id)
        return found

    def load(self, id: str) -> Voice:
        """Its codes and words. Raises `ApiError` (404) if it is not there, or not any more."""
        if not ID.fullmatch(id):
            raise _missing(id)
        try:
            return Voice.load(self._path(id))
        except (FileNotFoundError, ValueError) as error:
            raise _missing(id) from error

    def add(self, voice: Voice) -> StoredVoice:
        """Keep a voice: when this returns, it outlives a power cut. Its name must not be an uploaded voice's.

        Raises `ApiError` if there is no room, or it cannot be written.
        """
        with self._lock:
            there = self._scan()
            self._check_room(there, voice.name)
            id = f"voice_{secrets.token_hex(12)}"
            path = self._path(id)
            try:
                voice.save(path)
                sync_directory(self._directory)
                return StoredVoice(id, voice.name, int(path.stat().st_mtime))
            except (MisoError, OSError) as error:
                log.error("an uploaded voice cannot be kept: %s", error)
                raise ApiError(507, "the voice cannot be written; the server's log says why", code="storage") from error

    def check_room(self, name: str) -> None:
        """Raise `ApiError` if a voice of this name could not be added."""
        with self._lock:
            self._check_room(self._scan(), name)

    def delete(self, id: str) -> None:
        """Delete a voice. Raises `ApiError` (404) if it is not there."""
        with self._lock:
            if not ID.fullmatch(id):
                raise _missing(id)
            try:
                self._path(id).unlink()
                sync_directory(self._directory)
            except FileNotFoundError:
                raise _missing(id) from None
            except OSError as error:
                log.error("an uploaded voice cannot be deleted: %s", error)
                raise ApiError(507, "the voice cannot be deleted; the server's log says why", code="storage") from error

    def _check_room(self, there: list[StoredVoice], name: str) -> None:
        if any(voice.name.casefold() == name.casefold() for voice in there):
            raise ApiError(
                400, f"there is a voice {name!r} already: choose another name, or delete that", "name", "name_taken"
            )
        if len(there) >= self._most:
            raise ApiError(
                403, f"this server keeps {self._most} uploaded voices, and has them: delete one", code="voice_limit"
            )

    def _path(self, id: str) -> Path:
        return self._directory / f"{id}{_SUFFIX}"

    def _scan(self) -> list[StoredVoice]:
        """What is there now; of files that are as they were nothing is read again. Raises `ApiError` if it cannot."""
        seen: dict[str, tuple[tuple[int, int, int], StoredVoice | None]] = {}
        try:
            there = [*self._directory.iterdir()]
        except OSError as error:
            log.error("the directory of voices cannot be read: %s", error)
            there = []
            if not isinstance(error, FileNotFoundError):  # no descriptor left, say: voices are there all the same
                raise ApiError(503, "voices cannot be read; the server's log says why", code="storage") from error
        for path in there:
            id = path.stem
            if path.suffix != _SUFFIX or not ID.fullmatch(id):
                continue
            with suppress(FileNotFoundError):
                stat = path.stat()
                state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                known = self._seen.get(id)
                if known is None or known[0] != state:
                    seen[id] = state, self._read(id, int(stat.st_mtime))
                else:
                    # One that could not be read may be whole: what was short then, descriptors for one, is not now.
                    seen[id] = state, known[1] or self._read(id, int(stat.st_mtime), logging.DEBUG)
        self._seen = seen
        oldest_first = sorted(seen.values(), key=lambda one: one[0][2])
        return [voice for _, voice in oldest_first if voice]

    def _read(self, id: str, created_at: int, level: int = logging.WARNING) -> StoredVoice | None:
        path = self._path(id)
        try:
            return StoredVoice(id, Voice.load(path).name or id, created_at)
        except ValueError as error:
            if path.exists():  # not deleted just now
                log.log(level, "an uploaded voice is left out: %s", error)
            return None


def _missing(id: str) -> ApiError:
    shown = id if ID.fullmatch(id) else repr(id[:40])
    message = f"no uploaded voice has the id {shown}: GET /v1/audio/voices lists them with their ids"
    return ApiError(404, message, code="voice_not_found")
