"""Whether the installed llama-cpp-python is the one that this package was written for: a few milliseconds, once.

Its versions have changed arguments of functions and fields of structs under the same name before, and ctypes would not
notice. So each kind of thing that is done with the library is done here on a few numbers, and compared with gguf-py and
numpy. It opens no library: the caller hands them in, bound.
"""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Qtype

from ..core.errors import MisoError
from ..models.tensor_types import TENSOR_TYPES
from .signatures import GgufInitParams, InitParams, TensorHead

TESTED = "0.3.36"
"""Versions of llama-cpp-python that the tests ran with, oldest to newest."""
REINSTALL = "reinstall llama-cpp-python (>=0.3.36,<0.4)"

_LARGEST = 2.0
"""Of the numbers that are quantised."""
TYPES = {Qtype[name]: _LARGEST * row.max_group_error for name, row in TENSOR_TYPES.items() if name != "F32"}
"""What GGUF files of ours hold beside F32, and the RMS error that quantising `_numbers` may make."""
_BY_GGUF_PY = {Qtype.F16, Qtype.Q8_0, Qtype.Q5_0, Qtype.Q5_1, Qtype.Q4_0, Qtype.Q4_1}
"""gguf-py quantises these too, with the same bytes."""
_WITH_TABLES = {Qtype.IQ3_S, Qtype.IQ3_XXS, Qtype.IQ2_S}
"""ggml makes tables before it quantises to these, IQ2_S's for seconds: here they are only read."""

MUL_MAT = 29  # GGML_OP_MUL_MAT. Source: ggml.h.
_HEAD_DIM, _HEADS, _COUNT, _BASE = 32, 2, 3, 10_000.0
_CPU = 0  # enum ggml_backend_dev_type


def _numbers(*shape: int) -> npt.NDArray[np.float32]:
    """Numbers up to `_LARGEST` without a pattern. numpy's generators take 10 ms to import."""
    numbers: npt.NDArray[np.float32] = _LARGEST * np.sin(np.arange(1, np.prod(shape) + 1) ** 2).astype(np.float32)
    return numbers.reshape(shape)


def unlike(what: str) -> MisoError:
    """The error for a library that is not what was expected."""
    try:
        found = version("llama-cpp-python")
    except PackageNotFoundError:
        found = "of unknown version"
    return MisoError(
        f"the installed llama-cpp-python {found} is not what this program was written for ({what}); tested with "
        f"{TESTED}: pip install --force-reinstall 'llama-cpp-python=={TESTED}'"
    )


def check_base(base: ctypes.CDLL) -> None:
    """Structs, GGUF headers and quantised blocks. Raises `MisoError`."""
    with _context(base, 16) as context:
        _check_tensor(base, context)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sII", 1, b"k", 4, 77)
    if not (handle := base.gguf_init_from_buffer(header, len(header), GgufInitParams(True, None))):
        raise unlike("it does not read a GGUF header")
    index = base.gguf_find_key(handle, b"k")
    value = base.gguf_get_val_u32(handle, index) if base.gguf_get_kv_type(handle, index) == 4 else None
    base.gguf_free(handle)
    if value != 77:
        raise unlike("it reads a GGUF key differently")
    numbers = _numbers(2, 256)
    for qtype, error in TYPES.items():
        _check_type(base, qtype, numbers, error)


def _check_tensor(base: ctypes.CDLL, context: int) -> None:
    tensor = base.ggml_new_tensor(context, int(Qtype.F16), 4, (ctypes.c_int64 * 4)(2, 3, 5, 7))
    head = TensorHead.from_address(tensor)
    found = (head.type, head.buffer, list(head.ne), list(head.nb))
    if found != (int(Qtype.F16), None, [2, 3, 5, 7], [2, 4, 12, 60]) or not base.ggml_is_contiguous(tensor):
        raise unlike("ggml_tensor is laid out differently")
    weights, rows = (base.ggml_new_tensor(context, int(Qtype.F32), 1, (ctypes.c_int64 * 1)(2)) for _ in range(2))
    product = TensorHead.from_address(base.ggml_mul_mat(context, weights, rows))
    if (product.op, list(product.src[:3])) != (MUL_MAT, [weights, rows, None]):
        raise unlike("ggml_tensor has its operation and sources elsewhere")
    # 80 bytes of head, an operation with 10 sources, a view, data, a name and room for parameters behind it.
    if not 256 <= base.ggml_tensor_overhead() <= 1024:
        raise unlike(f"a ggml_tensor takes {base.ggml_tensor_overhead()} bytes")


