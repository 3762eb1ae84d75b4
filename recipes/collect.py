"""From a plan to the two files: clip by clip, resumable, with the same bytes however often it was interrupted."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..convert.imatrix import HALVES, imatrix_name
from ..core.errors import MisoError
from ..core.files import PARTIAL_SUFFIX, sync_directory
from ..core.lock import locked
from ..models.tensors import Part
from .collector import Collector
from .imatrix_file import ImatrixFile, read_imatrix_file
from .plan import Collection
from .state import CHANGED, FRESH, STATE_NAME, State, load, save
from .sums import steps_of

_LOCK_NAME = ".collecting.lock"

Progress = Callable[[int, int], None]
"""Called with the number of clips that were heard, and of how many."""


@dataclass(frozen=True)
class Collected:
    """What a collection has come to.

    Attributes:
        files: The files, as they were written.
        paths: Where.
        frames: That were said; None where the files were there already.
        silent: Clips in which nothing was said, likewise.
        wall_s: What this run took.
    """

    files: dict[Part, ImatrixFile]
    paths: dict[Part, Path]
    frames: int | None = None
    silent: int | None = None
    wall_s: float = 0.0

    @property
    def was_there(self) -> bool:
        """Whether there was nothing to do."""
        return self.frames is None


def collect(collection: Collection, progress: Progress = lambda _done, _all: None, *, fresh: bool = False) -> Collected:
    """Hear what is not heard yet, then write both files. Where both are there already, nothing is done.

    Args:
        collection: See `plan_collection`.
        progress: Is told how far it is.
        fresh: Forget what an earlier run has left in the directory.

    Errors as `MisoTTS.load`; `MisoError` if the directory is of another collection, another run is writing to it, or
    nothing is said. What was heard stays, and the next run goes on behind it.
    """
    out = collection.out
    with alone_in(out):
        paths = {part: out / imatrix_name(part) for part in HALVES}
        if fresh:
            for path in (*paths.values(), out / STATE_NAME):
                path.unlink(missing_ok=True)
        found = {part: read_imatrix_file(path) for part, path in paths.items() if path.exists()}
        check_same(out, found, dict.fromkeys(HALVES, collection.identity), f"{CHANGED}: {FRESH}")
        if len(found) == len(paths):
            (out / STATE_NAME).unlink(missing_ok=True)
            return Collected(found, paths)
        begin = time.monotonic()
        state = _heard(collection, progress)
        if not state.frames:
            raise MisoError(
                f"nothing was said in {state.clips} clips: nothing can be learnt of {collection.candidate.name}"
            )
        files = {part: _file(collection, state, part) for part in HALVES}
        write_all(files, out)
        (out / STATE_NAME).unlink(missing_ok=True)
        return Collected(files, paths, state.frames, state.silent, time.monotonic() - begin)


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold a directory, which is made if it is not there, without what a run that was killed has half-written.

    Raises `MisoError` if another run has it, or it cannot be one.
    """
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out / _LOCK_NAME))
            for name in (STATE_NAME, *map(imatrix_name, HALVES)):
                for leftover in out.glob(f"{name}.*{PARTIAL_SUFFIX}"):
                    leftover.unlink()
        except BlockingIOError as error:
            raise MisoError(f"{out}: another run is writing to it. Wait for it, or give another --out") from error
        except OSError as error:
            raise MisoError(f"{out}: cannot be written to ({error.strerror or error}): give another --out") from error
        yield


def check_same(
    out: Path, found: Mapping[Part, ImatrixFile], identities: Mapping[Part, str], remedy: str = "give another --out"
) -> None:
    """Raise `MisoError` if files that are there have others than these `identities`."""
    for part, file in found.items():
        if file.identity != identities[part]:
            raise MisoError(
                f"{out / imatrix_name(part)}: is of another run ({file.identity[:12]}, now {identities[part][:12]}): "
                f"{remedy}"
            )


def write_all(files: dict[Part, ImatrixFile], out: Path) -> None:
    """Each file whole; when this returns, both are there for good. Raises `OSError`."""
    try:
        for part, file in files.items():
            file.write(out / imatrix_name(part))
        sync_directory(out)
    except OSError as error:
        said = f"{error.strerror}: the files could not be written: make room and run again, nothing heard is lost"
        raise OSError(error.errno, said, str(out)) from error


def _heard(collection: Collection, progress: Progress) -> State:
    spec, clips = collection.candidate.files.manifest.model_spec, collection.clips
    state = load(collection.out, collection.identity, spec)
    progress(state.clips, len(clips))
    if state.clips == len(clips):
        return state
    with Collector(collection.candidate, collection.engine) as collector:
        for prompt, seed in clips[state.clips :]:
            frames = collector.hear(prompt, seed, collection.speech, state.sums)
            state.clips += 1
            state.frames += frames
            state.silent += not frames
            save(collection.out, collection.identity, state)
            progress(state.clips, len(clips))
    return state


def _file(collection: Collection, state: State, part: Part) -> ImatrixFile:
    manifest, sums = collection.candidate.files.manifest, state.sums[part]
    rows = steps_of(manifest.model_spec, part)
    heard = int(sums.counts["blk.0.attn_q.weight"].sum())
    return ImatrixFile(
        part=part,
        fingerprint=manifest.fingerprint,
        identity=collection.identity,
        datasets=collection.datasets,
        clips=state.clips - state.silent,
        chunks=heard // rows,
        chunk_rows=rows,
        entries=dict(sums.entries()),
    )
