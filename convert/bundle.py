"""Running a conversion: the files of a bundle, written so that a half-written one can never be taken for a whole one.

A bundle is only ever extended. Files get their names when all of them are whole and on disk; the manifest comes last.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import get_args

from ..core.errors import BundleError
from ..core.files import sync_directory, write_whole
from ..core.interrupts import unheard
from ..core.lock import locked
from ..core.note import NOTE
from ..core.units import size_text
from ..models.manifest import BY_NEWER, MANIFEST_NAME, BundleFile, CodecFiles, Manifest, Role, SourceFile
from .checkpoint.source_hash import SourceHasher
from .codec import DECODER_NAME, ENCODER_NAME
from .conversion import Conversion, source_file, up_to_date
from .plan import GgufPlan
from .quantize import Progress, run_pass
from .sink import Sink, remove_partials

log = logging.getLogger(__name__)

LOCK_NAME = ".miso-convert.lock"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def convert(conversion: Conversion, progress: Progress = lambda _weights: None) -> Manifest:
    """Write what is missing. Returns the manifest of the bundle as it then is.

    What another conversion wrote into the directory since this one was planned stays.

    Raises `CheckpointError` on weights that cannot be converted, `BundleError` if the directory cannot be written, is
    in use or runs full, `ValueError` if a source lies on the hub. Whatever happens, no half-written file keeps a
    finished name.
    """
    if conversion.looked_at:
        raise ValueError(f"{conversion.looked_at[0]} was only looked at: resolve the sources with fetch=True")
    directory = conversion.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            for name in remove_partials(directory):
                log.warning("discarded %s, left by an interrupted run", name, extra=NOTE)
            conversion = up_to_date(conversion)
            _check_space(conversion)
            if conversion.existing and conversion.existing.newer_levels:
                names = ", ".join(conversion.existing.newer_names)
                log.warning("%s: %s, %s, stays as it is", directory, names, BY_NEWER)
            manifest = _write(conversion, progress)
            if manifest != conversion.existing:
                with _damaged_set_aside(conversion):
                    write_whole(directory / MANIFEST_NAME, manifest.to_json().encode())
                sync_directory(directory)
            return manifest
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise BundleError(
                f"{directory}: the disk is full: the conversion needs {size_text(conversion.needed_bytes)}. "
                "What was half-written has been deleted; free some space and run the same command again."
            ) from error
        raise BundleError(
            f"{directory}: cannot be written ({error.strerror or error}): choose another --out"
        ) from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One conversion per directory at a time. The lock itself dies with the process, whatever ends it."""
    path = directory / LOCK_NAME
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except BlockingIOError as error:
            raise BundleError(f"{directory}: another miso-convert is writing into it; wait for it to end") from error
        except OSError as error:
            if path.is_symlink() or path.is_dir():
                raise BundleError(f"{path}: is no file that can be locked ({error.strerror}): delete it") from error
            raise
        yield


@contextmanager
def _damaged_set_aside(conversion: Conversion) -> Iterator[None]:
    """Out of the way of the new one goes a manifest that cannot be read, and back if there comes none."""
    if not conversion.found.damage:
        yield
        return
    path = conversion.directory / MANIFEST_NAME
    first = path.with_name(f"{MANIFEST_NAME}.damaged")
    names = chain([first], (first.with_name(f"{first.name}.{number}") for number in count(2)))
    aside = next(name for name in names if not os.path.lexists(name))
    path.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(path)
        raise
    log.warning(
        "%s: was damaged (%s) and is kept as %s: levels that only it named are to be converted again",
        path,
        conversion.found.damage,
        aside.name,
    )


def _check_space(conversion: Conversion) -> None:
    """That there is a place for every file, by name and by size."""
    for name in [*(plan.name for plan in conversion.plans), DECODER_NAME, ENCODER_NAME]:
        path = conversion.directory / name
        if path.is_dir() and not path.is_symlink():
            raise BundleError(f"{path}: is a directory: move it away, or choose another --out")
    free = shutil.disk_usage(conversion.directory).free
    if free < conversion.needed_bytes:
        raise BundleError(
            f"{conversion.directory}: the conversion needs {size_text(conversion.needed_bytes)}, "
            f"{size_text(free)} are free. Free some space, ask for fewer levels, or choose another --out."
        )