def _check_type(base: ctypes.CDLL, qtype: Qtype, numbers: npt.NDArray[np.float32], allowed: float) -> None:
    traits = base.ggml_get_type_traits(int(qtype)).contents
    block, size = GGML_QUANT_SIZES[qtype]
    if (traits.blck_size, traits.type_size, traits.is_quantized) != (block, size, qtype not in (Qtype.F16, Qtype.BF16)):
        raise unlike(f"ggml_type_traits is laid out differently, or {qtype.name} is")
    rows, columns = numbers.shape
    data = np.zeros((rows, columns // block * size), np.uint8)
    if qtype in _WITH_TABLES:
        data[:] = np.arange(data.shape[1]) * 37 % 251
        data[:, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)  # the scale
    else:
        written = base.ggml_quantize_chunk(int(qtype), numbers.ctypes.data, data.ctypes.data, 0, rows, columns, None)
        if written != data.nbytes or not base.ggml_validate_row_data(int(qtype), data.ctypes.data, data.nbytes):
            raise unlike(f"ggml_quantize_chunk does not make {qtype.name}")
    if qtype in _BY_GGUF_PY and quants.quantize(numbers, qtype).tobytes() != data.tobytes():
        raise unlike(f"ggml_quantize_chunk makes another {qtype.name}")
    out = np.empty_like(numbers)
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    expected = quants.dequantize(data.view(np.float16) if qtype == Qtype.F16 else data, qtype)
    is_far = qtype not in _WITH_TABLES and np.sqrt(np.mean((out - numbers) ** 2)) > allowed
    if is_far or not np.allclose(out, expected, rtol=1e-6, atol=1e-6):
        raise unlike(f"it reads {qtype.name} differently")


def check_llama(library: Any) -> None:
    """Structs of llama.cpp as llama-cpp-python declares them: their defaults make sense. Raises `MisoError`."""
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    if (
        not -1 <= model.n_gpu_layers <= 999
        or not 0 <= model.split_mode <= 3
        or model.devices
        or (model.main_gpu, model.vocab_only, model.check_tensors, model.use_extra_bufts) != (0, False, False, True)
    ):
        raise unlike("llama_model_params is laid out differently")
    if (
        not 1 <= context.n_ubatch <= context.n_batch <= 1 << 16
        or not (1 <= context.n_threads <= 4096 and 1 <= context.n_threads_batch <= 4096)
        or (context.n_seq_max, context.pooling_type, context.flash_attn_type) != (1, -1, -1)
        or (context.type_k, context.type_v) != (int(Qtype.F16), int(Qtype.F16))
        or (context.embeddings, context.offload_kqv, context.kv_unified) != (False, True, False)
    ):
        raise unlike("llama_context_params is laid out differently")
    batch = library.llama_batch_init(2, 8, 1)
    if batch.n_tokens != 0 or batch.token or not (batch.embd and batch.pos and batch.n_seq_id and batch.seq_id):
        raise unlike("llama_batch is laid out differently")
    library.llama_batch_free(batch)


def check_graph(base: ctypes.CDLL, registry: ctypes.CDLL) -> None:
    """RoPE and attention as the depth decoder uses them, on the CPU, against numpy. Raises `MisoError`."""
    devices = (registry.ggml_backend_dev_get(index) for index in range(registry.ggml_backend_dev_count()))
    cpu = next((device for device in devices if base.ggml_backend_dev_type(device) == _CPU), None)
    backend = base.ggml_backend_dev_init(cpu, None) if cpu else None
    if cpu is None or not backend:
        raise unlike("it has no CPU to compute on")
    try:
        with _context(base, 32) as context:
            inputs = _inputs()
            found = _computed(base, context, cpu, backend, inputs)
    finally:
        base.ggml_backend_free(backend)
    if not np.allclose(found, _attention(*inputs), atol=0.01):
        raise unlike("RoPE and attention give other numbers")


Arrays = tuple[npt.NDArray[Any], ...]


def _inputs() -> Arrays:
    """Queries and keys [T, heads + 1, d], values [1, T, d], positions [T], factors [d / 2], mask [T, T]."""
    heads, values = _numbers(_COUNT, _HEADS + 1, _HEAD_DIM), _numbers(1, _COUNT, _HEAD_DIM).astype(np.float16)
    positions = np.arange(5, 5 + _COUNT, dtype=np.int32)
    factors = np.linspace(1, 3, _HEAD_DIM // 2, dtype=np.float32)
    mask = np.triu(np.full((_COUNT, _COUNT), -np.inf), 1).astype(np.float16)
    return heads, values, positions, factors, mask


def _attention(heads: Any, values: Any, positions: Any, factors: Any, mask: Any) -> npt.NDArray[np.float64]:
    """What numpy makes of it: [T, heads, d]."""
    angles = positions[:, None, None] * _BASE ** (-np.arange(0, _HEAD_DIM, 2) / _HEAD_DIM) / factors
    even, odd = heads[..., 0::2].astype(float), heads[..., 1::2].astype(float)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(heads.shape)
    queries, keys = turned[:, :_HEADS], turned[:, _HEADS]
    scores = np.einsum("thd,pd->htp", queries, keys) * _HEAD_DIM**-0.5 + mask.astype(float)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: npt.NDArray[np.float64] = np.einsum("htp,pd->thd", weights, values[0].astype(float))
    return mixed


def _computed(base: ctypes.CDLL, context: int, cpu: int, backend: int, inputs: Arrays) -> npt.NDArray[np.float32]:
    """What ggml makes of it: [T, heads, d]."""
    tensors = [
        base.ggml_new_tensor(context, _QTYPE[array.dtype.char], 4, (ctypes.c_int64 * 4)(*_shape(array)))
        for array in inputs
    ]
    heads, values, positions, factors, mask = tensors
    cache = base.ggml_new_tensor(context, int(Qtype.F16), 4, (ctypes.c_int64 * 4)(_HEAD_DIM, _COUNT, 1, 1))
    turned = base.ggml_rope_ext_inplace(
        context, heads, positions, factors, _HEAD_DIM, 0, 0, _BASE, 1.0, 0.0, 1.0, 32.0, 1.0
    )
    head, row = 4 * _HEAD_DIM, 4 * _HEAD_DIM * (_HEADS + 1)
    keys = base.ggml_view_4d(context, turned, _HEAD_DIM, _COUNT, 1, 1, row, row * _COUNT, row * _COUNT, head * _HEADS)
    stored = base.ggml_cpy(context, keys, cache)
    query = base.ggml_view_4d(context, turned, _HEAD_DIM, _COUNT, _HEADS, 1, row, head, row * _COUNT, 0)
    mixed = base.ggml_flash_attn_ext(context, query, stored, values, mask, _HEAD_DIM**-0.5, 0.0, 0.0)
    graph = base.ggml_new_graph_custom(context, 16, False)
    base.ggml_build_forward_expand(graph, mixed)
    buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(context, base.ggml_backend_dev_buffer_type(cpu))
    if not buffer:
        raise MemoryError("no memory for a few numbers")
    handles = (ctypes.c_void_p * 1)(backend)
    scheduler = base.ggml_backend_sched_new(handles, None, 1, 64, False, True)
    try:
        for tensor, array in zip(tensors, inputs, strict=True):
            base.ggml_backend_tensor_set(tensor, array.ctypes.data, 0, array.nbytes)
        out = np.full((_COUNT, _HEADS, _HEAD_DIM), np.nan, np.float32)
        if not base.ggml_backend_sched_alloc_graph(scheduler, graph):
            raise unlike("a graph finds no room")
        if base.ggml_backend_sched_graph_compute(scheduler, graph) == 0:
            base.ggml_backend_tensor_get(mixed, out.ctypes.data, 0, out.nbytes)
        return out
    finally:
        base.ggml_backend_sched_free(scheduler)
        base.ggml_backend_buffer_free(buffer)


_QTYPE = {"f": int(Qtype.F32), "e": int(Qtype.F16), "i": int(Qtype.I32)}


def _shape(array: npt.NDArray[Any]) -> tuple[int, ...]:
    return (*reversed(array.shape), 1, 1, 1)[:4]


@contextmanager
def _context(base: ctypes.CDLL, tensors: int) -> Iterator[int]:
    """Room for the descriptions of a few tensors and of a small graph."""
    size = tensors * base.ggml_tensor_overhead() + base.ggml_graph_overhead_custom(tensors, False) + 4096
    size -= size % 16
    context = base.ggml_init(InitParams(size, None, True))
    if not context:
        raise unlike("ggml_init makes no context")
    try:
        if base.ggml_get_mem_size(context) != size or not base.ggml_get_no_alloc(context):
            raise unlike("ggml_init_params is laid out differently")
        yield context
    finally:
        base.ggml_free(context)
