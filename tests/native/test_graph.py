"""Operations on tensors of any shape: each either computes what numpy does, or refuses. ggml itself would abort.

If one does neither, the test process ends, with ggml's last words.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from examples import examples
from gguf import GGMLQuantizationType as Qtype
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.core.errors import MisoError
from miso_gguf.native import buffer_types
from miso_gguf.native.buffer import Buffer, read_tensor, write_tensor
from miso_gguf.native.buffer_types import is_interleaving_safe, matrix_buffer_type, plain_buffer_type
from miso_gguf.native.device import Backends, Device, devices, gpus
from miso_gguf.native.ggml import dequantize, quantize
from miso_gguf.native.graph import F16, F32, I32, Graph, Tensor, TensorContext
from miso_gguf.native.libraries import ggml_base
from miso_gguf.native.scheduler import Scheduler

Array = NDArray[Any]
Operand = tuple[Tensor, Array]
"""A tensor and its values, the dimensions in numpy's order: the reverse of ggml's."""

Q8_0, Q4_K = Qtype.Q8_0, Qtype.Q4_K
NUMPY: dict[Qtype, Any] = {F32: np.float32, F16: np.float16, I32: np.int32}
BLOCK = {Q8_0: 32, Q4_K: 256}


@pytest.fixture(scope="module")
def backends() -> Iterator[Backends]:
    with Backends(gpu=None, threads=1) as backends:
        yield backends


class Bench:
    """A graph, operands for it as hypothesis draws them, and its result."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.g = Graph(128)
        self._draw = draw
        self._rng = np.random.default_rng(0)
        self._inputs: list[Operand] = []

    def choose(self, *options: Any) -> Any:
        return self._draw(st.sampled_from(options))

    def tensor(self, qtype: Qtype, *shape: int, below: int = 1) -> Operand:
        tensor = self.g.input(qtype, *shape)
        full = tuple(reversed(tensor.shape))
        values: Array = self._rng.standard_normal(full, np.float32)
        if qtype == I32:
            values = self._rng.integers(0, below, full, np.int32)
        elif qtype in NUMPY:
            values = values.astype(NUMPY[qtype])
        else:
            data = quantize(qtype, values.reshape(-1, full[-1]))
            self._inputs.append((tensor, data))
            return tensor, dequantize(qtype, data, full[-1]).reshape(full)
        self._inputs.append((tensor, values))
        return tensor, values

    def any(self, like: Tensor | None = None) -> Operand:
        """Any tensor, or one with a good chance to fit to another."""
        if like is not None and self.choose(True, True, False):
            return self.view(self.tensor(self.choose(like.qtype, F32), *like.shape))
        qtype = self.choose(F32, F32, F32, F16, I32, Q8_0, Q4_K)
        shape = self._draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        return self.view(self.tensor(qtype, shape[0] * BLOCK.get(qtype, 1), *shape[1:]))

    def view(self, operand: Operand) -> Operand:
        """The same, or with two of its outer dimensions exchanged, or without its first row, matrix or whatever."""
        tensor, values = operand
        kind, axis = self.choose("whole", "whole", "exchanged", "cut"), self.choose(1, 2, 3)
        if kind == "exchanged":
            other = self.choose(*{1, 2, 3} - {axis})
            shape, strides = list(tensor.shape), list(tensor.strides)
            shape[axis], shape[other] = shape[other], shape[axis]
            strides[axis], strides[other] = strides[other], strides[axis]
            return self._viewed(tensor, shape, strides, 0), values.swapaxes(3 - axis, 3 - other)
        if kind == "cut" and tensor.shape[axis] > 1:
            shape = list(tensor.shape)
            shape[axis] -= 1
            kept = values[(slice(None),) * (3 - axis) + (slice(1, None),)]
            return self._viewed(tensor, shape, tensor.strides, tensor.strides[axis]), kept
        return operand

    def _viewed(self, tensor: Tensor, shape: Sequence[int], strides: Sequence[int], offset: int) -> Tensor:
        one, two, three = strides[1:]
        x, y, z, w = shape
        return self.g.view(tensor, (x, y, z, w), (one, two, three), offset)

    def run(self, backends: Backends, result: Tensor) -> Array:
        self.g.expand(result, output=True)
        scheduler = Scheduler(backends, self.g)
        try:
            for tensor, values in self._inputs:
                if TensorContext.is_placed(tensor):
                    write_tensor(tensor, values)
            scheduler.compute()
            shape = tuple(reversed(result.shape))
            if result.qtype in NUMPY:
                out = np.empty(shape, NUMPY[result.qtype])
                read_tensor(result, out)
                return out
            data = np.empty((shape[0] * shape[1] * shape[2], result.strides[1]), np.uint8)
            read_tensor(result, data)
            return dequantize(result.qtype, data, shape[3]).reshape(shape)
        finally:
            scheduler.close()


