"""A checkpoint that `torch.save` wrote, read lazily, without torch, and without running what is in it.

Two formats: the zip of torch 1.6 and later (a pickle, and a member for each storage), and the one before it (pickles,
and the storages one after another). Source: torch/serialization.py.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BufferedReader, FileIO
from typing import Any

from ...core.errors import CheckpointError
from ...hub.path import HubPath
from .tensor_store import ITEM_BYTES, Bytes, Entry, TensorFile, is_plain_name, is_plausible, size_of
from .unpickle import MAX_BYTES, Name, Storage, Tensor, UnusablePickleError, unpickle
from .wrapping import flatten

_ZIP = b"PK\x03\x04"
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""What the format without a zip begins with, pickled."""
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, ArithmeticError, RuntimeError,
            MemoryError, struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip


_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "complex64": "C64", "complex128": "C128", "bool": "BOOL", "int64": "I64",
    "uint64": "U64", "int32": "I32", "uint32": "U32", "int16": "I16", "uint16": "U16", "int8": "I8", "uint8": "U8",
}  # fmt: skip
"""torch's dtypes by the names that safetensors uses."""
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128", "BoolStorage": "BOOL", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "UntypedStorage": "U8",
}  # fmt: skip


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: str | None = None) -> Tensor:
    shape, strides = _sizes(size), _sizes(stride)
    if not isinstance(storage, Storage) or len(strides) != len(shape) or not is_plausible(shape):
        raise ValueError("a tensor without a storage or with an impossible shape")
    (offset,) = _sizes((offset,))
    return Tensor(dtype or storage.dtype, shape, strides, storage.first + offset, storage)


def _view_of_bytes(*arguments: Any) -> Tensor:
    dtype = arguments[6]
    name = dtype.name if isinstance(dtype, Name) else "unknown"
    return _view(*arguments[:4], dtype=_DTYPES.get(name, name))


def _without_data(kind: str, size_at: int) -> Callable[..., Tensor]:
    """A tensor whose numbers are not in one storage: `size_at` is where among the arguments its shape is."""

    def rebuild(*args: Any) -> Tensor:
        size = args[size_at] if size_at >= 0 else args[1][2]
        return Tensor(kind, _sizes(size))

    return rebuild


