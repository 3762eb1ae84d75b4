"""The depth decoder's weights, from the GGUF onto the device: matrices where it multiplies fastest, the rest plain.

It knows the tensors' names and places, not what is computed with them.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from ....models.spec import ModelSpec
from ....native.buffer import Buffer, write_tensor
from ....native.buffer_types import matrix_buffer_type, plain_buffer_type
from ....native.device import Backends
from ....native.gguf_file import GgufFile, StoredTensor
from ....native.graph import F16, I32, Tensor, TensorContext


@dataclass(frozen=True)
class DepthLayer:
    """One layer. Several matrices under one name have the same input; their outputs follow each other."""

    attention_norm: Tensor
    query_key_value: list[Tensor]
    attention_output: Tensor
    ffn_norm: Tensor
    gate_up: list[Tensor]
    down: Tensor

    @property
    def matrices(self) -> list[Tensor]:
        """All of them."""
        return [*self.query_key_value, self.attention_output, *self.gate_up, self.down]


def head_name(codebook: int) -> str:
    """What the head of one codebook is called on the device: it is a part of `output.weight`."""
    return f"output.{codebook}.weight"


_CUDA = ("CUDA", "ROCm", "MUSA")
"""How devices of ggml's CUDA backend are called, compiled for NVIDIA, AMD and Moore Threads. Source: ggml-cuda.h."""


class DepthWeights:
    """The tensors of the decoder, on the device: matrices where it multiplies fastest, the rest in plain memory."""

    def __init__(self, file: GgufFile, projection: StoredTensor, spec: ModelSpec, backends: Backends) -> None:
        d = spec.decoder
        self._stack = ExitStack()
        self._contexts: dict[int, TensorContext] = {}
        self._pending: list[tuple[Tensor, npt.NDArray[np.generic]]] = []
        self._device = backends.best
        self.fuses_swiglu = backends.best.name.startswith(_CUDA)
        self._capacity = 16 * d.layers + 2 * spec.codebooks + 32
        try:
            self.projection = self._plain(projection)
            # One tensor a codebook: a view into the middle of a larger one lies at an address that Vulkan cannot use.
            embeddings = _by_codebook(file.tensor("token_embd.weight", spec.flat_audio_vocab, d.embed_dim), spec)
            self.embeddings = [self._plain(table) for table in embeddings[:-1]]
            """Of codebooks 0 to the last but one: a frame's last code is no input."""
            heads = _by_codebook(file.tensor("output.weight", spec.flat_audio_vocab, d.embed_dim), spec)
            self.heads = [self._matrix(head_name(number), head) for number, head in enumerate(heads[1:], 1)]
            """Of codebooks 1 to the last."""
            self.norm = self._plain(file.tensor("output_norm.weight", d.embed_dim))
            self.rope_factors = None
            if spec.rope_scaling is not None:
                self.rope_factors = self._plain(file.tensor("rope_freqs.weight", d.head_dim // 2))
            self.positions = self._new(plain_buffer_type(self._device), I32, np.arange(spec.codebooks, dtype=np.int32))
            causal = np.triu(np.full((2, 2), -np.inf, np.float16), 1)
            self.mask = self._new(plain_buffer_type(self._device), F16, causal)
            self.layers = [self._layer(file, spec, index) for index in range(d.layers)]
            self.layer_bytes = sum(w.size_bytes for layer in self.layers for w in layer.matrices)
            """Bytes of the layers' matrices, which every step reads."""
            self.buffers = [self._allocate(context, kind) for kind, context in self._contexts.items()]
            for tensor, data in self._pending:
                write_tensor(tensor, data)
        except BaseException:
            self._stack.close()
            raise
        self._pending.clear()

    def close(self) -> None:
        """Free them. Idempotent."""
        self._stack.close()

    def _allocate(self, context: TensorContext, buffer_type: int) -> Buffer:
        buffer = Buffer(context, buffer_type, weights=True)
        self._stack.callback(buffer.close)
        return buffer

    def _new(self, buffer_type: int, qtype: GGMLQuantizationType, data: npt.NDArray[np.generic], *shape: int) -> Tensor:
        """A tensor whose data is written once all are allocated. `shape` in ggml's order; by default that of `data`."""
        context = self._contexts.get(buffer_type)
        if context is None:
            context = self._contexts[buffer_type] = TensorContext(self._capacity)
            self._stack.callback(context.close)
        tensor = context.new(qtype, *(shape or tuple(reversed(data.shape))))
        self._pending.append((tensor, data))
        return tensor

    def _plain(self, tensor: StoredTensor) -> Tensor:
        return self._new(plain_buffer_type(self._device), tensor.qtype, tensor.data, *reversed(tensor.shape))

    def _matrix(self, name: str, *tensors: StoredTensor) -> Tensor:
        """Matrices of one type and with the same input as one: one multiplication instead of several."""
        data = np.concatenate([tensor.data for tensor in tensors]) if len(tensors) > 1 else tensors[0].data
        qtype, columns = tensors[0].qtype, tensors[0].shape[1]
        buffer_type = matrix_buffer_type(self._device, qtype, columns, len(data))
        matrix = self._new(buffer_type, qtype, data, columns, len(data))
        TensorContext.name(matrix, name)
        return matrix

    def _joined(self, tensors: Sequence[tuple[str, StoredTensor]]) -> list[Tensor]:
        """Neighbours of one type as one matrix each, which has the name of the first."""
        runs = [list(run) for _, run in groupby(tensors, key=lambda named: named[1].qtype)]
        return [self._matrix(run[0][0], *(tensor for _, tensor in run)) for run in runs]

    def _layer(self, file: GgufFile, spec: ModelSpec, index: int) -> DepthLayer:
        d = spec.decoder

        def matrix(name: str, rows: int, columns: int) -> tuple[str, StoredTensor]:
            full = f"blk.{index}.{name}.weight"
            return full, file.tensor(full, rows, columns)

        return DepthLayer(
            attention_norm=self._plain(file.tensor(f"blk.{index}.attn_norm.weight", d.embed_dim)),
            query_key_value=self._joined(
                [
                    matrix("attn_q", d.q_dim, d.embed_dim),
                    matrix("attn_k", d.kv_dim, d.embed_dim),
                    matrix("attn_v", d.kv_dim, d.embed_dim),
                ]
            ),
            attention_output=self._matrix(*matrix("attn_output", d.embed_dim, d.q_dim)),
            ffn_norm=self._plain(file.tensor(f"blk.{index}.ffn_norm.weight", d.embed_dim)),
            gate_up=self._joined(
                [matrix("ffn_gate", d.ffn_dim, d.embed_dim), matrix("ffn_up", d.ffn_dim, d.embed_dim)]
            ),
            down=self._matrix(*matrix("ffn_down", d.embed_dim, d.ffn_dim)),
        )


def _by_codebook(table: StoredTensor, spec: ModelSpec) -> list[StoredTensor]:
    """The rows of each codebook of a tensor [codebooks * audio_vocab, d]."""
    vocab, columns = spec.audio_vocab, table.shape[1]
    parts = (table.data[first : first + vocab] for first in range(0, spec.flat_audio_vocab, vocab))
    return [StoredTensor(table.qtype, (vocab, columns), part) for part in parts]
