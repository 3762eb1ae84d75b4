"""The sums so far on disk, so that a run that was killed goes on where it stopped: one file, whole or not there."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import MisoError
from ..core.files import open_whole
from ..models.spec import ModelSpec
from ..models.tensors import Part
from .sums import PartSums, empty_sums

STATE_NAME = "collecting.npz"
FRESH = "start again with --fresh, which forgets it, or give another --out"
CHANGED = "the bundle, the level, what is said, the device, a library or the source has changed since"

_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile)
"""What zipfile, numpy and json raise on files that are not what they should be."""


@dataclass
class State:
    """How far a collection is.

    Attributes:
        sums: Of both parts.
        clips: How many of the plan's were heard.
        frames: That were said in them.
        silent: Clips of them in which nothing was said.
    """

    sums: dict[Part, PartSums]
    clips: int = 0
    frames: int = 0
    silent: int = 0


def save(directory: Path, identity: str, state: State) -> None:
    """Keep the state: when this returns, it is on disk. Raises `OSError`; then the one before is still there."""
    about = {"identity": identity, "clips": state.clips, "frames": state.frames, "silent": state.silent}
    arrays: dict[str, Any] = {
        f"{part}/{name}": values for part, sums in state.sums.items() for name, values in sums.arrays().items()
    }
    path = directory / STATE_NAME
    try:
        with open_whole(path) as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: a clip could not be kept, the {state.clips - 1} before it are safe: make room and run "
            "again to go on",
            str(path),
        ) from error


def load(directory: Path, identity: str, spec: ModelSpec) -> State:
    """The state that was kept; an empty one if there is none.

    Raises `MisoError` if it is damaged, or of another collection.
    """
    state, path = State(empty_sums(spec)), directory / STATE_NAME
    if not path.exists():
        return state
    try:
        # numpy reads no further than a header says, so it does not see each checksum: look at them first.
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} does not match its checksum")
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            found, state.clips, state.frames, state.silent = (
                about[name] for name in ("identity", "clips", "frames", "silent")
            )
            if found == identity:
                for part, sums in state.sums.items():
                    sums.restore({name: arrays[f"{part}/{name}"] for name in sums.arrays()})
    except _UNREADABLE as error:
        raise MisoError(f"{path}: is damaged, or not written by miso-recipe ({error}): {FRESH}") from error
    if found != identity:
        raise MisoError(f"{path}: is of another run ({str(found)[:12]}, now {identity[:12]}): {CHANGED}: {FRESH}")
    return state
