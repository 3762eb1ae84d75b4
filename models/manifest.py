"""`miso.json`, the manifest of a bundle: what was converted from what, and which files make up which level.

`convert` writes it, `runtime` and `quant_eval` read it. A file that it does not name is not part of the bundle.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..core.errors import BundleError
from .levels import LEVELS
from .spec import ModelSpec

MANIFEST_NAME = "miso.json"
SCHEMA_VERSION: Literal[1] = 1
FORMAT_VERSION: Literal[1] = 1
"""Version of our GGUF layout (`miso.format_version`)."""


def _plain_name(name: str) -> str:
    # A manifest is data from strangers: a file may only be beside it.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+ -]*", name):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Role = Literal["checkpoint", "mimi", "tokenizer"]


class BundleFile(_Strict):
    """One file of the bundle."""

    size_bytes: int = Field(ge=0)
    sha256: Sha256


class SourceFile(_Strict):
    """One file that the bundle was made from."""

    role: Role
    name: str
    sha256: Sha256


class LevelFiles(_Strict):
    """The files of one level, and the importance matrices that it was quantised with (sha256)."""

    backbone: FileName
    decoder: FileName
    embeddings: FileName
    imatrix_backbone: Sha256 | None = None
    imatrix_decoder: Sha256 | None = None


class CodecFiles(_Strict):
    """The Mimi graphs. Their state and dimensions stand in the ONNX metadata."""

    decoder: FileName
    encoder: FileName


class Manifest(_Strict):
    """The whole of `miso.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    format_version: Literal[1] = FORMAT_VERSION
    converter: str
    """Name and version of the program that wrote the bundle."""
    llama_cpp: str
    """Version of llama-cpp-python, whose ggml quantised it."""
    fingerprint: Sha256
    """Identifies the checkpoint's weights: see `convert/checkpoint/open.py`."""
    sources: list[SourceFile]
    spec: dict[str, Any]
    codec: CodecFiles
    levels: dict[str, LevelFiles]
    files: dict[FileName, BundleFile]
    digest: str = ""
    """sha256 of this manifest with an empty digest: a manifest that was edited does not verify."""

    @field_validator("levels")
    @classmethod
    def _known_levels(cls, levels: dict[str, LevelFiles]) -> dict[str, LevelFiles]:
        for key in levels:
            if not set(key.split("+")) <= LEVELS.keys():
                raise ValueError(f"unknown level {key!r}")
        return levels

    @property
    def computed_digest(self) -> str:
        """What `digest` should be."""
        return hashlib.sha256(self.model_copy(update={"digest": ""}).to_json().encode()).hexdigest()

    @property
    def model_spec(self) -> ModelSpec:
        """The model's dimensions."""
        return ModelSpec.from_dict(self.spec)

    def sources_of(self, role: Role) -> list[SourceFile]:
        """The source files of one role."""
        return [source for source in self.sources if source.role == role]

    def missing_entries(self) -> list[str]:
        """Names that a level or the codec uses and `files` does not list."""
        used = {self.codec.decoder, self.codec.encoder}
        for level in self.levels.values():
            used |= {level.backbone, level.decoder, level.embeddings}
        return sorted(used - self.files.keys())

    def to_json(self) -> str:
        """The file's text: stable key order, so that equal bundles have equal bytes."""
        return self.model_dump_json(indent=2) + "\n"


def sealed(**entries: Any) -> Manifest:
    """A manifest with its digest."""
    manifest = Manifest(**entries)
    return manifest.model_copy(update={"digest": manifest.computed_digest})


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the bundle in `directory`. Raises `BundleError` naming what is wrong and what to do."""
    path = directory / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
        manifest.model_spec  # noqa: B018  (validates the spec)
    except FileNotFoundError as error:
        raise BundleError(f"{directory}: not a bundle (no {MANIFEST_NAME}). Make one with miso-convert.") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise BundleError(f"{path}: not a valid manifest: {where}: {first['msg']}. Convert again.") from error
    except ValueError as error:
        raise BundleError(f"{path}: not a valid manifest: {error}. Convert again.") from error
    if missing := manifest.missing_entries():
        raise BundleError(f"{path}: not a valid manifest: no entry for {', '.join(missing)}. Convert again.")
    return manifest
