"""Finding a level in a bundle, and refusing files that do not belong together before anything heavy is loaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BundleError, MisoError
from ..core.files import file_sha256
from ..models.levels import finest_first, parse_level
from ..models.manifest import BY_NEWER, MANIFEST_NAME, UPGRADE, LevelFiles, Manifest, read_manifest
from ..native.gguf_file import GgufFile


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


def open_level(source: Path | str, level: str, *, verify: bool = False) -> OpenLevel:
    """Find `level` in a bundle directory or Hugging Face repo.

    Sizes and the conversion's fingerprint are always checked; `verify` also hashes every file of the level.
    Raises `BundleError`, and `ValueError` on a level that does not exist; both say what there is instead.
    """
    directory = _local(source, level)
    manifest = read_manifest(directory)
    key = known_level(manifest, level)
    if key not in manifest.levels:
        raise BundleError(
            f"{directory}: has no level {key}, only {', '.join(manifest.levels) or 'none'}. "
            f"Choose one of them, or run miso-convert --quant {key} --out {directory}."
        )
    found = OpenLevel(directory, manifest, key)
    parts = {"backbone": found.backbone, "decoder": found.decoder, "embeddings": found.embeddings}
    for path in [*parts.values(), found.codec_decoder]:
        _check_file(path, manifest, verify=verify)
    for part, path in parts.items():
        _check_origin(path, part, manifest)
    return found


def level_key(level: str) -> str:
    """The manifest's name of a level: "Q4_K_M" -> "q4_k_m", "q4_k_m+q8_0" -> itself. `ValueError` if unknown."""
    return "+".join(parse_level(part).key for part in level.split("+"))


def known_level(manifest: Manifest, level: str) -> str:
    """`level_key`, for a bundle that may have others. Raises `BundleError` on one that a newer version made."""
    if (key := level.strip().lower()) in manifest.newer_levels:
        others = f", or choose one of {', '.join(manifest.levels)}" if manifest.levels else ""
        raise BundleError(f"level {key} of this bundle was {BY_NEWER}. {UPGRADE}{others}.")
    return level_key(level)


def _check_file(path: Path, manifest: Manifest, *, verify: bool) -> None:
    record = manifest.files[path.name]
    if not path.is_file():
        raise BundleError(f"{path}: is missing from the bundle. Fetch or convert it again.")
    if path.stat().st_size != record.size_bytes:
        raise BundleError(
            f"{path}: has {path.stat().st_size} bytes, expected {record.size_bytes}. Fetch or convert it again."
        )
    if verify:
        digest = file_sha256(path)
        if digest != record.sha256:
            raise BundleError(
                f"{path}: sha256 is {digest[:12]}..., {MANIFEST_NAME} says {record.sha256[:12]}...: the "
                "file was changed or damaged. Fetch or convert it again."
            )


def _check_origin(path: Path, part: str, manifest: Manifest) -> None:
    with GgufFile(path) as file:
        found_part, fingerprint = file.value("miso.part"), file.value("miso.source.fingerprint")
    if found_part != part:
        what = f"is a {found_part}" if found_part else "is not one of our files"
        raise BundleError(f"{path}: {what}, expected the {part}. Fetch or convert the bundle again.")
    if fingerprint != manifest.fingerprint:
        raise BundleError(
            f"{path}: comes from another checkpoint (fingerprint {str(fingerprint)[:12]}) than the bundle "
            f"({manifest.fingerprint[:12]}). Files of different conversions do not work together: convert again."
        )


def find_manifest(source: Path | str) -> Manifest:
    """The manifest of a bundle directory or Hugging Face repo; of a repo nothing else is fetched for it.

    Raises `BundleError`.
    """
    path = Path(source)
    if path.is_dir():
        return read_manifest(path)
    with _hub(source) as hub:
        return read_manifest(Path(hub.hf_hub_download(str(source), MANIFEST_NAME)).parent)


def _local(source: Path | str, level: str) -> Path:
    """The directory of the bundle; a Hugging Face repo is fetched first, without the levels that nobody asked for."""
    path = Path(source)
    if path.is_dir():
        return path
    manifest = find_manifest(source)
    key = known_level(manifest, level)
    wanted = [manifest.codec.decoder, manifest.codec.encoder, MANIFEST_NAME]
    if key in manifest.levels:
        files = manifest.levels[key]
        wanted += [files.backbone, files.decoder, files.embeddings]
    with _hub(source) as hub:
        return Path(hub.snapshot_download(str(source), allow_patterns=wanted))


@contextmanager
def _hub(source: Path | str) -> Iterator[Any]:
    """huggingface_hub, for something of the repo `source`."""
    if Path(source).exists():
        raise BundleError(f"{source}: is a file; expected the directory that miso-convert wrote")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise BundleError(f"{source}: no such directory. Make a bundle with miso-convert, or give a Hugging Face repo.")
    try:
        import huggingface_hub  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise MisoError(f"{source}: fetching from Hugging Face needs pip install 'miso-gguf[hub]'") from error
    try:
        yield huggingface_hub
    except (OSError, ValueError) as error:  # the hub's errors are of both kinds
        raise BundleError(f"{source}: no such directory, and not to be had from Hugging Face: {error}") from error


def preferred_levels(manifest: Manifest) -> list[str]:
    """The levels of a bundle, the finest first."""
    return finest_first(manifest.levels)
