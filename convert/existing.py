"""What lies where a bundle is to be written: a bundle that may be extended, another's, a damaged one. Only reads."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic_core import to_json

from ..core.errors import BundleError
from ..core.printable import printable
from ..models.levels import halves
from ..models.manifest import (
    BY_NEWER,
    MANIFEST_NAME,
    UPGRADE,
    DamagedManifestError,
    LevelFiles,
    Manifest,
    SourceFile,
    mending_command,
    read_manifest,
)
from ..models.spec import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What lies where a bundle is to be."""

    manifest: Manifest | None = None
    damage: str | None = None
    """What is wrong with the manifest, if it is to be replaced."""
    whole: frozenset[str] = frozenset()
    """The manifest's files that are there with their full size."""


def look(directory: Path, keys: Collection[str], *, is_forced: bool) -> Found:
    """What is in `directory`, where levels are to be written, anew if so `is_forced`.

    Raises `BundleError` if no bundle can be there, or one is that cannot be read and is not to be made anew.
    """
    # Path's own methods raise where they may not look.
    if os.path.lexists(directory) and not os.path.isdir(directory):  # noqa: PTH112
        raise BundleError(f"{directory}: is there and is no directory: choose another --out")
    if not os.path.exists(directory / MANIFEST_NAME):  # noqa: PTH110
        return Found()
    try:
        manifest = read_manifest(directory)
    except DamagedManifestError as error:
        if not is_forced:
            anew = mending_command(directory, *keys)
            raise BundleError(f"{directory / MANIFEST_NAME}: {error.problem}. Make it anew: {anew}") from error
        return Found(damage=error.problem)
    return Found(manifest, whole=_whole_files(directory, manifest))


def _whole_files(directory: Path, manifest: Manifest) -> frozenset[str]:
    """Names of the manifest's files that are there with their full size."""
    whole = set()
    for name, record in manifest.files.items():
        path = directory / name
        if path.is_file() and path.stat().st_size == record.size_bytes:
            whole.add(name)
    return frozenset(whole)


def named(spec: ModelSpec, existing: Manifest | None, name: str | None) -> ModelSpec:
    """The checkpoint's spec by the name that was asked for, or that the bundle of the same model has."""
    if name is not None:
        return replace(spec, name=name)
    there = existing.model_spec if existing is not None else spec
    return there if there == replace(spec, name=there.name) else spec


def check_existing(
    directory: Path,
    manifest: Manifest,
    checkpoint_files: int,
    spec: ModelSpec,
    fingerprint: str,
    small: Sequence[SourceFile],
) -> None:
    """Raises `BundleError` if the bundle that is there was made from anything else than what is given."""
    if manifest.fingerprint != fingerprint:
        raise BundleError(
            f"{directory}: holds a bundle of another checkpoint "
            f"(fingerprint {manifest.fingerprint[:12]}, this one's is {fingerprint[:12]}): choose another --out"
        )
    there, given = asdict(manifest.model_spec), asdict(spec)
    different = [name for name in given if there[name] != given[name]]
    if different == ["name"]:
        raise BundleError(
            f"{directory}: holds a bundle of {there['name']}, not {spec.name}: leave --name out, or choose another "
            "--out"
        )
    if different:
        raise BundleError(
            f"{directory}: was made with another model spec ({', '.join(different)}): choose another --out"
        )
    if not manifest.is_kept:
        raise BundleError(
            f"{directory}: its {MANIFEST_NAME} has numbers that no float holds, which would be lost: "
            "choose another --out"
        )
    if len(manifest.sources_of("checkpoint")) != checkpoint_files:
        raise BundleError(
            f"{directory}: was made from a checkpoint of {len(manifest.sources_of('checkpoint'))} files, this one has "
            f"{checkpoint_files}: choose another --out"
        )
    for role in ("mimi", "tokenizer"):
        earlier = [source.sha256 for source in manifest.sources if source.role == role]
        if earlier != [source.sha256 for source in small if source.role == role]:
            raise BundleError(f"{directory}: was made with another {role} file: choose another --out")


def check_newer(directory: Path, existing: Manifest, wanted: Mapping[str, LevelFiles], forced: set[str]) -> None:
    """No file of a level that this version does not know is written: nobody knows what it was made with."""
    known = {name for files in existing.levels.values() for name in (files.backbone, files.decoder)}
    new = {name for files in wanted.values() for name in (files.backbone, files.decoder)} - known
    entries = (to_json(entry).decode() for entry in existing.newer_levels.values())
    newer = dict(zip(existing.newer_names, entries, strict=True))
    for name in sorted(new | forced):
        if key := next((key for key, entry in newer.items() if f'"{name}"' in entry), None):
            raise BundleError(
                f"{directory}: {name} belongs to {printable(key)}, {BY_NEWER}. {UPGRADE}, or choose another --out."
            )


def check_imatrices(
    directory: Path, existing: Manifest, wanted: Mapping[str, LevelFiles], whole: frozenset[str]
) -> None:
    """No level of the manifest may change under its name: neither those that stay, nor files that are kept."""
    for part in ("backbone", "decoder"):
        imatrices = {getattr(files, part): getattr(files, f"imatrix_{part}") for files in wanted.values()}
        for key, files in existing.levels.items():
            name, imatrix = getattr(files, part), getattr(files, f"imatrix_{part}")
            level = halves(key)[0 if part == "backbone" else -1]
            # Early manifests name one of every level that was made with it, also where it changes no weight.
            if name not in imatrices or imatrices[name] == imatrix or not level.mixture.weighs_columns:
                continue
            if name in whole or key not in wanted:
                anew = f"write it anew with --force {key.partition('+')[0]}, or " if key in wanted else ""
                raise BundleError(
                    f"{directory}: {name} belongs to {key}, quantised with another imatrix (or none): "
                    f"{anew}choose another --out"
                )
            now = "with the one that was given" if imatrices[name] else "without one"
            log.warning("%s: %s had another imatrix (or none), it is written anew %s", directory, name, now)