Built = tuple[Tensor, Callable[[], Array], float]
"""The result, what it should be, and how exactly."""


def twice(bench: Bench, view: Tensor, expected: Callable[[], Array]) -> Built:
    """A view is not computed; its double is."""
    return bench.g.add(view, view), lambda: 2 * expected().astype(np.float32), 1e-6


def reshape(bench: Bench) -> Built:
    x, values = bench.any()
    shape = [bench.choose(1, 2, 3, 4, 6, x.shape[0]) for _ in range(bench.choose(1, 2, 3, 4))]
    if bench.choose(True, False):
        shape = [x.shape[0] * x.shape[1], x.shape[3], x.shape[2]]
    result = bench.g.reshape(x, *shape)
    return twice(bench, result, lambda: values.reshape(tuple(reversed(result.shape))))


def rows(bench: Bench) -> Built:
    x, values = bench.any()
    first, count = bench.choose(0, 0, 1, 2, -1), bench.choose(1, 1, 2, 3, 0, -1)
    result = bench.g.rows(x, first, count)
    return twice(bench, result, lambda: values[:, :, first : first + count])


def mul_mat(bench: Bench) -> Built:
    weights, matrix = bench.any()
    x, values = bench.any()
    if bench.choose(True, True, False):
        x, values = bench.view(bench.tensor(F32, weights.shape[0], *(bench.choose(1, 2, 3) for _ in range(3))))
    # Vectors are rounded to the type that goes with the matrix: F16, or eight bits in blocks.
    error = {F32: 1e-5, F16: 2e-2, Q8_0: 0.3, Q4_K: 0.5}.get(weights.qtype, 0)
    return bench.g.mul_mat(weights, x), lambda: values @ matrix[0, 0].astype(np.float32).T, error


def rms_norm(bench: Bench) -> Built:
    x, values = bench.any()
    scale, factors = bench.tensor(F32, x.shape[0]) if bench.choose(True, True, False) else bench.any()
    result = bench.g.rms_norm(x, scale, 1e-5)
    return result, lambda: values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5) * factors, 1e-5


def add(bench: Bench) -> Built:
    a, left = bench.any()
    b, right = bench.any(a)
    return bench.g.add(a, b), lambda: left + right, 1e-6


def concat(bench: Bench) -> Built:
    a, left = bench.any()
    b, right = bench.any(a)
    axis = bench.choose(0, 1, 2, 3, 4, -1)
    return bench.g.concat(a, b, axis), lambda: np.concatenate([left, right], 3 - axis), 0


