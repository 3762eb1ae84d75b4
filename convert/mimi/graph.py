"""The scaffold of a streaming ONNX graph: weights, carried state, and how both are written into the model.

A model describes its own state in its metadata, so that a runtime hard-codes no names and no shapes. This module
knows nothing of codecs.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
import spox.opset.ai.onnx.v20 as op
from numpy.typing import NDArray
from spox import Tensor, Var, argument, build
from spox._future import initializer

from ...models.tensors import Shape

WeightDtype = Literal["float16", "float32"]

STATE_KEY = "miso.state"
_IR_VERSION = 10
"""Of the file: the latest that the oldest ONNX Runtime declared (1.20) reads. Operators are those of opset 20."""
END = np.iinfo(np.int64).max
"""The end of an axis, whatever its length. Source: the ONNX `Slice` operator."""


def ints(*values: int) -> Var:
    """A constant int64 vector."""
    return op.const(np.array(values, np.int64))


def floats(array: NDArray[Any]) -> Var:
    """A small float32 constant."""
    return op.const(np.asarray(array, np.float32))


def cut(x: Var, start: int, stop: int, axis: int) -> Var:
    """`x[start:stop]` along one axis."""
    return op.slice(x, ints(start), ints(stop), ints(axis))


class StreamGraph:
    """A graph under construction: hands out weights and state inputs, collects state outputs.

    Attributes:
        tensors: The checkpoint, for the functions that trace the graph; its arrays are not stored as they are.
    """

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]], weight_dtype: WeightDtype) -> None:
        if weight_dtype not in ("float16", "float32"):
            raise ValueError(f"weights are stored as float16 or float32, not {weight_dtype!r}")
        self.tensors = tensors
        self._dtype = weight_dtype
        self._past: dict[str, Var] = {}
        self._present: dict[str, Var] = {}
        self._state: list[dict[str, object]] = []

    def stored(self, name: str, array: NDArray[Any]) -> Var:
        """A weight in the storage type: float16 if that was asked for and can hold its values, else float32."""
        if self._dtype == "float16" and float(np.abs(array).max(initial=0.0)) <= float(np.finfo(np.float16).max):
            array = array.astype(np.float16)
        weight = initializer(np.ascontiguousarray(array))
        weight._rename(name)
        return weight

    def weight(self, name: str, array: NDArray[Any]) -> Var:
        """A weight to compute with, float32; a cast of a stored float16 is folded by ONNX Runtime at load."""
        stored = self.stored(name, array)
        return stored if stored.unwrap_tensor().dtype == np.float32 else op.cast(stored, to=np.float32)

    def past(self, name: str, shape: Shape, dtype: type[np.generic] = np.float32) -> Var:
        """State carried in from the previous call, `[batch, *shape]`: zeros at the start of a stream."""
        var = argument(Tensor(dtype, ("batch", *shape)))
        self._past[name] = var
        self._state.append(
            {
                "input": name,
                "output": f"{name}_out",
                "dtype": np.dtype(dtype).name,
                "shape": ["batch", *shape],
                "init": 0,
            }
        )
        return var

    def keep(self, name: str, value: Var) -> None:
        """State to carry on to the next call, under the name given to `past`."""
        self._present[f"{name}_out"] = value

    def model(self, inputs: dict[str, Var], outputs: dict[str, Var], metadata: Mapping[str, str]) -> bytes:
        """The finished model, checked and serialised; equal graphs give equal bytes.

        Raises `ValueError` if state was taken and not kept.
        """
        dropped = {entry["output"] for entry in self._state} ^ set(self._present)
        if dropped:
            raise ValueError(f"state taken and not kept, or the reverse: {sorted(map(str, dropped))}")
        model = build(inputs | self._past, outputs | self._present)
        model.ir_version = _IR_VERSION
        model.producer_name = "miso-gguf"
        model.graph.name = metadata.get("miso.part", "graph")
        onnx.helper.set_model_props(model, {**metadata, STATE_KEY: json.dumps(self._state)})
        serialised: bytes = model.SerializeToString(deterministic=True)
        del model
        onnx.checker.check_model(serialised)  # given a model, it would serialise that once more
        return serialised
