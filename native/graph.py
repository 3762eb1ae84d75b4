"""Building a ggml compute graph from Python: tensors, and the few operations that our models need.

ggml aborts the process on a wrong shape or type, so each operation checks its operands first and raises `ValueError`.
Shapes are in ggml's order, the fastest dimension first, always four of them. It knows no devices (`device.py`) and no
model.
"""

import ctypes
from typing import NamedTuple

from gguf import GGMLQuantizationType

from ..core.closing import CLOSED
from ..core.errors import MisoError
from .ggml import row_bytes
from .libraries import ggml_base
from .signatures import InitParams, TensorHead

F32, F16, I32 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.I32
Shape = tuple[int, int, int, int]

_SMALL = 1 << 20
"""Bytes beside the tensors of a context: a graph's hash table is counted on its own."""
_ROPE_NORMAL = 0  # pairs (2i, 2i + 1), as in the `llama` arch. Source: ggml.h.
_DESCENDING = 1  # GGML_SORT_ORDER_DESC. Source: ggml.h.


class Tensor(NamedTuple):
    """A tensor of a context. It is valid as long as its context is open."""

    context: "TensorContext"
    address: int
    qtype: GGMLQuantizationType
    shape: Shape
    strides: Shape
    """Bytes from one element (of a quantised row: one block) to the next, for each dimension."""

    @property
    def pointer(self) -> int:
        """What ggml knows it by. Raises `MisoError` once its context is closed."""
        self.context.check()
        return self.address

    @property
    def size_bytes(self) -> int:
        """Bytes of a contiguous tensor."""
        return row_bytes(self.qtype, self.shape[0]) * self.shape[1] * self.shape[2] * self.shape[3]


def _require(ok: bool, operation: str, *tensors: Tensor) -> None:
    if not ok:
        operands = ", ".join(f"{tensor.qtype.name} {list(tensor.shape)}" for tensor in tensors)
        raise ValueError(f"ggml {operation} does not take {operands}")


class TensorContext:
    """Room for the descriptions of `capacity` tensors, without their data. `close` frees it."""

    def __init__(self, capacity: int, *, graph_nodes: int = 0) -> None:
        lib = ggml_base()
        size = capacity * lib.ggml_tensor_overhead() + _SMALL
        if graph_nodes:
            size += lib.ggml_graph_overhead_custom(graph_nodes, False)
        self._open: int | None = lib.ggml_init(InitParams(size, None, True))
        if not self._open:
            raise MemoryError(f"ggml could not reserve {size} bytes for tensor descriptions")

    def close(self) -> None:
        """Free it. Idempotent; every `Tensor` in it is void from then on."""
        handle, self._open = self._open, None
        if handle:
            ggml_base().ggml_free(handle)

    def check(self) -> None:
        """Raise `MisoError` after `close`: ggml would use what is gone."""
        if not self._open:
            raise MisoError(CLOSED)

    @property
    def handle(self) -> int:
        """What ggml knows it by. Raises `MisoError` after `close`."""
        self.check()
        assert self._open
        return self._open

    def _wrap(self, pointer: int | None) -> Tensor:
        if not pointer:
            raise MisoError("ggml could not make a tensor: its context is full")
        raw = TensorHead.from_address(pointer)
        return Tensor(self, pointer, GGMLQuantizationType(raw.type), tuple(raw.ne), tuple(raw.nb))

    def new(self, qtype: GGMLQuantizationType, *shape: int) -> Tensor:
        """A tensor whose data is allocated later, with the buffer or the graph it is part of."""
        full = (*shape, 1, 1, 1)[:4]
        if not shape or len(shape) > 4 or min(full) < 1:
            raise ValueError(f"a tensor has 1 to 4 positive dimensions, not {list(shape)}")
        row_bytes(qtype, full[0])
        return self._wrap(ggml_base().ggml_new_tensor(self.handle, int(qtype), 4, (ctypes.c_int64 * 4)(*full)))

    @staticmethod
    def name(tensor: Tensor, name: str) -> None:
        """Have `tensor` called so, for who watches a graph (`products.py`)."""
        ggml_base().ggml_set_name(tensor.pointer, name.encode())

    @staticmethod
    def is_placed(tensor: Tensor) -> bool:
        """Whether the tensor has memory. An input that its graph never uses gets none."""
        return bool(TensorHead.from_address(tensor.pointer).buffer)

    @staticmethod
    def place(tensor: Tensor, buffer: int) -> None:
        """Say that `tensor` lies in `buffer`, for a question to a device; nothing is computed with it."""
        TensorHead.from_address(tensor.pointer).buffer = buffer