def rope(bench: Bench) -> Built:
    x, values = bench.any()
    if bench.choose(True, False):
        x, values = bench.view(bench.tensor(F32, bench.choose(2, 4, 6, 3), *(bench.choose(1, 2, 3) for _ in range(3))))
    positions, at = bench.tensor(I32, x.shape[2], below=3) if bench.choose(True, True, False) else bench.any()
    half = max(1, x.shape[0] // 2)
    factors, divisors = bench.tensor(F32, half) if bench.choose(True, True, False) else bench.any()
    factored = bench.choose(True, False)
    turned = bench.g.rope(x, positions, factors if factored else None, 5e5)
    # In place: its rows lie as they did, perhaps with gaps, and only whole tensors can be read.
    result = bench.g.copy(turned, bench.g.new(F32, *x.shape))

    def expected() -> Array:
        frequencies = 5e5 ** -(np.arange(half) / half) / (divisors[0, 0, 0] if factored else 1)
        angles = at[0, 0, 0][:, None, None] * frequencies
        even, odd = values[..., 0::2], values[..., 1::2]
        pairs = [even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)]
        return np.asarray(np.stack(pairs, -1).reshape(values.shape))

    return result, expected, 2e-3


def swiglu(bench: Bench) -> Built:
    x, values = bench.any()

    def expected() -> Array:
        gate, up = np.split(values, 2, axis=-1)
        return np.asarray(gate / (1 + np.exp(-gate)) * up)

    return bench.g.swiglu(x), expected, 1e-5


def copy(bench: Bench) -> Built:
    source, values = bench.any()
    target, _ = bench.any(source)
    if target.qtype != F32:
        target, _ = bench.tensor(target.qtype, *target.shape)
    result = bench.g.copy(source, target)
    # Into a view, so that its strides count; what else than F32 can only be looked at whole.
    return twice(bench, result, lambda: values) if target.qtype == F32 else (result, lambda: values, 2e-3)


def attention(bench: Bench) -> Built:
    width, count, heads, batch = (bench.choose(*options) for options in ((2, 4, 32), (1, 2), (1, 2, 4), (1, 2)))
    past, kv_heads = bench.choose(1, 2, 3), bench.choose(1, 2)
    kv = bench.choose(F32, F32, F16, *([Q8_0] if width == 32 else []))
    q, query = bench.view(bench.tensor(F32, width, count, heads, batch))
    k, keys = bench.view(bench.tensor(kv, width, past, kv_heads, batch))
    v, content = bench.view(bench.tensor(bench.choose(kv, kv, F32), width, past, kv_heads, batch))
    mask, bias = bench.any() if bench.choose(True, False, False) else bench.tensor(F16, past, count)
    masked = bench.choose(True, False)

    def expected() -> Array:
        share = query.shape[1] // keys.shape[1]
        wide_keys, wide_content = (np.repeat(array.astype(np.float32), share, 1) for array in (keys, content))
        scores = query @ wide_keys.swapaxes(2, 3) * 0.5 + (bias[0, 0].astype(np.float32) if masked else 0)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ wide_content
        return np.asarray(mixed.swapaxes(1, 2))

    return bench.g.attention(q, k, v, mask if masked else None, 0.5), expected, 1e-5 if kv == F32 else 1e-2


def top_k(bench: Bench) -> Built:
    x, values = bench.any() if bench.choose(True, False) else bench.view(bench.tensor(F32, 4, 3))
    k = bench.choose(0, 1, 2, 3, 5)
    return bench.g.top_k(x, k), lambda: np.argsort(-values, -1)[..., :k], 0


def argsort(bench: Bench) -> Built:
    x, values = bench.any() if bench.choose(True, False) else bench.view(bench.tensor(F32, 4, 3))
    return bench.g.argsort(x), lambda: np.argsort(-values, -1), 0


def argmax(bench: Bench) -> Built:
    x, values = bench.any() if bench.choose(True, False) else bench.view(bench.tensor(F32, 4, 3))
    return bench.g.argmax(x), lambda: values[0, 0].argmax(-1)[None, None, None], 0


def get_rows(bench: Bench) -> Built:
    table, values = bench.any()
    indices, at = bench.any()
    if bench.choose(True, True, False):
        shape = (bench.choose(1, 2, 3), table.shape[2], table.shape[3])
        indices, at = bench.tensor(I32, *shape, below=table.shape[1])
    result = bench.g.get_rows(table, indices)
    return result, lambda: np.take_along_axis(values, at[0][..., None], 2).astype(NUMPY[result.qtype]), 1e-6


