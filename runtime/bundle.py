"""Opening a bundle, once, and its levels; files that do not belong together are refused before anything is loaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BundleError, MisoError
from ..core.files import file_sha256
from ..models.levels import parse_level
from ..models.manifest import BY_NEWER, MANIFEST_NAME, UPGRADE, LevelFiles, Manifest, read_manifest
from ..models.tensors import Part
from .part_check import check_part


@dataclass(frozen=True)
class Bundle:
    """An open bundle: where it is, and its manifest, read once. What has it, hands it on."""

    source: str
    """The directory, or the Hugging Face repo, as it was given."""
    directory: Path | None
    """None for a repo: a level's files are fetched when it is opened."""
    manifest: Manifest

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
            _check_file(path, manifest, verify=verify)
        for part, path in parts.items():
            check_part(path, part, manifest)
        return found

    def _fetched(self, key: str) -> Path:
        """The directory that the files of a level were fetched to, without the levels that nobody asked for."""
        files, codec = self.manifest.levels[key], self.manifest.codec
        wanted = [codec.decoder, codec.encoder, MANIFEST_NAME, files.backbone, files.decoder, files.embeddings]
        with _hub(self.source) as hub:
            return Path(hub.snapshot_download(self.source, allow_patterns=wanted))


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


def open_bundle(source: "Path | str | Bundle") -> Bundle:
    """A bundle directory or Hugging Face repo, of which nothing but the manifest is read. One that is open stays so.

    Raises `BundleError`, and `MisoError` if fetching needs a package that is not installed.
    """
    if isinstance(source, Bundle):
        return source
    path = Path(source)
    if path.is_dir():
        return Bundle(str(source), path, read_manifest(path))
    with _hub(source) as hub:
        manifest = read_manifest(Path(hub.hf_hub_download(str(source), MANIFEST_NAME)).parent)
    return Bundle(str(source), None, manifest)


def open_level(source: Path | str | Bundle, level: str, *, verify: bool = False) -> OpenLevel:
    """`Bundle.level` of a bundle that nothing else is wanted of."""
    return open_bundle(source).level(level, verify=verify)


def level_key(level: str) -> str:
    """The manifest's name of a level: "Q4_K_M" -> "q4_k_m", "q4_k_m+q8_0" -> itself. `ValueError` if unknown."""
    return "+".join(parse_level(part).key for part in level.split("+"))


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
