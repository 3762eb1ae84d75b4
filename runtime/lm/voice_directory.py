"""KV states of voices on disk, so that another process need not compute them: a file for each chain of blocks.

What is read goes into C code that believes it. So a file counts only if it is the user's own, no link, and whole, and
was written for the same rows, model, options and build; any other is passed over with a warning, and replaced. Nothing
here is an error of speaking: without a disk, a voice is computed.

Several processes may share a directory: files appear whole, and whoever writes makes room, least recently used first.
"""

import hashlib
import json
import logging
import os
import re
import stat
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ...core.files import PARTIAL_SUFFIX, open_whole
from ...native.device import Device, devices
from ...native.llama import LlamaOptions, build_text
from ...version import __version__
from ..bundle import OpenLevel

log = logging.getLogger(__name__)

_SUFFIX = ".miso-kv"
_OURS = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}(\.[0-9a-f]{{8}}{re.escape(PARTIAL_SUFFIX)})?")
_HEADER = struct.Struct("<8sI32s32sQ")
"""Magic, format, key, sha256 of the state, its size."""
_MAGIC, _FORMAT = b"miso-kv\0", 1
_MOST_BYTES = 1 << 30
_ABANDONED_S = 3600.0
"""So long after it was last written to, a file that is not whole is nobody's."""
_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)  # a named pipe would be waited for


def state_identity(level: OpenLevel, options: LlamaOptions, gpu: Device | None, prefill_rows: int) -> bytes:
    """All that a state depends on beside the rows: the model, how and where it computes, and with which build.

    The number of sequences is part of llama.cpp's own format; with other threads, the attention of a single row that
    follows 512 or more sums in another order.
    """
    files = level.manifest.files
    names = ("gpu_layers", "kv_type", "exact", "repack", "threads", "sequences")
    told = {
        "version": __version__,
        "model": [files[path.name].sha256 for path in (level.backbone, level.embeddings)],
        "options": {name: value for name, value in asdict(options).items() if name in names},
        "prefill_rows": prefill_rows,
        "devices": [None if gpu is None else gpu.description, devices()[-1].description],
        "build": build_text(),
    }
    return json.dumps(told, sort_keys=True).encode()


class VoiceDirectory:
    """One directory, for one loaded model. One thread at a time; files are written in a thread of its own."""

    def __init__(self, path: Path, identity: bytes, most_bytes: int = _MOST_BYTES) -> None:
        """Use `path`, which is made when something is written; `identity` as of `state_identity`."""
        self.most_bytes = most_bytes
        """Of all files together."""
        self._path, self._identity = path, identity
        self._known: set[str] = set()
        """Names of what was read or written, or cannot be: not again."""
        self._refused: set[str] = set()
        """Names of what is there and of no use."""
        self._writer = ThreadPoolExecutor(1, "miso-voice")

    def close(self) -> None:
        """Wait until what is being written is on disk. Idempotent."""
        self._writer.shutdown()

    def holds(self, keys: Sequence[bytes]) -> bool:
        """Whether this chain was read or written here."""
        return self._digest(keys).hex() in self._known

    def refuse(self, keys: Sequence[bytes]) -> None:
        """Read this chain no more until it is written anew."""
        name = self._digest(keys).hex()
        self._refused.add(name)
        self._known.discard(name)
        log.warning("%s: llama.cpp does not take it: the voice is computed", self._file(name))

    def load(self, keys: Sequence[bytes]) -> bytes | None:
        """The state of a chain; None if there is none that can be used."""
        digest = self._digest(keys)
        name = digest.hex()
        if name in self._refused:
            return None
        try:
            state = self._read(self._file(name), digest)
        except FileNotFoundError:
            self._known.discard(name)  # another process made room
            return None
        except (OSError, ValueError) as error:
            log.warning("%s: is passed over, the voice is computed (%s)", self._file(name), error)
            self._refused.add(name)
            return None
        self._known.add(name)
        with suppress(OSError):  # somebody else's disk may be read only
            os.utime(self._file(name))
        return state

    def save(self, keys: Sequence[bytes], state: bytes) -> None:
        """Write the state of a chain, soon, unless it alone is larger than all may be."""
        digest = self._digest(keys)
        if _HEADER.size + len(state) > self.most_bytes:
            return
        self._known.add(digest.hex())
        with suppress(RuntimeError):  # the interpreter is ending
            self._writer.submit(self._write, digest, state)

    def _digest(self, keys: Sequence[bytes]) -> bytes:
        digest = hashlib.sha256(self._identity)
        for key in keys:
            digest.update(len(key).to_bytes(8, "little"))
            digest.update(key)
        return digest.digest()

    def _file(self, name: str) -> Path:
        return self._path / f"{name}{_SUFFIX}"

    def _read(self, path: Path, digest: bytes) -> bytes:
        """Raises `OSError`, and `ValueError` that says what is wrong with the file."""
        with os.fdopen(os.open(path, _FLAGS), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a file")
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
                raise ValueError("others own it or may write it")
            if not _HEADER.size < status.st_size <= self.most_bytes:
                raise ValueError(f"{status.st_size} bytes")
            content = file.read(status.st_size)
        if len(content) != status.st_size:
            raise ValueError("it is being changed")
        magic, form, key, sha256, size = _HEADER.unpack_from(content)
        state = content[_HEADER.size :]
        if (magic, form, key, size) != (_MAGIC, _FORMAT, digest, len(state)):
            raise ValueError("not whole, or not of this voice and model")
        if hashlib.sha256(state).digest() != sha256:
            raise ValueError("damaged: its sha256 is another")
        return state

    def _write(self, digest: bytes, state: bytes) -> None:
        name = digest.hex()
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open_whole(self._file(name)) as file:
                Path(file.name).chmod(0o600)
                file.write(_HEADER.pack(_MAGIC, _FORMAT, digest, hashlib.sha256(state).digest(), len(state)))
                file.write(state)
            self._refused.discard(name)
            self._make_room()
        except OSError as error:
            log.warning("%s: a voice's state cannot be kept there (%s): it is computed again", self._path, error)

    def _make_room(self) -> None:
        """Delete what was used longest ago, and what a process that was killed left; nothing of other names."""
        found: list[tuple[float, int, Path]] = []
        for path in self._path.iterdir():
            if not (match := _OURS.fullmatch(path.name)):
                continue
            with suppress(OSError):
                status = path.lstat()
                if match[1] is None:
                    found.append((status.st_mtime, status.st_size, path))
                elif time.time() - status.st_mtime > _ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                break
            with suppress(OSError):  # somebody else's, or a directory: the next one
                path.unlink(missing_ok=True)
                total -= size
