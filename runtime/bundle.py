"""Opening a bundle, once, and its levels; files that do not belong together are refused before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BundleError
from ..core.files import file_sha256
from ..hub.cache import Progress
from ..hub.fetch import Hub, Repository, is_repo_id, no_progress, origin
from ..models.levels import DEFAULT_LEVEL, parse_level
from ..models.manifest import BY_NEWER, MANIFEST_NAME, UPGRADE, LevelFiles, Manifest, mending_command, read_manifest
from ..models.tensors import Part
from .part_check import check_part

_REMEDY = "pass the directory of a bundle"


@dataclass(frozen=True)
class Bundle:
    """An open bundle: where it is, and its manifest, read once. What has it, hands it on."""

    source: str
    """The directory, or the Hugging Face repo, as it was given."""
    directory: Path | None
    """None for a repo: a level's files are fetched when it is opened."""
    manifest: Manifest
    repository: Repository | None = None
    """The repo, at the one commit that the manifest is of."""

    def key(self, level: str) -> str:
        """`level_key`. Raises `BundleError` on a level that only a newer version knows, `ValueError` if none does."""
        if (key := level.strip().lower()) in self.manifest.newer_levels:
            others = f", or choose one of {', '.join(self.manifest.levels)}" if self.manifest.levels else ""
            raise BundleError(f"{self.source}: level {key} was {BY_NEWER}. {UPGRADE}{others}.")
        return level_key(level)

    def level(self, level: str, *, verify: bool = False) -> "OpenLevel":
        """One of its levels.

        Sizes and the conversion's fingerprint are always checked; `verify` also hashes every file of the level.
        Raises `BundleError`, and `ValueError` on a level that does not exist; both say what there is instead.
        """
        key, manifest = self.key(level), self.manifest
        if key not in manifest.levels:
            backbone, _, decoder = key.partition("+")
            quant = f"--quant {backbone}" + (f" --decoder-quant {decoder}" if decoder else "")
            add = "" if self.directory is None else f", or run miso-convert CHECKPOINT {quant} --out {self.source}"
            raise BundleError(
                f"{self.source}: has no level {key}, only {', '.join(manifest.levels) or 'none'}. "
                f"Choose one of them{add}."
            )
        found = OpenLevel(self.directory or self._fetched(key), manifest, key)
        parts: dict[Part, Path] = {"backbone": found.backbone, "decoder": found.decoder, "embeddings": found.embeddings}
        for path in [*parts.values(), found.codec_decoder]:
            _check_file(path, found, verify=verify)
        for part, path in parts.items():
            check_part(path, part, manifest)
        return found

    def _fetched(self, key: str) -> Path:
        """The directory that the files of a level were fetched to, without the levels that nobody asked for."""
        assert self.repository is not None
        files, codec = self.manifest.levels[key], self.manifest.codec
        # The small ones first: what is wrong with the repository or the cache costs no gigabytes.
        for name in (codec.decoder, codec.encoder, files.embeddings, files.decoder, files.backbone):
            record = self.manifest.files[name]
            path = self.repository.get(name, _REMEDY, size_bytes=record.size_bytes, sha256=record.sha256)
        return path.parent


@dataclass(frozen=True)
class OpenLevel:
    """The files of one level, known to be there and to be of one conversion."""

    directory: Path
    manifest: Manifest
    key: str

    @property
    def _files(self) -> LevelFiles:
        return self.manifest.levels[self.key]

    @property
    def is_here(self) -> bool:
        """Whether its models' files are there: of a bundle that was copied or fetched in part, some may not be."""
        return all(path.is_file() for path in (self.backbone, self.decoder, self.embeddings))

    @property
    def backbone(self) -> Path:
        """The backbone's GGUF."""
        return self.directory / self._files.backbone

    @property
    def decoder(self) -> Path:
        """The depth decoder's GGUF."""
        return self.directory / self._files.decoder

    @property
    def embeddings(self) -> Path:
        """The GGUF of embedding tables and tokenizer."""
        return self.directory / self._files.embeddings

    @property
    def codec_decoder(self) -> Path:
        """Mimi's decoder graph."""
        return self.directory / self.manifest.codec.decoder

    @property
    def codec_encoder(self) -> Path:
        """Mimi's encoder graph: only voices from recordings need it, so it may be absent."""
        return self.directory / self.manifest.codec.encoder


