"""A PyTorch `.pt` checkpoint, opened with `weights_only`: no code in the file is ever run. Needs torch.

Of one on the hub, which is only looked at, shapes and types are read and no data.
"""

import importlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.arrays import F32Array
from ...core.errors import CheckpointError
from ...hub.path import HubPath
from .foreign import refuse_file
from .source_path import SourcePath
from .tensor_store import Shape, is_plain_name

_DTYPES = ("float32", "float16", "bfloat16")
_ZIP_MAGIC = b"PK\x03\x04"
_SAFE_TORCH = (2, 6)
"""Before it, `weights_only` could be made to run code (CVE-2025-32434)."""


class PickleFile:
    """An open `.pt` file: memory-mapped, or read whole if it is of the format before torch 1.6."""

    def __init__(self, path: SourcePath) -> None:
        self._path = path
        try:
            self._tensors: dict[str, Any] = _load(path)
        except CheckpointError:
            refuse_file(path)
            raise
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self._starts, start = {}, 0
        for name, tensor in self._tensors.items():
            self._starts[name] = start
            start += tensor.numel() * tensor.element_size()

    @property
    def files(self) -> Sequence[SourcePath]:
        """The one file."""
        return (self._path,)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape."""
        return self._shapes

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(0, about where the row is): torch saves tensors in the order of their dictionary."""
        tensor = self._tensors[name]
        row_bytes = tensor.numel() // max(1, len(tensor)) * tensor.element_size() if tensor.ndim else 0
        return 0, self._starts[name] + row * row_bytes

    def check_dtype(self, name: str) -> None:
        """Raises `CheckpointError` on an unsupported dtype."""
        dtype = str(self._tensors[name].dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{self._path}: tensor {name} has dtype {dtype}; supported are {', '.join(_DTYPES)}. "
                "Save the checkpoint in one of these."
            )

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` as float32. Raises `CheckpointError` on an unsupported dtype."""
        tensor = self._tensors[name]
        self.check_dtype(name)
        rows = tensor[start:stop] if tensor.ndim else tensor.reshape(1)[start:stop]
        # force: a saved nn.Parameter requires a gradient.
        return np.array(rows.float().numpy(force=True), dtype=np.float32, order="C")

    def close(self) -> None:
        """Drop the mapping."""
        self._tensors = {}


def _load(path: SourcePath) -> dict[str, Any]:
    torch = _import_torch(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror or error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of no use to whoever did not write the file
            if isinstance(path, HubPath):
                state = _without_data(torch, path, is_zip)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises a dozen kinds for one meaning
        raise CheckpointError(
            f"{path}: refused: not a plain dictionary of tensors (it may hold code, or be damaged): {_reason(error)}"
        ) from error
    device = "meta" if isinstance(path, HubPath) else "cpu"
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(_is_plain_tensor(torch, value, device) for value in state.values()):
        raise CheckpointError(f"{path}: not a state dict (a plain dictionary of dense tensors)")
    if not all(isinstance(name, str) and is_plain_name(name) for name in state):
        raise CheckpointError(f"{path}: not a state dict (it has keys that are no tensor names)")
    return dict(state)


def _without_data(torch: Any, path: HubPath, is_zip: bool) -> Any:
    """What `torch.load` gives, with tensors that have shapes and types only."""
    if not is_zip:
        raise CheckpointError(f"{path}: of the format before torch 1.6, which cannot be looked at without fetching it")
    with path.open() as file, torch.serialization.skip_data():
        try:
            return torch.load(file, map_location="meta", weights_only=True)
        except Exception as error:
            # What torch makes of a read that failed says nothing of the reason.
            raise getattr(file.raw, "error", None) or error from None


def _import_torch(path: SourcePath) -> Any:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a shared library of torch's is missing
        raise CheckpointError(
            f"{path}: reading a .pt checkpoint needs PyTorch: pip install 'miso-gguf[reference]', "
            "or pass the .safetensors file"
        ) from error
    version = str(torch.__version__)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _SAFE_TORCH:
        raise CheckpointError(
            f"{path}: PyTorch {version} cannot be trusted with a .pt file of unknown origin: "
            f"upgrade it to {'.'.join(map(str, _SAFE_TORCH))} or later, or pass the .safetensors file"
        )
    return torch


def _is_plain_tensor(torch: Any, value: Any, device: str) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == device


def _reason(error: Exception) -> str:
    """The line of torch's message that says what is wrong, not the ones that advise to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = [line for line in lines if "weights_only" not in line and not line.startswith("Weights only load failed")]
    reason = (plain or [type(error).__name__])[0]
    return re.sub(r"[^ -~]", "?", reason)[:300]
