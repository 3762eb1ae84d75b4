"""What a conversion is going to do: what is there already, what is missing, what it takes. Reads, never writes."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BundleError
from ..core.files import file_sha256
from ..core.printable import printable
from ..hub.fetch import origin
from ..hub.path import HubPath
from ..models.levels import Level
from ..models.manifest import LevelFiles, Manifest, Role, SourceFile
from ..models.spec import ModelSpec
from ..models.tensors import PARTS, Part, gguf_tensors
from .checkpoint.open import Checkpoint
from .checkpoint.tensor_store import SourcePath
from .checkpoint.tokenizer import check_tokenizer, gguf_keys, read_tokenizer
from .checkpoint.zeros import refuse_sampled
from .codec import DECODER_NAME, ENCODER_NAME, Codec
from .existing import Found, check_existing, check_imatrices, check_newer, look, named
from .gguf_header import tokenizer_keys
from .imatrix import Imatrix, read_imatrix
from .plan import GgufPlan, check_name, file_name, plan_file
from .rows import RowReader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Raises `ValueError` on a name that no model can have, and if a level lacks the importance matrix that it needs:
    before anything is fetched.
    """

    levels: Sequence[Level]
    """To be there when it is done."""
    decoder_level: Level | None = None
    imatrix_backbone: Path | None = None
    imatrix_decoder: Path | None = None
    threads: int = 2
    allow_nonfinite: bool = False
    allow_zero: bool = False
    force: Sequence[Level] = ()
    """To be written anew, whatever is there."""
    name: str | None = None
    """Of the model; None: as the bundle that is there says, or the checkpoint."""

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        for part, path in self.imatrix_paths.items():
            of_part = {key: self.level_of(part, level) for key, level in self.keys.items()}
            if path is None and (key := next((key for key, level in of_part.items() if level.needs_imatrix), None)):
                raise ValueError(
                    f"{key} needs an importance matrix of the {part}: pass --imatrix DIR, which miso-recipe imatrix "
                    f"makes of a bundle of this model, or --imatrix-{part} FILE"
                )

    @property
    def imatrix_paths(self) -> dict[Part, Path | None]:
        """By the part that they are of."""
        return {"backbone": self.imatrix_backbone, "decoder": self.imatrix_decoder}

    @property
    def keys(self) -> dict[str, Level]:
        """All levels that are wanted, by their names in the manifest."""
        return {self.key(level): level for level in [*self.levels, *self.force]}

    def level_of(self, part: Part, level: Level) -> Level:
        """At which level a part of `level` is."""
        if part == "embeddings":
            return level.embeddings
        return self.decoder_level or level if part == "decoder" else level

    def key(self, level: Level) -> str:
        """What the manifest calls a level with the depth decoder's that was asked for."""
        decoder = self.decoder_level or level
        return level.key if decoder == level else f"{level.key}+{decoder.key}"