OPERATIONS = [
    reshape, rows, mul_mat, rms_norm, add, concat, rope, swiglu, copy, attention, top_k, argsort, argmax,
    get_rows,
]  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_computes_or_refuses(backends: Backends, operation: Callable[[Bench], Built]) -> None:
    outcomes = {"computed": 0, "refused": 0}

    @settings(max_examples=examples(80), deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        bench = Bench(data.draw)
        try:
            try:
                result, expected, error = operation(bench)
            except ValueError as refusal:
                outcomes["refused"] += 1
                assert str(refusal).startswith("ggml ")  # noqa: PT017
                return
            found, wanted = bench.run(backends, result), expected()
            outcomes["computed"] += 1
            if operation is top_k:  # which may come in any order
                found, wanted = np.sort(found), np.sort(wanted)
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), rtol=error, atol=error)
        finally:
            bench.g.close()

    check()
    assert min(outcomes.values()) > 0, outcomes


@given(
    st.lists(st.integers(-1, 4), min_size=4, max_size=4),
    st.lists(st.integers(-4, 80), min_size=3, max_size=3),
    st.integers(-4, 200),
)
def test_a_view_stays_inside_its_tensor(shape: list[int], strides: list[int], offset: int) -> None:
    graph = Graph(4)
    try:
        x = graph.new(F32, 3, 4, 2)
        a, b, c, d = shape
        one, two, three = strides
        try:
            view = graph.view(x, (a, b, c, d), (one, two, three), offset)
        except ValueError:
            return
        reached = [offset + i * 4 + j * one + k * two + m * three for i in (0, a - 1) for j in (0, b - 1)
                   for k in (0, c - 1) for m in (0, d - 1)]  # fmt: skip
        assert view.shape == tuple(shape)
        assert min(reached) >= 0
        assert max(reached) + 4 <= 96
    finally:
        graph.close()


@pytest.mark.parametrize("shape", [(), (0,), (-1, 2), (1, 2, 3, 4, 5), (2, 0)])
def test_tensors_without_a_size(shape: tuple[int, ...]) -> None:
    context = TensorContext(4)
    with pytest.raises(ValueError, match="a tensor has 1 to 4 positive dimensions, not"):
        context.new(F32, *shape)
    context.close()
    context.close()


def test_rows_of_a_quantised_tensor_are_whole_blocks() -> None:
    context = TensorContext(4)
    with pytest.raises(ValueError, match="33 columns are not a multiple of Q8_0's block of 32"):
        context.new(Q8_0, 33)
    tensor = context.new(Q8_0, 64, 3)
    assert (tensor.shape, tensor.strides[:2], tensor.size_bytes) == ((64, 3, 1, 1), (34, 68), 204)
    context.close()


def test_reading_and_writing(backends: Backends) -> None:
    context = TensorContext(4)
    tensor, values = context.new(F32, 3, 2), np.arange(6, dtype=np.float32).reshape(2, 3)
    with pytest.raises(ValueError, match=r"F32 \[3, 2, 1, 1\] has no memory"):
        write_tensor(tensor, values)
    buffer = Buffer(context, plain_buffer_type(backends.best), weights=False)
    out = np.full((2, 3), 7, np.float32)
    read_tensor(tensor, out)
    assert not out.any(), "a new state is zero"
    write_tensor(tensor, np.asfortranarray(values))
    read_tensor(tensor, out)
    np.testing.assert_array_equal(out, values)
    for wrong in (values[:1], values.astype(np.float64)):
        with pytest.raises(ValueError, match=r"F32 \[3, 2, 1, 1\] takes 24 bytes, not"):
            write_tensor(tensor, wrong)
    for wrong in (out[:1], np.asfortranarray(out)):
        with pytest.raises(ValueError, match="takes 24 bytes, not"):
            read_tensor(tensor, wrong)
    assert buffer.size_bytes >= 24
    buffer.close()
    buffer.close()
    context.close()