class Graph(TensorContext):
    """A compute graph of at most `nodes` operations and views, and the operations."""

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes, graph_nodes=nodes)
        self._graph: int = ggml_base().ggml_new_graph_custom(self.handle, nodes, False)

    @property
    def graph(self) -> int:
        """What ggml knows the operations by. Raises `MisoError` after `close`."""
        self.check()
        return self._graph

    @property
    def nodes(self) -> int:
        """Operations and views in the graph so far."""
        return int(ggml_base().ggml_graph_n_nodes(self.graph))

    def input(self, qtype: GGMLQuantizationType, *shape: int) -> Tensor:
        """A tensor that is filled before each computation. It must be used: one that is not gets no memory."""
        tensor = self.new(qtype, *shape)
        ggml_base().ggml_set_input(tensor.pointer)
        return tensor

    def expand(self, result: Tensor, *, output: bool = False) -> None:
        """Have `result` computed, after all that was asked for before; keep an `output` readable afterwards."""
        if output:
            ggml_base().ggml_set_output(result.pointer)
        ggml_base().ggml_build_forward_expand(self.graph, result.pointer)

    def view(self, x: Tensor, shape: Shape, strides: tuple[int, int, int], offset: int = 0) -> Tensor:
        """Another look at the data of `x`: `strides` in bytes of dimensions 1 to 3, `offset` in bytes."""
        reach = offset + row_bytes(x.qtype, shape[0])
        reach += sum((count - 1) * stride for count, stride in zip(shape[1:], strides, strict=True))
        limit = row_bytes(x.qtype, x.shape[0])
        limit += sum((count - 1) * stride for count, stride in zip(x.shape[1:], x.strides[1:], strict=True))
        # ggml first takes the view for a contiguous tensor, which must fit as well.
        whole = offset + row_bytes(x.qtype, shape[0]) * shape[1] * shape[2] * shape[3]
        fits = min(*shape, 1) == 1 and min(*strides, offset) >= 0 and max(reach, whole) <= limit
        _require(fits, f"view of {list(shape)} at {offset}", x)
        return self._wrap(ggml_base().ggml_view_4d(self.handle, x.pointer, *shape, *strides, offset))

    def rows(self, x: Tensor, first: int, count: int) -> Tensor:
        """Rows `first` to `first + count - 1` of a matrix."""
        _require(x.shape[2:] == (1, 1), "rows", x)
        return self.view(x, (x.shape[0], count, 1, 1), x.strides[1:], first * x.strides[1])

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """The same elements in other dimensions."""
        full = (*shape, 1, 1, 1)[:4]
        same = full[0] * full[1] * full[2] * full[3] == x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3]
        _require(same and ggml_base().ggml_is_contiguous(x.pointer), f"reshape to {list(shape)}", x)
        return self._wrap(ggml_base().ggml_reshape_4d(self.handle, x.pointer, *full))

    def mul_mat(self, weights: Tensor, x: Tensor) -> Tensor:
        """`weights` [in, out] times each row of `x` [in, ...] -> [out, ...].

        ggml gets all rows as one matrix: in further dimensions its backends would see products of their own, and read
        the weights again for each (CUDA), or past their end (AMX).
        """
        fits = weights.shape[0] == x.shape[0] and weights.shape[2:] == (1, 1)
        types = x.qtype == F32 and weights.qtype != I32
        _require(fits and types and x.strides[0] == 4, "mul_mat", weights, x)
        rows = x if x.shape[2:] == (1, 1) else self.reshape(x, x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])
        product = self._wrap(ggml_base().ggml_mul_mat(self.handle, weights.pointer, rows.pointer))
        return product if rows is x else self.reshape(product, weights.shape[1], *x.shape[1:])

    def rms_norm(self, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        """RMSNorm of each row of `x` [d, n], times `scale` [d]."""
        _require(x.qtype == scale.qtype == F32 and scale.shape == (x.shape[0], 1, 1, 1), "rms_norm", x, scale)
        normed = ggml_base().ggml_rms_norm(self.handle, x.pointer, eps)
        return self._wrap(ggml_base().ggml_mul(self.handle, normed, scale.pointer))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """`a + b`, of one shape."""
        _require(a.shape == b.shape and a.qtype == b.qtype == F32, "add", a, b)
        return self._wrap(ggml_base().ggml_add(self.handle, a.pointer, b.pointer))

    def concat(self, a: Tensor, b: Tensor, dimension: int = 0) -> Tensor:
        """`a` and `b` joined along one dimension."""
        rest = all(a.shape[i] == b.shape[i] for i in range(4) if i != dimension)
        _require(rest and a.qtype == b.qtype and dimension in range(4), "concat", a, b)
        return self._wrap(ggml_base().ggml_concat(self.handle, a.pointer, b.pointer, dimension))

    def rope(self, x: Tensor, positions: Tensor, factors: Tensor | None, base: float) -> Tensor:
        """RoPE on interleaved pairs of `x` [head_dim, heads, T, B] at I32 `positions` [T]; `factors` [head_dim / 2].

        In place: the result is `x`, whose data is overwritten; so no two of its elements may share memory.
        """
        fits = x.qtype == F32 and positions.qtype == I32 and positions.shape == (x.shape[2], 1, 1, 1)
        sizes = [4 * x.shape[0], *(x.strides[i] * x.shape[i] for i in (1, 2))]
        fits = fits and all(x.shape[i] == 1 or x.strides[i] >= sizes[i - 1] for i in (1, 2, 3))
        if factors is not None:
            fits = fits and factors.qtype == F32 and factors.shape == (x.shape[0] // 2, 1, 1, 1)
        _require(fits and x.shape[0] % 2 == 0, "rope", x, positions, *([factors] if factors else []))
        head_dim, plain = x.shape[0], (base, 1.0, 0.0, 1.0, 32.0, 1.0)
        return self._wrap(
            ggml_base().ggml_rope_ext_inplace(
                self.handle,
                x.pointer,
                positions.pointer,
                factors.pointer if factors else None,
                head_dim,
                _ROPE_NORMAL,
                0,
                *plain,
            )
        )

    def swiglu(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """`silu(gate) * up` [d, ...]; without `up`, of the two halves of each row of `gate` [2 d, ...]."""
        if up is None:
            contiguous = ggml_base().ggml_is_contiguous_1(gate.pointer)
            _require(gate.qtype == F32 and gate.shape[0] % 2 == 0 and contiguous, "swiglu", gate)
            return self._wrap(ggml_base().ggml_swiglu(self.handle, gate.pointer))
        contiguous = all(ggml_base().ggml_is_contiguous_1(x.pointer) for x in (gate, up))
        _require(gate.shape == up.shape and gate.qtype == up.qtype == F32 and contiguous, "swiglu", gate, up)
        return self._wrap(ggml_base().ggml_swiglu_split(self.handle, gate.pointer, up.pointer))

    def copy(self, source: Tensor, target: Tensor) -> Tensor:
        """Write `source` into `target`, which may be of another float type; the result is `target`."""
        types = source.qtype == target.qtype or {source.qtype, target.qtype} <= {F32, F16}
        _require(source.shape == target.shape and types, "copy", source, target)
        return self._wrap(ggml_base().ggml_cpy(self.handle, source.pointer, target.pointer))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Softmax attention: `q` [d, T, heads, B], `k` and `v` [d, P, kv_heads, B] -> [d, heads, T, B].

        `mask` [P, T], F16, is added to the scores. Rows must be contiguous, dimensions may be permuted.
        """
        head_dim, count, heads, batch = q.shape
        fits = (
            q.qtype == F32
            and k.qtype in {F32, F16}
            and k.qtype == v.qtype
            and k.shape == v.shape
            and k.shape[0] == head_dim
            and heads % k.shape[2] == 0
            and k.shape[3] == batch
            and (q.strides[0], k.strides[0], v.strides[0]) == (4, _WIDTH[k.qtype], _WIDTH[k.qtype])
        )
        if mask is not None:
            fits = fits and mask.qtype == F16 and mask.shape == (k.shape[1], count, 1, 1)
        _require(fits, "attention", q, k, v, *([mask] if mask else []))
        pointers = (q.pointer, k.pointer, v.pointer, mask.pointer if mask else None)
        return self._wrap(ggml_base().ggml_flash_attn_ext(self.handle, *pointers, scale, 0.0, 0.0))

    def top_k(self, x: Tensor, k: int) -> Tensor:
        """Indices of the `k` largest of each row of `x` [n, B], in any order: I32 [k, B]."""
        matrix = x.shape[2:] == (1, 1) and x.strides[0] == 4
        _require(x.qtype == F32 and 1 <= k <= x.shape[0] and matrix, f"top_k {k}", x)
        return self._wrap(ggml_base().ggml_top_k(self.handle, x.pointer, k))

    def argsort(self, x: Tensor) -> Tensor:
        """Indices of each row of `x` [n, B], of the largest first: I32 [n, B]. Equals come in any order."""
        matrix = x.shape[2:] == (1, 1) and ggml_base().ggml_is_contiguous(x.pointer)
        _require(x.qtype == F32 and matrix, "argsort", x)
        return self._wrap(ggml_base().ggml_argsort(self.handle, x.pointer, _DESCENDING))

    def argmax(self, x: Tensor) -> Tensor:
        """Index of the largest of each row of `x` [n, B]: I32 [B]."""
        matrix = x.shape[2:] == (1, 1) and ggml_base().ggml_is_contiguous(x.pointer)
        _require(x.qtype == F32 and matrix, "argmax", x)
        return self._wrap(ggml_base().ggml_argmax(self.handle, x.pointer))

    def get_rows(self, table: Tensor, indices: Tensor) -> Tensor:
        """Rows of `table` [d, n, B] at I32 `indices` [k, B] -> [d, k, B], as F32 (I32 of an I32 table).

        The caller answers for the indices being in range: they are only known when the graph runs.
        """
        fits = indices.qtype == I32 and table.shape[2] == indices.shape[1] and table.shape[3] == indices.shape[2]
        _require(fits and indices.shape[3] == 1, "get_rows", table, indices)
        return self._wrap(ggml_base().ggml_get_rows(self.handle, table.pointer, indices.pointer))


_WIDTH = {F32: 4, F16: 2}