@dataclass(frozen=True)
class Conversion:
    """A conversion that is planned and checked, and not yet run. Made by `plan_conversion`, run by `bundle.convert`."""

    directory: Path
    checkpoint: Checkpoint
    spec: ModelSpec
    """The checkpoint's, by the name that the bundle has."""
    reader: RowReader
    request: Request
    fingerprint: str
    codec: Codec
    small_files: Mapping[Role, SourcePath]
    """Tokenizer and, unless it lies inside the checkpoint, codec."""
    small_sources: tuple[SourceFile, ...]
    """The same, for the manifest."""
    found: Found
    levels: dict[str, LevelFiles]
    plans: tuple[GgufPlan, ...]
    """The GGUF files still to be written."""
    needs_codec: bool
    """Whether the Mimi graphs are still to be written."""

    @property
    def existing(self) -> Manifest | None:
        """The manifest of the bundle that is there."""
        return self.found.manifest

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
        files = [*self.checkpoint.store.files, *self.small_files.values()]
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
    found = look(directory, request.keys, is_forced=bool(request.force))
    existing = found.manifest
    checkpoint.check_dtypes()
    spec = named(checkpoint.spec, existing, request.name)
    metadata = read_tokenizer(tokenizer)
    check_tokenizer(metadata, spec)
    keys = tokenizer_keys(gguf_keys(metadata))
    codec = Codec(mimi, checkpoint, request.allow_zero)
    imatrices = _imatrices(checkpoint, request)
    reader = RowReader(checkpoint, request.allow_nonfinite, request.allow_zero)
    # Looked at on the hub, its digests are questions of their own, and have no use without a bundle to compare with.
    is_compared = existing is not None
    fingerprint = _fingerprint(checkpoint, directory, existing)
    _remark_on_others(imatrices.values(), fingerprint)
    small_files: dict[Role, SourcePath] = {"tokenizer": tokenizer}
    if mimi is not None:
        small_files["mimi"] = mimi
    small = [source_file(role, file, _sha256(file, is_compared)) for role, file in small_files.items()]
    if existing is not None:
        check_existing(directory, existing, len(checkpoint.store.files), spec, fingerprint, small)
    levels: dict[str, LevelFiles] = {}
    wanted: dict[str, tuple[Part, Level]] = {}
    for key, level in request.keys.items():
        by_part = {part: request.level_of(part, level) for part in PARTS}
        names = {part: file_name(spec, part, by_part[part]) for part in PARTS}
        used = {f"imatrix_{part}": m.sha256 for part, at in by_part.items() if (m := _weighing(imatrices, part, at))}
        levels[key] = LevelFiles(**names, **used)
        wanted |= {name: (part, by_part[part]) for part, name in names.items()}
    forced = {name for level in request.force for name in _files(levels[request.key(level)])}
    stays = found.whole - forced - ({DECODER_NAME, ENCODER_NAME} if forced else set())
    plans = [
        plan_file(spec, part, level, reader, fingerprint, keys, _weighing(imatrices, part, level))
        for name, (part, level) in wanted.items()
        if name not in stays
    ]
    if existing is not None:
        check_newer(directory, existing, levels, forced)
        check_imatrices(directory, existing, levels, stays)
    if plans and not request.allow_zero:
        refuse_sampled(checkpoint)
    return Conversion(
        directory=directory,
        checkpoint=checkpoint,
        spec=spec,
        reader=reader,
        request=request,
        fingerprint=fingerprint,
        codec=codec,
        small_files=small_files,
        small_sources=tuple(small),
        found=found,
        levels=levels,
        plans=tuple(plans),
        needs_codec=not {DECODER_NAME, ENCODER_NAME} <= stays,
    )


def source_file(role: Role, file: SourcePath, sha256: str) -> SourceFile:
    """A source for the manifest, with where it came from if that is the hub."""
    repo, commit = origin(file) or (None, None)
    return SourceFile(role=role, name=file.name, sha256=sha256, repo=repo, revision=commit)


def up_to_date(conversion: Conversion) -> Conversion:
    """The same conversion, planned anew if what is in the directory has changed since. Raises as `plan_conversion`."""
    request = conversion.request
    if look(conversion.directory, request.keys, is_forced=bool(request.force)) == conversion.found:
        return conversion
    mimi, tokenizer = conversion.small_files.get("mimi"), conversion.small_files["tokenizer"]
    return plan_conversion(conversion.directory, conversion.checkpoint, mimi, tokenizer, request)


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


def _imatrices(checkpoint: Checkpoint, request: Request) -> dict[Part, Imatrix]:
    tensors = gguf_tensors(checkpoint.spec)
    return {
        part: read_imatrix(path, [tensor for tensor in tensors if tensor.part == part])
        for part, path in request.imatrix_paths.items()
        if path is not None
    }


def _weighing(imatrices: Mapping[Part, Imatrix], part: Part, level: Level) -> Imatrix | None:
    """What a part is quantised with at a level, if that changes a weight."""
    return imatrices.get(part) if level.mixture.weighs_columns else None


def _remark_on_others(imatrices: Iterable[Imatrix], fingerprint: str) -> None:
    """Those of a fine-tune's original may be what the user wants; those of any other model of its shapes are not."""
    for imatrix in imatrices:
        if fingerprint != _UNKNOWN and imatrix.fingerprint not in (None, fingerprint):
            log.warning(
                "%s: was made of another checkpoint than this one (fingerprint %s, this one's is %s)",
                imatrix.file,
                printable(imatrix.fingerprint[:12]),
                fingerprint[:12],
            )


def _files(level: LevelFiles) -> tuple[str, str, str]:
    return level.backbone, level.decoder, level.embeddings