def _sizes(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise ValueError("sizes of a tensor that are no sizes")
    return numbers


_REBUILD: dict[Name, Callable[..., Any]] = {
    Name("torch", "Size"): tuple,
    Name("torch._utils", "_rebuild_tensor"): _view,
    Name("torch._utils", "_rebuild_tensor_v2"): _view,
    Name("torch._utils", "_rebuild_tensor_v3"): _view_of_bytes,
    Name("torch._utils", "_rebuild_qtensor"): lambda *args: _view(*args[:4], dtype="a quantised integer"),
    Name("torch._tensor", "_rebuild_from_type_v2"): lambda function, _, arguments, *__: _rebuilt(function, arguments),
    Name("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    Name("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    Name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): lambda data, *_: data,
    Name("torch._utils", "_rebuild_sparse_tensor"): _without_data("sparse", -1),
    Name("torch._utils", "_rebuild_meta_tensor_no_storage"): _without_data("none: it has no data, as on 'meta'", 1),
    Name("torch._utils", "_rebuild_wrapper_subclass"): _without_data("of a wrapper (a part of a sharded tensor?)", 2),
}


def _rebuilt(function: Any, arguments: Any) -> Any:
    # Of nothing else is the hash taken: that of nested tuples ends the process.
    return _REBUILD[function](*arguments) if isinstance(function, Name) and function in _REBUILD else None


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins with these bytes is of one of the formats, or a pickle of another kind."""
    return head.startswith(_ZIP) or bool(_PICKLE.match(head))


class PickleFile(TensorFile):
    """An open `.pt` file. Raises `CheckpointError` if it is not one, or asks for more than tensors."""

    def _parse(self, file: FileIO | BufferedReader) -> dict[str, Entry]:
        self._packed: dict[int, zipfile.ZipInfo] = {}
        """By the offset that entries have instead of a place in the file: storages that a zip holds compressed."""
        buffered: Any = file if isinstance(file, BufferedReader) else io.BufferedReader(file)
        self._file = buffered
        try:
            head = buffered.read(len(_ZIP))
            size_bytes = size_of(buffered)
            if head.startswith(_ZIP):
                tensors, starts = self._parse_zip(buffered, size_bytes)
            elif _PICKLE.match(head):
                tensors, starts = self._parse_legacy(buffered, size_bytes)
            else:
                raise ValueError("not written by torch.save")
            return {name: _entry(tensor, starts) for name, tensor in tensors.items()}
        except CheckpointError:
            raise
        except UnusablePickleError as error:
            raise CheckpointError(
                f"{self._path}: refused: not a plain dictionary of tensors ({error}). "
                "Save the state dict alone: torch.save(model.state_dict(), FILE)"
            ) from error
        except _DAMAGED as error:
            reason = re.sub(r"[^ -~]", "?", str(error) or type(error).__name__)[:300]
            raise CheckpointError(
                f"{self._path}: refused: not a plain dictionary of tensors (it may hold code, or be damaged): {reason}"
            ) from error

    def _parse_zip(self, file: BufferedReader, size_bytes: int) -> tuple[dict[str, Tensor], dict[str, int]]:
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise ValueError("its end is missing: download it again") from error
        members = {info.filename: info for info in self._zip.infolist()}
        if len(members) < len(self._zip.infolist()):
            raise ValueError("a member of the zip is there twice")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members.values()):
            raise ValueError("a zip that is compressed as torch never does")
        root = _root(members)
        order = self._zip.open(f"{root}byteorder").read(9) if f"{root}byteorder" in members else b"little"
        if order != b"little":
            raise CheckpointError(f"{self._path}: saved on a big-endian machine: save it anew on another")
        storages: dict[str, Storage] = {}

        def storage_of(identity: Any) -> Storage:
            kind, storage, key, _, items = identity
            return _registered(storages, kind, key, Storage(key, _storage_dtype(storage), items))

        with self._zip.open(members[f"{root}data.pkl"]) as member:
            content = io.BytesIO(member.read(MAX_BYTES + 1))
        tensors = self._flat(unpickle(content, storage_of, _REBUILD))
        starts = {}
        for key, storage in storages.items():
            info = members[f"{root}data/{key}"]
            if info.file_size < storage.items * ITEM_BYTES.get(storage.dtype, 0):
                raise ValueError(f"storage {key} has {info.file_size} bytes, too few for {storage.items} numbers")
            starts[key] = self._start_of(info, size_bytes)
        return tensors, starts

    def _start_of(self, info: zipfile.ZipInfo, size_bytes: int) -> int:
        """Where a member's bytes begin in the file."""
        if info.compress_type != zipfile.ZIP_STORED:
            # Behind the end of the file, in an order that is that of the members.
            self._packed[size_bytes + (info.header_offset << 50)] = info
            return size_bytes + (info.header_offset << 50)
        if isinstance(self._path, HubPath):
            # A request for each: and what is only looked at is not read.
            return info.header_offset
        self._file.seek(info.header_offset)
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        start: int = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if magic != _ZIP or start + info.file_size > size_bytes or info.flag_bits & 1:
            raise ValueError("a member of the zip is not where its directory says, or is encrypted")
        return start

    def _parse_legacy(self, file: BufferedReader, size_bytes: int) -> tuple[dict[str, Tensor], dict[str, int]]:
        storages: dict[str, Storage] = {}

        def storage_of(identity: Any) -> Storage:
            kind, storage, key, _, items, view = identity
            whole = _registered(storages, kind, key, Storage(key, _storage_dtype(storage), items))
            if view is None:
                return whole
            first, items = _sizes(view[1:])
            if first + items > whole.items:
                raise ValueError(f"a view of storage {key} beyond its end")
            return Storage(key, whole.dtype, items, first)

        if unpickle(file, storage_of) != _MAGIC_NUMBER:
            raise ValueError("a pickle, but not torch.save's: save it with that")
        for _ in ("version", "about the machine"):
            unpickle(file, storage_of)
        tensors = self._flat(unpickle(file, storage_of, _REBUILD))
        keys = unpickle(file, storage_of)
        if not all(isinstance(key, str) for key in keys):
            raise TypeError("a storage whose name is no text")
        position, starts = file.tell(), {}
        end = position + sum(8 + storages[key].items * ITEM_BYTES[storages[key].dtype] for key in keys)
        if end > size_bytes:
            raise ValueError(f"it ends at byte {size_bytes} of {end}: download it again")
        for key in keys:
            storage = storages[key]
            starts[key] = position + 8
            if not isinstance(self._path, HubPath):
                file.seek(position)
                if int.from_bytes(file.read(8), "little") != storage.items:
                    raise ValueError(f"storage {key} is not where it should be")
            position += 8 + storage.items * ITEM_BYTES[storage.dtype]
        return tensors, starts

    def _flat(self, value: Any) -> dict[str, Tensor]:
        if isinstance(value, Tensor):
            raise CheckpointError(f"{self._path}: not a state dict (one tensor, without a name)")
        result: dict[str, Tensor] = {}
        for name, tensor in flatten(value):
            if not is_plain_name(name) or name in result:
                raise CheckpointError(f"{self._path}: not a state dict (it has keys that are no tensor names)")
            result[name] = tensor
        if not result:
            raise CheckpointError(f"{self._path}: not a state dict (there is no tensor in it)")
        return result

    def _read_into(self, raw: Bytes, offset: int, name: str) -> None:
        start = max((place for place in self._packed if place <= offset), default=None)
        if start is None:
            super()._read_into(raw, offset, name)
            return
        try:
            with self._lock, self._zip.open(self._packed[start]) as member:
                member.seek(offset - start)
                raw[:] = memoryview(member.read(len(raw)))
        except (*_DAMAGED, OSError) as error:
            raise CheckpointError(f"{self._path}: reading tensor {name} failed ({error})") from error


def _storage_dtype(storage: Any) -> str:
    """The type that a storage class of torch's holds, by the name that safetensors uses."""
    if isinstance(storage, Name):
        return _STORAGES.get(storage.name, storage.name.removesuffix("Storage"))
    raise TypeError("a storage of no type")


def _registered(storages: dict[str, Storage], kind: Any, key: Any, storage: Storage) -> Storage:
    if kind != "storage" or not isinstance(key, str) or type(storage.items) is not int or storage.items < 0:
        raise ValueError("a storage without a name or size")
    if storages.setdefault(key, storage) != storage:
        raise ValueError(f"storage {key} is of two kinds")
    return storage


def _root(members: Mapping[str, zipfile.ZipInfo]) -> str:
    """The folder in the zip that torch put everything into, with its slash."""
    roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"(?:[^/]*/)?data\.pkl", name)]
    if len(roots) != 1:
        is_numpy = bool(members) and all(name.endswith(".npy") for name in members)
        what = "NumPy's .npz" if is_numpy else "a zip file of something else, it has no data.pkl"
        raise ValueError(f"{what}: save the weights as .safetensors")
    if f"{roots[0]}constants.pkl" in members:
        raise ValueError("a TorchScript program: load it with torch.jit.load and save its state_dict()")
    return roots[0]


def _entry(tensor: Tensor, starts: Mapping[str, int]) -> Entry:
    storage, shape = tensor.storage, tensor.shape
    if storage is None:
        return Entry(tensor.dtype, shape, 0)
    item_bytes = ITEM_BYTES.get(tensor.dtype, 0)
    items, dtype = storage.items + storage.first, tensor.dtype
    if dtype != storage.dtype and item_bytes:  # a storage of bytes
        items = items * ITEM_BYTES.get(storage.dtype, 0) // item_bytes
    used = 1 + sum((n - 1) * stride for n, stride in zip(shape, tensor.strides, strict=True)) if all(shape) else 0
    if tensor.offset + used > items:
        raise ValueError(f"a tensor of shape {list(shape)} beyond the end of its storage {storage.key}")
    if math.prod(shape) > items:
        dtype = f"{dtype} repeated"
    return Entry(dtype, shape, starts[storage.key] + tensor.offset * item_bytes, _strides(tensor))


def _strides(tensor: Tensor) -> tuple[int, ...] | None:
    """None where rows follow one another, as nearly always."""
    step = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if n != 1 and stride != step:
            return tensor.strides
        step *= n
    return None
