"""Reading a GGUF file through ggml's own parser: keys and memory-mapped tensors.

The parser is in C: a vocabulary of 128 256 tokens costs milliseconds. It knows nothing of what the tensors mean.
"""

import ctypes
import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from ..core.arrays import I64Array, U8Array
from ..core.closing import Closing
from ..core.errors import BundleError
from ..models.gguf_parts import FoundArray
from .ggml import row_bytes
from .libraries import ggml_base
from .signatures import GGUF_GETTERS, GgufInitParams


class StoredTensor(NamedTuple):
    """A tensor as a file holds it."""

    qtype: GGMLQuantizationType
    shape: tuple[int, ...]
    """Rows first, as in PyTorch."""
    data: U8Array
    """Bytes `[rows, row_bytes]`, memory-mapped; all leading dimensions are rows."""


class GgufFile(Closing):
    """An open GGUF file. A context manager; the tensors' data stays valid after closing, as long as it is held."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open and parse; what is written into the data of a `writable` one is written into the file.

        Raises `BundleError` if the file is missing, truncated or no GGUF.
        """
        self.path = path
        try:
            with path.open("r+b" if writable else "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read ({error}). Fetch or convert the bundle again.") from error
        self._handle = ggml_base().gguf_init_from_file(str(path).encode(), GgufInitParams(True, None))
        if not self._handle:
            raise BundleError(f"{path}: not a whole GGUF file. Fetch or convert the bundle again.")
        try:
            self.tensors = self._read_tensors()
        except ValueError as error:
            self.close()
            raise BundleError(f"{path}: its tensors make no sense ({error}). Fetch or convert it again.") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the parsed keys. Idempotent."""
        if self._handle:
            ggml_base().gguf_free(self._handle)
            self._handle = None

    def value(self, key: str) -> int | float | str | bool | None:
        """The value of `key`; None if it is absent or of a type that our files do not use."""
        lib = ggml_base()
        index = lib.gguf_find_key(self._handle, key.encode())
        if index < 0:
            return None
        getter = GGUF_GETTERS.get(GGUFValueType(lib.gguf_get_kv_type(self._handle, index)))
        if getter is None:
            return None
        value: int | float | str | bool | bytes = getattr(lib, getter)(self._handle, index)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def keys(self) -> dict[str, int | float | str | bool | FoundArray | None]:
        """All keys with their values, of arrays what they are arrays of; None for types that our files do not use."""
        lib, found = ggml_base(), dict[str, int | float | str | bool | FoundArray | None]()
        for index in range(lib.gguf_get_n_kv(self._handle)):
            raw: bytes = lib.gguf_get_key(self._handle, index)
            key = raw.decode("utf-8", "replace")
            if lib.gguf_get_kv_type(self._handle, index) == GGUFValueType.ARRAY:
                entries = GGUFValueType(lib.gguf_get_arr_type(self._handle, index)).name
                found[key] = FoundArray(entries, lib.gguf_get_arr_n(self._handle, index))
            else:
                found[key] = self.value(key)
        return found

    def texts(self, key: str) -> list[str] | None:
        """An array of texts; None if `key` is absent or anything else. What is no UTF-8 comes with lone surrogates."""
        index, count = self._array(key, GGUFValueType.STRING)
        if index is None:
            return None
        read = ggml_base().gguf_get_arr_str
        return [read(self._handle, index, entry).decode("utf-8", "surrogateescape") for entry in range(count)]

    def integers(self, key: str) -> I64Array | None:
        """An array of int32; None if `key` is absent or anything else."""
        index, count = self._array(key, GGUFValueType.INT32)
        if index is None:
            return None
        data = ctypes.string_at(ggml_base().gguf_get_arr_data(self._handle, index), 4 * count) if count else b""
        return np.frombuffer(data, np.int32).astype(np.int64)

    def first_text(self, key: str) -> str | None:
        """The first entry of an array of texts; None if `key` is absent, anything else, or no valid text."""
        index, count = self._array(key, GGUFValueType.STRING)
        text: bytes = ggml_base().gguf_get_arr_str(self._handle, index, 0) if count else b"\xff"
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            return None

    def _array(self, key: str, kind: GGUFValueType) -> tuple[int | None, int]:
        """(index, length) of the array of `kind` under `key`."""
        lib = ggml_base()
        index = lib.gguf_find_key(self._handle, key.encode())
        if index < 0 or lib.gguf_get_kv_type(self._handle, index) != GGUFValueType.ARRAY:
            return None, 0
        if lib.gguf_get_arr_type(self._handle, index) != kind:
            return None, 0
        return index, lib.gguf_get_arr_n(self._handle, index)

    def tensor(self, name: str, *shape: int) -> StoredTensor:
        """The tensor called `name`. Raises `BundleError` if it is not there or has another shape (rows first)."""
        found = self.tensors.get(name)
        if found is None or found.shape != shape:
            what = f"is {list(found.shape)}" if found else "is missing"
            raise BundleError(f"{self.path}: {name} {what}, expected {list(shape)}. This file is of another model.")
        return found

    def _read_tensors(self) -> dict[str, StoredTensor]:
        lib = ggml_base()
        start = lib.gguf_get_data_offset(self._handle)
        everything = np.frombuffer(self._map, np.uint8)
        tensors = {}
        for index in range(lib.gguf_get_n_tensors(self._handle)):
            name = lib.gguf_get_tensor_name(self._handle, index).decode("utf-8", "replace")
            dims = lib.gguf_get_tensor_ne(self._handle, index)[:4]
            while len(dims) > 1 and dims[-1] == 1:
                dims.pop()
            qtype = GGMLQuantizationType(lib.gguf_get_tensor_type(self._handle, index))
            width = row_bytes(qtype, dims[0])
            rows = int(np.prod(dims[1:], dtype=np.int64))
            begin = start + lib.gguf_get_tensor_offset(self._handle, index)
            if begin + rows * width > len(everything):
                raise BundleError(
                    f"{self.path}: truncated: {name} ends at byte {begin + rows * width}, the file at "
                    f"{len(everything)}. Fetch or convert the bundle again."
                )
            data = everything[begin : begin + rows * width].reshape(rows, width)
            tensors[name] = StoredTensor(qtype, tuple(reversed(dims)), data)
        return tensors
