"""What the PyTorch reference multiplies its matrices with: the oracle of the sums, in float64."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from miso_gguf.models.reference import Reference, Rows, audio_rows
from miso_gguf.models.spec import ModelSpec
from miso_gguf.models.tensors import Rows as RowsOf
from miso_gguf.models.tensors import StackedHeads, gguf_tensors

Sums = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""By GGUF name: squares [steps, columns], rows [steps]."""


class _Heard(TorchFunctionMode):
    """Keeps the left side of every product with one of the `weights`, by the checkpoint's name."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {tensor.data_ptr(): name for name, tensor in weights.items()}
        self.inputs: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in {"__matmul__", "matmul", "einsum"}:
            left, right = args[-2:]
            if (name := self._names.get(right.data_ptr())) is not None:
                self.inputs[name] = left
        return func(*args, **(kwargs or {}))


def reference_sums(
    spec: ModelSpec, weights: Mapping[str, Tensor], prompt: Rows, codes: NDArray[np.int64]
) -> dict[str, Sums]:
    """The sums of both parts, of a prompt and the frames said on it."""
    wide = {name: tensor.double() for name, tensor in weights.items()}
    reference, said = Reference(spec, wide.__getitem__, torch.float64), torch.from_numpy(codes)
    later = audio_rows(spec, said)
    rows = Rows(torch.cat([prompt.tokens, later.tokens]), torch.cat([prompt.mask, later.mask]))
    with torch.no_grad(), _Heard(wide) as heard:
        hidden = reference.backbone(reference.embed(*rows))
        reference.codebook0_logits(hidden)
        first = len(prompt.tokens) - 1
        reference.depth_logits(hidden[first : first + len(codes)], said[:, :-1])
    found: dict[str, Sums] = {"backbone": {}, "decoder": {}}
    for tensor in gguf_tensors(spec):
        if tensor.part == "embeddings" or len(tensor.shape) != 2 or tensor.name == "token_embd.weight":
            continue
        assert isinstance(tensor.source, RowsOf | StackedHeads)
        x = heard.inputs[tensor.source.name].numpy()  # [T, columns], or [frames, positions, columns]
        x = x[:, np.newaxis] if tensor.part == "backbone" else x
        sums, counts = np.square(x).sum(axis=0), np.full(x.shape[1], len(x))
        if isinstance(tensor.source, StackedHeads):  # codebook 0 is the backbone's
            sums, counts = np.pad(sums, ((1, 0), (0, 0))), np.pad(counts, (1, 0))
        found[tensor.part][tensor.name] = (sums, counts)
    return found