def test_an_input_that_nothing_uses_is_not_written_to(backends: Backends) -> None:
    graph = Graph(8)
    used, unused = graph.input(F32, 2), graph.input(F32, 2)
    graph.expand(graph.add(used, used), output=True)
    scheduler = Scheduler(backends, graph)
    write_tensor(used, np.ones(2, np.float32))
    with pytest.raises(ValueError, match="has no memory: its graph does not use it"):
        write_tensor(unused, np.ones(2, np.float32))
    assert scheduler.splits == 1
    assert list(scheduler.buffer_bytes) == ["CPU"]
    scheduler.close()
    scheduler.close()
    graph.close()


def test_a_graph_runs_again_on_new_values(backends: Backends) -> None:
    """Copies into a state happen in the order in which they were asked for, and stay until the next run."""
    state_context = TensorContext(2)
    state = state_context.new(F32, 4)
    memory = Buffer(state_context, plain_buffer_type(backends.best), weights=False)
    graph = Graph(16)
    x = graph.input(F32, 4)
    graph.expand(graph.copy(graph.add(state, x), state))
    total = graph.add(state, x)
    graph.expand(total, output=True)
    scheduler = Scheduler(backends, graph)
    out, kept = np.empty(4, np.float32), np.empty(4, np.float32)
    for run in range(1, 4):
        write_tensor(x, np.full(4, run, np.float32))
        scheduler.compute()
        read_tensor(state, kept)
        read_tensor(total, out)
        np.testing.assert_array_equal(kept, np.full(4, run * (run + 1) // 2))
        np.testing.assert_array_equal(out, kept + run)
    scheduler.close()
    graph.close()
    memory.close()
    state_context.close()


def test_devices() -> None:
    found = devices()
    assert found[-1].name == "CPU"
    assert found[:-1] == gpus()
    free, total = found[-1].memory()
    assert 0 < free <= total


def test_matrices_go_where_they_are_multiplied_fastest(backends: Backends) -> None:
    """Whatever this CPU has for Q4_0, a shape or type that it does not take stays in plain memory."""
    assert matrix_buffer_type(backends.best, F32, 64, 64) == plain_buffer_type(backends.best)
    assert matrix_buffer_type(backends.best, Q8_0, 32, 1) == plain_buffer_type(backends.best)
    assert matrix_buffer_type(backends.best, Qtype.Q4_0, 64, 64) > 0


@pytest.mark.parametrize("qtype", [F16, Q8_0, Qtype.Q4_0, Qtype.Q4_K, Qtype.Q6_K])
def test_rows_in_further_dimensions_in_the_fastest_memory(backends: Backends, qtype: Qtype) -> None:
    """A batch is one product with all rows: where each were one of its own, the second would read past the weights."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((64, 256)).astype(np.float32)
    data = quantize(qtype, matrix)
    x = rng.standard_normal((1, 5, 3, 256)).astype(np.float32)
    with ExitStack() as stack:
        context, graph = TensorContext(2), Graph(8)
        stack.callback(context.close)
        stack.callback(graph.close)
        weights = context.new(qtype, 256, 64)
        stack.callback(Buffer(context, matrix_buffer_type(backends.best, qtype, 256, 64), weights=True).close)
        write_tensor(weights, data)
        rows = graph.input(F32, 256, 3, 5)
        result = graph.mul_mat(weights, rows)
        graph.expand(result, output=True)
        scheduler = Scheduler(backends, graph)
        stack.callback(scheduler.close)
        write_tensor(rows, x)
        scheduler.compute()
        found = np.empty((1, 5, 3, 64), np.float32)
        read_tensor(result, found)
    expected = x @ dequantize(qtype, data, 256).T
    assert result.shape == (64, 3, 5, 1)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_amx_is_never_chosen(monkeypatch: pytest.MonkeyPatch, backends: Backends) -> None:
    """Compiled by GCC 12 ggml's AMX kernels end the process: neither we nor, by `repack`, llama.cpp may use them."""
    plain = plain_buffer_type(backends.best)
    monkeypatch.setattr(buffer_types, "_listed", lambda _: [plain])
    assert is_interleaving_safe()
    assert matrix_buffer_type(backends.best, Q8_0, 64, 64) == plain
    asked: list[int] = []
    monkeypatch.setattr(buffer_types, "can_multiply", lambda _device, entry, *_: asked.append(entry))
    monkeypatch.setattr(buffer_types, "_AMX", ggml_base().ggml_backend_buft_name(plain))
    assert not is_interleaving_safe()
    assert matrix_buffer_type(backends.best, Q8_0, 64, 64) == plain
    assert asked == []


def test_a_device_that_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_base(), "ggml_backend_dev_init", lambda *_: None)
    broken = Device(0, "CUDA0", "a GPU", "gpu")
    with pytest.raises(MisoError, match=r"CUDA0 \(a GPU\) cannot be opened: is another program using it"):
        Backends(gpu=broken, threads=1)


def test_no_room(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    context = TensorContext(4)
    context.new(F32, 4)
    with monkeypatch.context() as patch:
        patch.setattr(ggml_base(), "ggml_backend_alloc_ctx_tensors_from_buft", lambda *_: None)
        with pytest.raises(MemoryError, match="CPU is full: free some of its memory, or choose a smaller level"):
            Buffer(context, plain_buffer_type(backends.best), weights=True)
    context.close()
    graph = Graph(4)
    x = graph.input(F32, 4)
    graph.expand(graph.add(x, x))
    monkeypatch.setattr(ggml_base(), "ggml_backend_sched_alloc_graph", lambda *_: False)
    with pytest.raises(MemoryError, match="CPU cannot hold a graph: free some memory"):
        Scheduler(backends, graph)
    graph.close()


def test_what_is_closed_is_not_used(backends: Backends) -> None:
    """ggml would end the process."""
    out = np.zeros(2, np.float32)

    def opened() -> tuple[Graph, Tensor, Tensor, Scheduler]:
        graph = Graph(8)
        x = graph.input(F32, 2)
        total = graph.add(x, x)
        graph.expand(total, output=True)
        return graph, x, total, Scheduler(backends, graph)

    def refused(*calls: Callable[[], object]) -> None:
        for call in calls:
            with pytest.raises(MisoError, match="this model is closed: load it again"):
                call()

    graph, x, total, scheduler = opened()
    scheduler.close()
    refused(scheduler.compute, lambda: scheduler.splits, lambda: scheduler.buffer_bytes)
    refused(lambda: write_tensor(x, out), lambda: read_tensor(total, out))
    scheduler.close()

    graph, x, total, scheduler = opened()
    graph.close()
    refused(scheduler.compute, lambda: graph.nodes, lambda: graph.new(F32, 2), lambda: graph.input(F32, 2))
    refused(lambda: graph.add(x, x), lambda: graph.expand(total), lambda: write_tensor(x, out))
    scheduler.close()

    context, graph = TensorContext(2), Graph(8)
    weights = context.new(F32, 2)
    buffer = Buffer(context, plain_buffer_type(backends.best), weights=True)
    buffer.close()
    refused(lambda: write_tensor(weights, out), lambda: read_tensor(weights, out), lambda: context.new(F32, 2))
    refused(lambda: graph.add(weights, weights), lambda: Buffer(context, 0, weights=True))
    graph.close()


def test_nothing_is_computed_on_devices_that_were_given_back() -> None:
    backends = Backends(gpu=None, threads=1)
    graph = Graph(8)
    x = graph.input(F32, 2)
    graph.expand(graph.add(x, x), output=True)
    scheduler = Scheduler(backends, graph)
    scheduler.close()
    backends.close()
    backends.close()
    other = Graph(8)
    y = other.input(F32, 2)
    other.expand(other.add(y, y), output=True)
    for call in (scheduler.compute, lambda: Scheduler(backends, other), backends.check):
        with pytest.raises(MisoError, match="this model is closed: load it again"):
            call()
    other.close()
