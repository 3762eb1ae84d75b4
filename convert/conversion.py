"""What a conversion is going to do: what is there already, what is missing, what it takes. Reads, never writes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic_core import to_json

from ..core.errors import BundleError
from ..core.files import file_sha256
from ..hub.fetch import origin
from ..hub.path import HubPath
from ..models.levels import Level
from ..models.manifest import BY_NEWER, MANIFEST_NAME, UPGRADE, LevelFiles, Manifest, Role, SourceFile, read_manifest
from ..models.tensors import PARTS, Part, gguf_tensors
from .checkpoint.open import Checkpoint
from .checkpoint.source_path import SourcePath
from .checkpoint.tokenizer import check_tokenizer, gguf_keys, read_tokenizer
from .codec import DECODER_NAME, ENCODER_NAME, Codec
from .gguf_header import tokenizer_keys
from .imatrix import Imatrix, read_imatrix
from .plan import GgufPlan, file_name, plan_file
from .rows import RowReader


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    levels: Sequence[Level]
    decoder_level: Level | None = None
    imatrix_backbone: Path | None = None
    imatrix_decoder: Path | None = None
    threads: int = 2
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Conversion:
    """A conversion that is planned and checked, and not yet run. Made by `plan_conversion`, run by `bundle.convert`."""

    directory: Path
    checkpoint: Checkpoint
    reader: RowReader
    request: Request
    fingerprint: str
    codec: Codec
    small_files: tuple[SourcePath, ...]
    """Tokenizer and, unless it lies inside the checkpoint, codec."""
    small_sources: tuple[SourceFile, ...]
    """The same, for the manifest."""
    existing: Manifest | None
    levels: dict[str, LevelFiles]
    plans: tuple[GgufPlan, ...]
    """The GGUF files still to be written."""
    needs_codec: bool
    """Whether the Mimi graphs are still to be written."""

    @property
    def is_done(self) -> bool:
        """Whether all files are there already."""
        return not self.plans and not self.needs_codec

    @property
    def weights(self) -> int:
        """Weights to be written, counted once per file."""
        return sum(plan.weights for plan in self.plans)

    @property
    def looked_at(self) -> list[HubPath]:
        """The sources that were only looked at, on the hub: while there are any, the conversion cannot run."""
        files = [*self.checkpoint.store.files, *self.small_files]
        return [file for file in files if isinstance(file, HubPath)]

    @property
    def download_bytes(self) -> int:
        """What is to be fetched from the hub first: the sources that are not in its cache yet."""
        return sum(file.download_bytes for file in self.looked_at)

    @property
    def needed_bytes(self) -> int:
        """Disk space that the run takes."""
        codec = self.codec.size_estimate_bytes if self.needs_codec else 0
        return sum(plan.size_bytes for plan in self.plans) + codec


def plan_conversion(
    directory: Path, checkpoint: Checkpoint, mimi: SourcePath | None, tokenizer: SourcePath, request: Request
) -> Conversion:
    """Check all inputs and decide what is to be written into `directory`.

    Raises `CheckpointError` on an input that does not fit, `BundleError` if a bundle there is of other inputs.
    """
    checkpoint.check_dtypes()
    spec = checkpoint.spec
    metadata = read_tokenizer(tokenizer)
    check_tokenizer(metadata, spec)
    keys = tokenizer_keys(gguf_keys(metadata))
    codec = Codec(mimi, checkpoint)
    imatrices = _imatrices(checkpoint, request)
    reader = RowReader(checkpoint, request.allow_nonfinite)
    existing = read_manifest(directory) if (directory / MANIFEST_NAME).exists() else None
    # Looked at on the hub, its digests are questions of their own, and have no use without a bundle to compare with.
    is_compared = existing is not None
    fingerprint = _fingerprint(checkpoint, directory, existing)
    small_files: dict[Role, SourcePath] = {"tokenizer": tokenizer}
    if mimi is not None:
        small_files["mimi"] = mimi
    small = [source_file(role, file, _sha256(file, is_compared)) for role, file in small_files.items()]
    if existing is not None:
        _check_existing(directory, existing, checkpoint, fingerprint, small)
    whole = _whole_files(directory, existing) if existing else set()
    levels: dict[str, LevelFiles] = {}
    plans: dict[str, GgufPlan] = {}
    for level in request.levels:
        decoder_level = request.decoder_level or level
        by_part: dict[Part, Level] = {"backbone": level, "decoder": decoder_level, "embeddings": level.embeddings}
        names = {part: file_name(spec, part, by_part[part]) for part in PARTS}
        used = {f"imatrix_{part}": imatrix.sha256 for part, imatrix in imatrices.items()}
        key = level.key if decoder_level == level else f"{level.key}+{decoder_level.key}"
        levels[key] = LevelFiles(**names, **used)
        for part, name in names.items():
            if name not in whole and name not in plans:
                imatrix = imatrices.get(part)
                plans[name] = plan_file(spec, part, by_part[part], reader, fingerprint, keys, imatrix)
    if existing is not None:
        _check_imatrices(directory, existing, levels, whole)
    return Conversion(
        directory=directory,
        checkpoint=checkpoint,
        reader=reader,
        request=request,
        fingerprint=fingerprint,
        codec=codec,
        small_files=tuple(small_files.values()),
        small_sources=tuple(small),
        existing=existing,
        levels=levels,
        plans=tuple(plans.values()),
        needs_codec=not {DECODER_NAME, ENCODER_NAME} <= whole,
    )


def source_file(role: Role, file: SourcePath, sha256: str) -> SourceFile:
    """A source for the manifest, with where it came from if that is the hub."""
    repo, commit = origin(file) or (None, None)
    return SourceFile(role=role, name=file.name, sha256=sha256, repo=repo, revision=commit)


_UNKNOWN = "0" * 64
"""Instead of a digest that nobody looks at."""


def _sha256(file: SourcePath, is_compared: bool) -> str:
    if not isinstance(file, HubPath):
        return file_sha256(file)
    return file.sha256 if is_compared else _UNKNOWN


def _fingerprint(checkpoint: Checkpoint, directory: Path, existing: Manifest | None) -> str:
    """What tells the checkpoint from others.

    Of one on the hub each row would be a request. There its files' sha256 tell whether the bundle in `directory` is of
    it. Raises `BundleError` if it is another's.
    """
    files = [file for file in checkpoint.store.files if isinstance(file, HubPath)]
    if not files:
        return checkpoint.fingerprint()
    if existing is None:
        return _UNKNOWN
    if [source.sha256 for source in existing.sources_of("checkpoint")] != [file.sha256 for file in files]:
        raise BundleError(f"{directory}: holds a bundle of another checkpoint than {files[0]}: choose another --out")
    return existing.fingerprint


def _check_existing(
    directory: Path, manifest: Manifest, checkpoint: Checkpoint, fingerprint: str, small: Sequence[SourceFile]
) -> None:
    """Raises `BundleError` if the bundle that is there was made from anything else than what is given."""
    if manifest.fingerprint != fingerprint:
        raise BundleError(
            f"{directory}: holds a bundle of another checkpoint "
            f"(fingerprint {manifest.fingerprint[:12]}, this one's is {fingerprint[:12]}): choose another --out"
        )
    there, given = asdict(manifest.model_spec), asdict(checkpoint.spec)
    if different := [name for name in given if there[name] != given[name]]:
        raise BundleError(
            f"{directory}: was made with another model spec ({', '.join(different)}): choose another --out"
        )
    if not manifest.is_kept:
        raise BundleError(
            f"{directory}: its {MANIFEST_NAME} has numbers that no float holds, which would be lost: "
            "choose another --out"
        )
    files = len(checkpoint.store.files)
    if len(manifest.sources_of("checkpoint")) != files:
        raise BundleError(
            f"{directory}: was made from a checkpoint of {len(manifest.sources_of('checkpoint'))} files, this one has "
            f"{files}: choose another --out"
        )
    for role in ("mimi", "tokenizer"):
        earlier = [source.sha256 for source in manifest.sources if source.role == role]
        if earlier != [source.sha256 for source in small if source.role == role]:
            raise BundleError(f"{directory}: was made with another {role} file: choose another --out")


def _imatrices(checkpoint: Checkpoint, request: Request) -> dict[Part, Imatrix]:
    paths: dict[Part, Path | None] = {"backbone": request.imatrix_backbone, "decoder": request.imatrix_decoder}
    tensors = gguf_tensors(checkpoint.spec)
    return {
        part: read_imatrix(path, [tensor for tensor in tensors if tensor.part == part])
        for part, path in paths.items()
        if path is not None
    }


def _whole_files(directory: Path, manifest: Manifest) -> set[str]:
    """Names of the manifest's files that are there with their full size."""
    whole = set()
    for name, record in manifest.files.items():
        path = directory / name
        if path.is_file() and path.stat().st_size == record.size_bytes:
            whole.add(name)
    return whole


def _check_imatrices(directory: Path, existing: Manifest, wanted: dict[str, LevelFiles], whole: set[str]) -> None:
    """No level of the manifest may change under its name: neither those that stay, nor files that are kept."""
    known = {name for files in existing.levels.values() for name in (files.backbone, files.decoder)}
    newer = {key: to_json(entry).decode() for key, entry in existing.newer_levels.items()}
    for name in sorted({name for files in wanted.values() for name in (files.backbone, files.decoder)} - known):
        if key := next((key for key, entry in newer.items() if f'"{name}"' in entry), None):
            raise BundleError(f"{directory}: {name} belongs to {key}, {BY_NEWER}. {UPGRADE}, or choose another --out.")
    for part in ("backbone", "decoder"):
        imatrices = {getattr(files, part): getattr(files, f"imatrix_{part}") for files in wanted.values()}
        for key, files in existing.levels.items():
            name = getattr(files, part)
            stays = name in whole or key not in wanted
            if stays and name in imatrices and imatrices[name] != getattr(files, f"imatrix_{part}"):
                raise BundleError(
                    f"{directory}: {name} belongs to {key}, quantised with another imatrix (or none): "
                    "choose another --out"
                )
