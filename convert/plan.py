"""What a conversion will write: each GGUF file's tensors, types, offsets and size, known before the first byte."""

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gguf import GGML_QUANT_VERSION

from ..models.gguf_parts import llama_values, miso_values
from ..models.levels import LEVELS, Level
from ..models.spec import ModelSpec
from ..models.tensors import PARTS, GgufTensor, Part, gguf_tensors
from .gguf_header import Key, TensorInfo, header_bytes, keys_of, padded, text, uint32
from .imatrix import Imatrix, check_covers
from .mixture import tensor_types
from .rows import RowReader

_LONGEST_NAME = 96
"""As of a repository on the Hugging Face hub."""
_RESERVED = {*PARTS, *(word for level in LEVELS.values() for word in (level.key, level.label.lower(), *level.aliases))}
"""What a file's name says of it beside the model."""


@dataclass(frozen=True)
class GgufPlan:
    """One GGUF file: its header and, in file order, its tensors and their types."""

    name: str
    part: Part
    tensors: tuple[GgufTensor, ...]
    infos: tuple[TensorInfo, ...]
    keys: tuple[Key, ...]
    imatrix: Imatrix | None

    @cached_property
    def header(self) -> bytes:
        """The bytes before the tensor data."""
        return header_bytes(self.keys, self.infos)

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data, padding included."""
        return sum(padded(info.size_bytes) for info in self.infos)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.data_bytes

    @property
    def weights(self) -> int:
        """Number of elements in all tensors."""
        return sum(tensor.weights for tensor in self.tensors)


def file_name(spec: ModelSpec, part: Part, level: Level) -> str:
    """The name of a part at a level: `MisoTTS-8B-backbone-Q4_K_M.gguf`."""
    return f"{spec.name}-{part}-{level.label}.gguf"


def check_name(name: str) -> None:
    """Raises `ValueError` if a model cannot be called so: its files could not, or could be taken for others."""
    shown = reprlib.repr(name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ValueError(f"--name {shown}: use letters, digits and . _ + -, a letter or digit first: it names files")
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"--name {shown}: has {len(name)} characters, at most {_LONGEST_NAME} go: it names files")
    if word := next((word for word in re.split("[-.]", name) if word.lower() in _RESERVED), None):
        raise ValueError(f"--name {shown}: leave {word!r} out: the files' names say part and level themselves")


def plan_file(
    spec: ModelSpec,
    part: Part,
    level: Level,
    reader: RowReader,
    fingerprint: str,
    tokenizer: Sequence[Key],
    imatrix: Imatrix | None = None,
) -> GgufPlan:
    """Plan one file. Tensors are ordered as their sources lie on disk, so that one pass reads and writes in order."""
    tensors = sorted((t for t in gguf_tensors(spec) if t.part == part), key=reader.position)
    types = tensor_types(level, tensors, imatrix=imatrix is not None)
    if imatrix is not None:
        check_covers(imatrix, types)
    return GgufPlan(
        name=file_name(spec, part, level),
        part=part,
        tensors=tuple(tensors),
        infos=tuple(TensorInfo(tensor.name, tensor.shape, types[tensor.name]) for tensor in tensors),
        keys=(
            *_general_keys(spec, part, level),
            *keys_of(llama_values(spec, part)),
            *(tokenizer if part == "embeddings" else ()),
            *_imatrix_keys(imatrix),
            *keys_of(miso_values(spec, part, fingerprint)),
        ),
        imatrix=imatrix,
    )


def _general_keys(spec: ModelSpec, part: Part, level: Level) -> list[Key]:
    return [
        text("general.type", "model"),
        text("general.name", f"{spec.name} {part}"),
        text("general.basename", spec.name),
        uint32("general.file_type", level.ftype),
        uint32("general.quantization_version", GGML_QUANT_VERSION),
    ]


def _imatrix_keys(imatrix: Imatrix | None) -> list[Key]:
    """As llama.cpp's quantiser notes it."""
    if imatrix is None:
        return []
    dataset = [text("quantize.imatrix.dataset", imatrix.dataset)] if imatrix.dataset else []
    return [
        text("quantize.imatrix.file", imatrix.file),
        *dataset,
        uint32("quantize.imatrix.entries_count", len(imatrix.columns)),
        uint32("quantize.imatrix.chunks_count", imatrix.chunks),
    ]