def _write(conversion: Conversion, progress: Progress) -> Manifest:
    """Write all missing files, then give them their names together."""
    sinks: list[Sink] = []
    with ExitStack() as undo, ThreadPoolExecutor(1, thread_name_prefix="codec") as background:

        @unheard  # between a file that is there and its place in `undo` it would be left over
        def begun(name: str) -> Sink:
            sink = Sink(conversion.directory, name)
            sinks.append(sink)
            undo.callback(sink.discard)
            return sink

        def new_sink(name: str, head: bytes) -> Sink:
            sink = begun(name)
            sink.write(head)
            return sink

        def write_codec() -> None:
            if conversion.needs_codec:
                # The larger graph first: the smaller then fits into the memory that it leaves behind.
                new_sink(ENCODER_NAME, conversion.codec.encoder_graph())
                new_sink(DECODER_NAME, conversion.codec.decoder_graph())

        def watched(weights: int) -> None:
            if codec.done():
                codec.result()  # a codec that fails stops the pass
            progress(weights)

        codec = background.submit(write_codec)
        checkpoint_sources = conversion.existing.sources_of("checkpoint") if conversion.existing else []
        if conversion.plans:
            files = [(plan, new_sink(plan.name, plan.header)) for plan in conversion.plans]
            hashed = _pass(conversion, files, watched)
            if checkpoint_sources and _digests(checkpoint_sources) != _digests(hashed):
                raise BundleError(
                    f"{conversion.directory}: was made from another checkpoint file "
                    f"({checkpoint_sources[0].name}, sha256 {checkpoint_sources[0].sha256[:12]}): choose another --out"
                )
            checkpoint_sources = hashed
        codec.result()
        records = {sink.name: sink.finish().model_copy(update=_versions()) for sink in sinks}
        _announce(conversion, records)
        for sink in sinks:
            sink.commit()
        if sinks:
            sync_directory(conversion.directory)
    return _manifest(conversion, checkpoint_sources, records)


def _versions() -> dict[str, str]:
    """Of what is writing now."""
    return {"converter": f"miso-gguf {version('miso-gguf')}", "llama_cpp": version("llama-cpp-python")}


def _announce(conversion: Conversion, records: dict[str, BundleFile]) -> None:
    """Before files get other bytes than the manifest says, it says that they have none.

    A process that is killed between the first new file and the new manifest leaves what the next run mends.
    """
    there = conversion.existing.files if conversion.existing else {}
    changing = {
        name: file.model_copy(update={"size_bytes": 0})
        for name, file in there.items()
        if name in records and file.sha256 != records[name].sha256
    }
    if conversion.existing and changing:
        announced = conversion.existing.model_copy(update={"files": {**there, **changing}})
        write_whole(conversion.directory / MANIFEST_NAME, announced.to_json().encode())
        sync_directory(conversion.directory)


def _digests(sources: list[SourceFile]) -> list[str]:
    """A renamed checkpoint is the same checkpoint."""
    return [source.sha256 for source in sources]


def _pass(conversion: Conversion, files: list[tuple[GgufPlan, Sink]], progress: Progress) -> list[SourceFile]:
    """One pass over the checkpoint, hashing its files on the way."""
    paths = [path for path in conversion.checkpoint.store.files if isinstance(path, Path)]  # see `looked_at`
    hasher = SourceHasher(paths)
    hasher.start()
    try:
        run_pass(
            conversion.reader,
            files,
            conversion.request.threads,
            allow_nonfinite=conversion.request.allow_nonfinite,
            reached=hasher.reached,
            progress=progress,
        )
        digests = hasher.result()
    finally:
        hasher.stop()
    return [source_file("checkpoint", path, digest) for path, digest in zip(paths, digests, strict=True)]


def _manifest(conversion: Conversion, checkpoint_sources: list[SourceFile], records: dict[str, BundleFile]) -> Manifest:
    made = _versions()
    manifest = Manifest(
        converter=made["converter"],
        llama_cpp=made["llama_cpp"],
        fingerprint=conversion.fingerprint,
        sources=[*checkpoint_sources, *conversion.small_sources],
        spec=conversion.spec.to_dict(),
        codec=CodecFiles(decoder=DECODER_NAME, encoder=ENCODER_NAME),
        levels=dict(sorted(conversion.levels.items())),
        files=dict(sorted(records.items())),
    )
    return _extended(conversion.existing, manifest) if conversion.existing else manifest


def _extended(existing: Manifest, new: Manifest) -> Manifest:
    """The manifest that is there with `new` added, and with all that this version does not know of it."""
    levels = {key: existing.levels[key].updated(new.levels[key]) for key in existing.levels.keys() & new.levels.keys()}
    files = dict(new.files)
    # Early manifests say once for all files what made them.
    is_other = (existing.converter, existing.llama_cpp) != (new.converter, new.llama_cpp)
    for name, file in existing.files.items():
        if name not in files:
            made_by = dict(zip(("converter", "llama_cpp"), existing.versions[name], strict=True))
            files[name] = file.model_copy(update=made_by) if is_other else file
        elif file.sha256 == files[name].sha256:  # what else is said of a file is of its bytes
            files[name] = file.updated(files[name])
    earlier = {(source.role, source.sha256): source for source in existing.sources}
    sources = [earlier.pop((source.role, source.sha256), source).updated(source) for source in new.sources]
    return existing.updated(
        new.model_copy(
            update={
                "sources": [*sources, *(source for source in earlier.values() if source.role not in get_args(Role))],
                "spec": existing.spec,  # the same, as far as this version can tell
                "codec": existing.codec.updated(new.codec),
                "levels": dict(sorted({**existing.levels, **new.levels, **levels}.items())),
                "files": dict(sorted(files.items())),
            }
        )
    )
