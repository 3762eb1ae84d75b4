"""What goes into the matrix products of a graph, told as it is computed: an eval callback of ggml's scheduler.

ggml asks about every operation whether somebody wants to see it, and calls again when it has been computed. Products
are told apart by the names of their weights. It knows no model, and not what the numbers are for.
"""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType

from ..core.arrays import F32Array
from ..core.errors import MisoError
from ..core.interrupts import unheard
from .libraries import ggml_base
from .self_test import MUL_MAT
from .signatures import EVAL_CALLBACK, TensorHead

Listener = Callable[[str, F32Array], None]
"""Called with the name of the weights, and the rows [n, columns] that they are multiplied with."""


class _Hearing(NamedTuple):
    names: Collection[str]
    listener: Listener


class ProductWatch:
    """Watches the models that are loaded with it. While nobody listens, it costs them a call for each operation.

    One listener at a time. A model is computed by one thread; whoever listens may be another, and waits for it.
    """

    def __init__(self) -> None:
        self.callback: Any = EVAL_CALLBACK(self._called)
        """For ggml; who hands it over keeps this object as long as ggml has it."""
        self._hearing: _Hearing | None = None
        self._failure: BaseException | None = None

    @contextmanager
    def listening(self, names: Collection[str], listener: Listener) -> Iterator[None]:
        """Have `listener` called for each product with the weights of these `names` that is computed in the block.

        What it raises is raised by whoever has the graph computed; nothing more is told then.
        """
        self._hearing = _Hearing(names, listener)
        try:
            yield
        finally:
            self._hearing = None

    def check(self) -> None:
        """Raise what a listener has raised: for who computes, when ggml is done."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @unheard
    def _called(self, node: int, is_asked: bool, _data: object) -> bool:
        """Whether the operation is wanted; of one that was, whether to go on."""
        hearing = self._hearing
        if hearing is None:
            return not is_asked
        try:
            found = TensorHead.from_address(node)
            if found.op != MUL_MAT or (name := _plain_name(found.src[0])) not in hearing.names:
                return not is_asked
            if not is_asked:
                hearing.listener(name, _rows(name, found.src[1]))
        except BaseException as error:  # ggml would not pass it on
            self._failure, self._hearing = error, None
            return False
        return True


def _plain_name(tensor: int) -> str:
    """The name of a tensor; a scheduler's copy on another device has that of what it is a copy of.

    Source: ggml-backend.cpp: copies are called "CUDA0#blk.0.attn_q.weight#0".
    """
    name: str = ggml_base().ggml_get_name(tensor).decode("utf-8", "replace")
    copied = re.fullmatch(r"[^#]*#([^#]*)#[^#]*", name)
    return copied[1] if copied else name


def _rows(name: str, tensor: int) -> F32Array:
    """A copy of a tensor's numbers, [n, columns], wherever it lies."""
    head = TensorHead.from_address(tensor)
    shape, strides = tuple(reversed(head.ne)), tuple(reversed(head.nb))
    if head.type != GGMLQuantizationType.F32 or strides[-1] != 4:
        raise MisoError(f"{name} is multiplied with what is not rows of F32: this llama.cpp computes otherwise")
    reach = 4 + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
    data = np.empty(reach // 4, np.float32)
    ggml_base().ggml_backend_tensor_get(tensor, data.ctypes.data, 0, reach)
    rows: F32Array = np.lib.stride_tricks.as_strided(data, shape, strides).reshape(-1, shape[-1])
    return rows
