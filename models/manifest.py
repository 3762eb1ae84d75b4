"""`miso.json`, the manifest of a bundle: what was converted from what, and which files make up which level.

`convert` writes it, `runtime` and `quant_eval` read it. A file that it does not name is not part of the bundle. Within
a `schema_version` manifests only ever grow: what this version does not know, it passes over and carries along.
"""

import re
import reprlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import from_json, to_json

from ..core.errors import BundleError, NewerBundleError
from ..core.printable import printable
from ..version import __version__
from .levels import LEVELS, halves
from .spec import ModelSpec

MANIFEST_NAME = "miso.json"
SCHEMA_VERSION: Literal[1] = 1
"""Of the manifest. It rises when earlier versions must not read what is written; all else is added as keys."""
FORMAT_VERSION: Literal[1] = 1
"""Version of our GGUF layout (`miso.format_version`)."""
BY_NEWER = f"made by a newer version of miso-gguf than this one ({__version__})"
UPGRADE = "Upgrade with pip install --upgrade miso-gguf"


def _plain_name(name: str) -> str:
    # A manifest is data from strangers: a file may only be beside it.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+ -]*", name):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Role = Literal["checkpoint", "mimi", "tokenizer"]
_Entry = TypeVar("_Entry", bound="Entry")


class Entry(BaseModel):
    """A part of the manifest, with whatever else a newer version wrote into it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def updated(self: _Entry, new: _Entry) -> _Entry:
        """`new`, with what this one has and this version does not know."""
        return self.model_copy(update=dict(new))


class BundleFile(Entry):
    """One file of the bundle."""

    size_bytes: int = Field(ge=0, lt=1 << 63, strict=True)
    sha256: Sha256
    converter: str | None = None
    """Name and version of the program that wrote it: early manifests say it of all their files at once."""
    llama_cpp: str | None = None
    """Version of llama-cpp-python at the time."""


class SourceFile(Entry):
    """One file that the bundle was made from."""

    role: str
    """One of `Role`, or what a newer version has beside them."""
    name: str
    sha256: Sha256
    repo: Annotated[str | None, Field(pattern=r"^[\w.-]+/[\w.-]+$")] = None
    """Where on the Hugging Face hub it is, if it came from there, ..."""
    revision: Annotated[str | None, Field(pattern="^[0-9a-f]{40,64}$")] = None
    """... and the commit. Says nothing of what it is: that is `sha256`."""

    def updated(self, new: "SourceFile") -> "SourceFile":
        """`new`, which may be the same file on this machine: then where it came from is known still."""
        merged = super().updated(new)
        return merged if new.repo else merged.model_copy(update={"repo": self.repo, "revision": self.revision})

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        entry: dict[str, Any] = handler(self)
        return {key: value for key, value in entry.items() if value is not None or key not in ("repo", "revision")}


class LevelFiles(Entry):
    """The files of one level, and the importance matrices that it was quantised with (sha256)."""

    backbone: FileName
    decoder: FileName
    embeddings: FileName
    imatrix_backbone: Sha256 | None = None
    imatrix_decoder: Sha256 | None = None

    @property
    def weighed(self) -> list[str]:
        """The parts that were quantised with an importance matrix."""
        matrices = {"backbone": self.imatrix_backbone, "decoder": self.imatrix_decoder}
        return [part for part, matrix in matrices.items() if matrix]


class CodecFiles(Entry):
    """The Mimi graphs. Their state and dimensions stand in the ONNX metadata."""

    decoder: FileName
    encoder: FileName


class Manifest(Entry):
    """The whole of `miso.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    format_version: Literal[1] = FORMAT_VERSION
    converter: str
    """Name and version of the program that wrote the manifest last."""
    llama_cpp: str
    """Version of llama-cpp-python, whose ggml quantises, at that time."""
    fingerprint: Sha256
    """Identifies the checkpoint's weights: see `convert/checkpoint/open.py`."""
    sources: list[SourceFile]
    spec: dict[str, Any]
    codec: CodecFiles
    levels: dict[str, LevelFiles]
    """Those that this version knows."""
    files: dict[FileName, BundleFile]
    _newer_levels: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _set_apart(cls, data: Any, validated: Callable[[Any], "Manifest"]) -> "Manifest":
        if not isinstance(data, dict):
            return validated(data)
        # Manifests once had a digest of themselves, which says nothing once a level is added.
        data = {key: value for key, value in data.items() if key != "digest"}
        newer: dict[str, Any] = {}
        if isinstance(levels := data.get("levels"), dict):
            newer = {key: entry for key, entry in levels.items() if not _is_known(key)}
            data["levels"] = {key: entry for key, entry in levels.items() if key not in newer}
        manifest = validated(data)
        manifest._newer_levels = newer
        return manifest

    @property
    def newer_levels(self) -> dict[str, Any]:
        """Levels that this version does not know, and their entries, of which it knows nothing either."""
        return self._newer_levels

    @property
    def newer_names(self) -> list[str]:
        """The names of `newer_levels` for people: they are from strangers, and a terminal obeys some characters."""
        return [printable(key) if key else repr(key) for key in self._newer_levels]

    @property
    def is_kept(self) -> bool:
        """Whether `to_json` writes all that was read: 1e400, a number in JSON, is more than a float holds."""
        return Manifest.model_validate(from_json(self.to_json())) == self

    @property
    def versions(self) -> dict[str, tuple[str, str]]:
        """What wrote each file: program, and llama-cpp-python."""
        return {
            name: (file.converter or self.converter, file.llama_cpp or self.llama_cpp)
            for name, file in self.files.items()
        }

    @property
    def model_spec(self) -> ModelSpec:
        """The model's dimensions."""
        return ModelSpec.from_dict(self.spec, ignore_unknown=True)

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
        entries = self.model_dump()
        entries["levels"] = dict(sorted({**entries["levels"], **self._newer_levels}.items()))
        for entry in entries["files"].values():
            for key in ("converter", "llama_cpp"):
                if entry[key] is None:
                    del entry[key]
        return to_json(entries, indent=2, inf_nan_mode="null").decode() + "\n"


def _is_known(key: str) -> bool:
    halves = key.split("+")
    return len(halves) <= 2 and set(halves) <= LEVELS.keys()


class DamagedManifestError(BundleError):
    """A `miso.json` that is there and cannot be used.

    Attributes:
        problem: What is wrong with it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}. Fetch it again, or make it anew: {mending_command(path.parent)}")
        self.problem = problem


def mending_command(
    directory: Path | str, *keys: str, manifest: Manifest | None = None, inputs: Sequence[str] = ("CHECKPOINT",)
) -> str:
    """The command that writes levels anew, whatever is there in their files' place.

    Args:
        directory: Of the bundle.
        keys: The manifest's names of the levels: none for one that is to be filled in, several only if all combine
            with one level for the depth decoder.
        manifest: If it has a level, it says whether that was quantised with an importance matrix; of others those are
            taken that cannot do without.
        inputs: The checkpoint and the options for its other sources, as they were passed.
    """
    words = ["miso-convert", shlex.join(inputs)]
    for key in keys or ("LEVEL",):
        words += ["--force", key.partition("+")[0]]
    if decoder := next((key.partition("+")[2] for key in keys if "+" in key), None):
        words += ["--decoder-quant", decoder]
    weighed = {part for key in keys for part in _weighed(key, manifest)}
    if len(weighed) == 2:
        words += ["--imatrix", "DIR"]
    elif weighed:
        words += [f"--imatrix-{weighed.pop()}", "FILE"]
    return " ".join([*words, "--out", shlex.quote(str(directory))])


def _weighed(key: str, manifest: Manifest | None) -> list[str]:
    if manifest and key in manifest.levels:
        return manifest.levels[key].weighed
    levels = halves(key)
    return [part for part, level in (("backbone", levels[0]), ("decoder", levels[-1])) if level.needs_imatrix]


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the bundle in `directory`. Raises `BundleError` naming what is wrong and what to do.

    It is a `DamagedManifestError` if there is one that cannot be used, a `NewerBundleError` if it is not damaged, but
    of a kind that only a newer version can read.
    """
    path = directory / MANIFEST_NAME
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise DamagedManifestError(path, "not a file")
        data = from_json(path.read_bytes(), allow_inf_nan=False)
    except FileNotFoundError as error:
        raise BundleError(f"{directory}: not a bundle (no {MANIFEST_NAME}). Make one with miso-convert.") from error
    except PermissionError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}). Change its permissions.") from error
    except OSError as error:
        raise DamagedManifestError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DamagedManifestError(path, f"not a valid manifest: JSON cut off or damaged ({error})") from error
    _check_versions(path, data)
    try:
        manifest = Manifest.model_validate(data)
        manifest.model_spec  # noqa: B018  (validates the spec)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise DamagedManifestError(path, f"not a valid manifest: {printable(where)}: {first['msg']}") from error
    except ValueError as error:
        raise DamagedManifestError(path, f"not a valid manifest: {error}") from error
    if missing := manifest.missing_entries():
        raise DamagedManifestError(path, f"not a valid manifest: no entry for {', '.join(missing)}")
    return manifest


def _check_versions(path: Path, data: Any) -> None:
    for key, known in (("schema_version", SCHEMA_VERSION), ("format_version", FORMAT_VERSION)):
        found = data.get(key, known) if isinstance(data, dict) else known
        if type(found) is int and found > known:
            raise NewerBundleError(f"{path}: {key} is {found}, known is {known}: {BY_NEWER}. {UPGRADE}.")
        if type(found) is not int or found < known:
            raise DamagedManifestError(path, f"not a valid manifest: {key} is {reprlib.repr(found)}, expected {known}")
