"""The oracle (moshi's own Mimi, built to a spec) and a runner that knows a graph by its metadata alone."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from moshi.models.loaders import get_mimi
from numpy.typing import NDArray

from miso_gguf.convert.mimi.weights import Weights
from miso_gguf.models.mimi import MimiSpec

Array = NDArray[Any]


class Streams:
    """A batch of streams through one exported model."""

    def __init__(self, model: bytes, batch: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._entries: list[dict[str, Any]] = json.loads(self.metadata["miso.state"])
        carried = {e["input"] for e in self._entries} | {e["output"] for e in self._entries}
        (self._input,) = (i.name for i in self._session.get_inputs() if i.name not in carried)
        (self._output,) = (o.name for o in self._session.get_outputs() if o.name not in carried)
        self.restart(batch)

    def restart(self, batch: int = 1) -> "Streams":
        self.state = {
            e["input"]: np.full([batch if dim == "batch" else dim for dim in e["shape"]], e["init"], e["dtype"])
            for e in self._entries
        }
        return self

    def reset_row(self, row: int) -> None:
        for array in self.state.values():
            array[row] = 0

    def __call__(self, data: Array) -> Array:
        names = [self._output, *(e["output"] for e in self._entries)]
        result, *state = self._session.run(names, {self._input: data, **self.state})
        self.state = dict(zip((e["input"] for e in self._entries), state, strict=True))
        return np.asarray(result)

    def chunks(self, data: Array, sizes: Sequence[int]) -> Array:
        """`data` cut along its last axis into these sizes, in turn, until it is used up."""
        results, start, turn = [], 0, 0
        while start < data.shape[-1]:
            size = sizes[turn % len(sizes)]
            results.append(self(data[..., start : start + size]))
            start, turn = start + size, turn + 1
        return np.concatenate(results, axis=-1)


def build_oracle(spec: MimiSpec, weights: Weights) -> Any:
    seanet = {
        "channels": 1, "dimension": spec.latent_dim, "causal": True, "n_filters": spec.filters, "n_residual_layers": 1,
        "activation": "ELU", "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0,
        "kernel_size": spec.kernel, "residual_kernel_size": spec.residual_kernel, "last_kernel_size": spec.last_kernel,
        "norm": "none", "pad_mode": "constant", "ratios": list(spec.ratios), "true_skip": True,
    }  # fmt: skip
    transformer = {
        "d_model": spec.latent_dim, "num_heads": spec.heads, "num_layers": spec.layers, "causal": True,
        "layer_scale": 0.01, "context": spec.window, "conv_layout": True, "max_period": spec.rope_period,
        "gating": "none", "norm": "layer_norm", "positional_embedding": "rope", "dim_feedforward": spec.ffn_dim,
        "input_dimension": spec.latent_dim, "output_dimensions": [spec.latent_dim],
    }  # fmt: skip
    quantizer = {
        "dimension": spec.codebook_dim, "n_q": spec.codebooks, "n_q_semantic": spec.semantic_codebooks,
        "bins": spec.cardinality, "input_dimension": spec.latent_dim, "output_dimension": spec.latent_dim,
    }  # fmt: skip
    config: dict[str, Any] = {"sample_rate": 24000, "channels": 1, "frame_rate": 24000 / spec.frame_samples}
    config |= {"seanet": seanet, "transformer": transformer, "quantizer": quantizer}
    model = get_mimi(None, config, num_codebooks=spec.codebooks)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model


class Oracle:
    """moshi's Mimi with these weights, offline: its streaming differs from it once the window is full."""

    def __init__(self, spec: MimiSpec, weights: Weights) -> None:
        self.model = build_oracle(spec, weights)

    def decode(self, codes: Array) -> Array:
        with torch.no_grad():
            return np.asarray(self.model.decode(torch.from_numpy(codes)))

    def encode(self, audio: Array) -> Array:
        with torch.no_grad():
            return np.asarray(self.model.encode(torch.from_numpy(audio)))


@pytest.fixture(scope="session")
def streams() -> Callable[..., Streams]:
    return Streams


@pytest.fixture(scope="session")
def oracle() -> Callable[[MimiSpec, Weights], Oracle]:
    return Oracle