def open_bundle(
    source: "Path | str | Bundle", revision: str | None = None, *, progress: Progress = no_progress
) -> Bundle:
    """A bundle directory or Hugging Face repo, of which nothing but the manifest is read. One that is open stays so.

    Args:
        source: Directory, repo (`OWNER/NAME`), or bundle that is open.
        revision: Branch, tag or commit of the repo; all that is fetched is of that one commit.
        progress: Shows what is fetched.

    Raises `BundleError`.
    """
    if isinstance(source, Bundle):
        return source
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise BundleError(f"{source}: is a directory: a revision is of a Hugging Face repo")
        return Bundle(str(source), path, read_manifest(path))
    if path.exists():
        raise BundleError(f"{source}: is a file; expected the directory that miso-convert wrote")
    if not is_repo_id(str(source)):
        raise BundleError(f"{source}: no such directory. Make a bundle with miso-convert, or give a Hugging Face repo.")
    repository = Hub(progress).open(str(source), _REMEDY, revision)
    repository.require(MANIFEST_NAME, _REMEDY)
    if MANIFEST_NAME not in repository.files:
        raise _no_bundle(repository)
    manifest = read_manifest(repository.get(MANIFEST_NAME, _REMEDY).parent)
    return Bundle(str(source), None, manifest, repository)


def _no_bundle(repository: Repository) -> BundleError:
    is_checkpoint = any(name.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt")) for name in repository.files)
    convert = f"Convert it first: miso-convert {repository} --quant {DEFAULT_LEVEL.key} --out DIR, then --model DIR."
    return BundleError(
        f"{repository}: is no bundle (no {MANIFEST_NAME} in the repository at commit {repository.commit[:12]}). "
        + (convert if is_checkpoint else "Make one with miso-convert.")
    )


def open_level(
    source: Path | str | Bundle,
    level: str,
    *,
    revision: str | None = None,
    verify: bool = False,
    progress: Progress = no_progress,
) -> OpenLevel:
    """`Bundle.level` of a bundle that nothing else is wanted of."""
    return open_bundle(source, revision, progress=progress).level(level, verify=verify)


def level_key(level: str) -> str:
    """The manifest's name of a level: "Q4_K_M" -> "q4_k_m", "q4_k_m+q8_0" -> itself. `ValueError` if unknown."""
    return "+".join(parse_level(part).key for part in level.split("+"))


def _check_file(path: Path, level: OpenLevel, *, verify: bool) -> None:
    record = level.manifest.files[path.name]
    if not path.is_file():
        raise BundleError(f"{path}: is missing from the bundle. {_again(path, level)}")
    if path.stat().st_size != record.size_bytes:
        raise BundleError(
            f"{path}: has {path.stat().st_size} bytes, expected {record.size_bytes}. {_again(path, level)}"
        )
    if verify:
        digest = file_sha256(path)
        if digest != record.sha256:
            raise BundleError(
                f"{path}: sha256 is {digest[:12]}..., {MANIFEST_NAME} says {record.sha256[:12]}...: the "
                f"file was changed or damaged. {_again(path, level)}"
            )


def _again(path: Path, level: OpenLevel) -> str:
    """What helps against a damaged file. One in the hub's cache is not fetched anew while it has its size."""
    if origin(path):
        return f"Delete {path.resolve()} and run it again."
    return f"Fetch or convert it again: {mending_command(level.directory, level.key, manifest=level.manifest)}"
