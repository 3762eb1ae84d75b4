"""The reference's distributions on disk: computed once, then used for every level and in every later run.

One file a clip, float32 as computed, so that a comparison with itself is exactly zero: 16 MB for 60 frames of the 8B
model (0.26 MB a frame), 1.9 GB for 40 prompts x 3 seeds. Packing does not pay: the mantissas are noise. A file is found
by all that its content depends on; one that is damaged or of something else is made anew. Knows no engine.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...core.errors import MisoError
from ...core.files import open_whole
from ...models.spec import ModelSpec
from ...runtime.bundle import OpenLevel
from ...runtime.lm.prompt import Block
from .teacher_forcing import Replayed, joined

log = logging.getLogger(__name__)

_FORMAT = 1
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile)
"""What zipfile and numpy raise on files that are not what they should be."""

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class ReferenceClip:
    """One clip of the reference: what its backbone made of it, and the depth decoder's logits [T, codebooks - 1, V]."""

    replayed: Replayed
    depth_logits: F32Array

    @property
    def logits(self) -> F32Array:
        """Logits of every code, [T, codebooks, V]: a copy, as large as the clip."""
        return joined(self.replayed, self.depth_logits)


def clip_bytes(spec: ModelSpec, frames: int) -> int:
    """Bytes that a clip of so many frames takes on disk, up to a few hundred."""
    per_frame = 4 * (spec.codebooks * spec.audio_vocab + spec.backbone.embed_dim) + 8 * spec.codebooks
    return frames * per_frame + 4 * (spec.audio_vocab + spec.backbone.embed_dim)


def clip_key(level: OpenLevel, blocks: Sequence[Block], codes: I64Array, settings: Mapping[str, Setting]) -> str:
    """All that a clip's logits depend on, as one line of JSON.

    Args:
        level: Its files are named by the sha256 that the manifest has for them.
        blocks: The prompt: rows, and where they are cut, since each block is computed on its own.
        codes: What was said on it.
        settings: How it was computed: KV cache type, device, exactness, versions.
    """
    files = {"backbone": level.backbone, "decoder": level.decoder, "embeddings": level.embeddings}
    prompt = hashlib.sha256()
    for block in blocks:
        prompt.update(len(block).to_bytes(8, "little") + block.key)
    key = {
        "format": _FORMAT,
        "files": {part: level.manifest.files[path.name].sha256 for part, path in files.items()},
        "prompt": prompt.hexdigest(),
        "codes": hashlib.sha256(np.ascontiguousarray(codes, "<i8").tobytes()).hexdigest(),
        "frames": len(codes),
        "settings": dict(settings),
    }
    return json.dumps(key, sort_keys=True, allow_nan=False)


class ReferenceLogits:
    """A directory of clips. Several processes may use it at the same time."""

    def __init__(self, directory: Path, spec: ModelSpec) -> None:
        """Use `directory`, which is made if it is not there. Raises `MisoError` if it cannot be."""
        self._directory, self._spec = directory, spec
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MisoError(f"{directory}: cannot be made ({error.strerror}): choose another directory") from error

    def path(self, key: str) -> Path:
        """Where the clip of `key` is, or would be."""
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"

    def obtain(self, key: str, compute: Callable[[], ReferenceClip]) -> ReferenceClip:
        """The clip of `key` from disk; otherwise `compute` it and keep it.

        A file that cannot be used is reported and replaced. If it cannot be written (a full disk), that is reported and
        the clip returned all the same.
        """
        try:
            return self.read(key)
        except FileNotFoundError:
            pass
        except MisoError as error:
            log.warning("%s; it is computed again", error)
        clip = compute()
        try:
            self.write(key, clip)
        except OSError as error:
            log.warning("%s: cannot be written (%s); the next run computes it again", self.path(key), error)
        return clip

    def read(self, key: str) -> ReferenceClip:
        """The clip of `key`. Raises `FileNotFoundError` if there is none, `MisoError` if it is damaged or foreign."""
        path = self.path(key)
        try:
            # numpy reads no further than a header says, so it does not see each checksum: look at them first.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} does not match its checksum")
            with np.load(path, allow_pickle=False) as arrays:
                found = str(arrays["key"])
                clip = self._clip(arrays)
        except FileNotFoundError:
            raise
        except _UNREADABLE as error:
            raise MisoError(f"{path}: not whole, or not written by miso-eval ({error}): delete it") from error
        if found != key:
            raise MisoError(f"{path}: holds another clip than its name says: delete it")
        return clip

    def write(self, key: str, clip: ReferenceClip) -> None:
        """Keep `clip` under `key`. Nobody ever sees half of it. Raises `OSError`."""
        replayed = clip.replayed
        with open_whole(self.path(key)) as file:
            np.savez(
                file,
                key=np.array(key),
                codes=replayed.codes,
                hidden=replayed.hidden,
                logits0=replayed.logits0,
                depth_logits=clip.depth_logits,
            )

    def _clip(self, arrays: Mapping[str, Any]) -> ReferenceClip:
        spec = self._spec
        frames, codebooks, vocab = len(arrays["codes"]), spec.codebooks, spec.audio_vocab
        expected: dict[str, tuple[type, tuple[int, ...]]] = {
            "codes": (np.int64, (frames, codebooks)),
            "hidden": (np.float32, (frames + 1, spec.backbone.embed_dim)),
            "logits0": (np.float32, (frames + 1, vocab)),
            "depth_logits": (np.float32, (frames, codebooks - 1, vocab)),
        }
        loaded = {}
        for name, (dtype, shape) in expected.items():
            array = arrays[name]
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not {dtype.__name__} {list(shape)}")
            loaded[name] = array
        return ReferenceClip(Replayed(loaded["codes"], loaded["hidden"], loaded["logits0"]), loaded["depth_logits"])
