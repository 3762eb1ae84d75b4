"""A PyTorch `.pt` checkpoint, opened with `weights_only`: no code in the file is ever run. Needs torch."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models.errors import CheckpointError
from .tensor_store import F32Array, Shape


class PickleFile:
    """An open `.pt` file, memory-mapped where its format allows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: dict[str, Any] = _load(path)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self._starts, start = {}, 0
        for name, tensor in self._tensors.items():
            self._starts[name] = start
            start += tensor.numel() * tensor.element_size()

    @property
    def files(self) -> Sequence[Path]:
        """The one file."""
        return (self._path,)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape."""
        return self._shapes

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        """(0, about where the row is): torch saves tensors in the order of their dictionary."""
        tensor = self._tensors[name]
        return 0, self._starts[name] + row * tensor.stride(0) * tensor.element_size()

    def read(self, name: str, start: int, stop: int) -> F32Array:
        """Rows `[start, stop)` as float32."""
        rows: F32Array = self._tensors[name][start:stop].float().numpy()
        return np.array(rows, dtype=np.float32, order="C")

    def close(self) -> None:
        """Drop the mapping."""
        self._tensors = {}


def _load(path: Path) -> dict[str, Any]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise CheckpointError(
            f"{path}: reading a .pt checkpoint needs PyTorch: pip install 'miso-gguf[reference]', "
            "or pass the .safetensors file"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds for one meaning
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: refused: not a plain dictionary of tensors (it may hold code, or be damaged): {reason}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a state dict (a plain dictionary of tensors)")
    return {str(name): tensor for name, tensor in state.items()}
