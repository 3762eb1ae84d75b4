"""A library that differs from what this package was written for is refused; the one that is installed is not."""

import ctypes
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Qtype

from miso_gguf.core.errors import MisoError
from miso_gguf.native import libraries, llama, self_test
from miso_gguf.native.libraries import ggml_base, ggml_registry, once
from miso_gguf.native.llama import load_library
from miso_gguf.native.self_test import check_base, check_graph, check_llama
from miso_gguf.native.signatures import TypeTraits


class Fake:
    """A library, some of its functions others."""

    def __init__(self, library: Any, **functions: Callable[..., Any]) -> None:
        self._library = library
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def _reordered(name: str, *order: int) -> dict[str, Callable[..., Any]]:
    """The function as if its arguments stood in another order."""
    function = getattr(ggml_base(), name)
    return {name: lambda *given: function(*(given[i] for i in order))}


def _dims_reversed(context: int, qtype: int, count: int, dims: Any) -> Any:
    return ggml_base().ggml_new_tensor(context, qtype, count, (ctypes.c_int64 * 4)(*reversed(list(dims))))


def _traits_shifted(qtype: int) -> Any:
    """As if the struct had a field more at its front."""
    address = ctypes.addressof(ggml_base().ggml_get_type_traits(qtype).contents)
    return ctypes.pointer(TypeTraits.from_address(address - 8))


def _traits_of_another(qtype: int) -> Any:
    """Q5_K's blocks are read by Q4_K's function."""
    wanted, other = (ggml_base().ggml_get_type_traits(int(each)).contents for each in (qtype, Qtype.Q4_K))
    copy = TypeTraits.from_buffer_copy(wanted)
    if qtype == Qtype.Q5_K:
        copy.to_float = other.to_float
    return ctypes.pointer(copy)


def _one_bit_more(*given: Any) -> int:
    written = int(ggml_base().ggml_quantize_chunk(*given))
    ctypes.c_uint8.from_address(given[2]).value ^= 1
    return written


def _of_nothing(*given: Any) -> int:
    """Blocks of zeros, which every reader agrees on."""
    written = int(ggml_base().ggml_quantize_chunk(*given))
    if given[0] == Qtype.Q4_K:
        ctypes.memset(given[2], 0, written)
    return written


def _with_weights(*given: Any) -> int:
    """As if the importance matrix were given."""
    weights = (ctypes.c_float * 256)(*range(256))
    return int(ggml_base().ggml_quantize_chunk(*given[:6], ctypes.addressof(weights)))


def test_the_installed_library_passes() -> None:
    check_base(ggml_base())
    check_graph(ggml_base(), ggml_registry())
    check_llama(load_library())


@pytest.mark.parametrize(
    ("functions", "what"),
    [
        (_reordered("ggml_quantize_chunk", 0, 1, 2, 3, 5, 4, 6), "ggml_quantize_chunk does not make Q8_0"),
        (_reordered("ggml_mul_mat", 0, 2, 1), "ggml_tensor has its operation and sources elsewhere"),
        ({"ggml_mul_mat": lambda *given: ggml_base().ggml_add(*given)}, "ggml_tensor has its operation"),
        ({"ggml_quantize_chunk": _one_bit_more}, "ggml_quantize_chunk makes another F16"),
        ({"ggml_quantize_chunk": _with_weights}, "ggml_quantize_chunk makes another Q5_1"),
        ({"ggml_quantize_chunk": _of_nothing}, "it reads Q4_K differently"),
        ({"ggml_quantize_chunk": lambda *_: 0}, "ggml_quantize_chunk does not make F16"),
        ({"ggml_get_type_traits": _traits_shifted}, "ggml_type_traits is laid out differently"),
        ({"ggml_get_type_traits": _traits_of_another}, "it reads Q5_K differently"),
        ({"ggml_new_tensor": _dims_reversed}, "ggml_tensor is laid out differently"),
        ({"ggml_is_contiguous": lambda _: False}, "ggml_tensor is laid out differently"),
        ({"ggml_validate_row_data": lambda *_: False}, "ggml_quantize_chunk does not make F16"),
        ({"ggml_tensor_overhead": lambda: 2000}, "a ggml_tensor takes 2000 bytes"),
        ({"ggml_get_no_alloc": lambda _: False}, "ggml_init_params is laid out differently"),
        ({"ggml_get_mem_size": lambda _: 1}, "ggml_init_params is laid out differently"),
        ({"ggml_init": lambda _: None}, "ggml_init makes no context"),
        ({"gguf_init_from_buffer": lambda *_: None}, "it does not read a GGUF header"),
        ({"gguf_get_val_u32": lambda *_: 76}, "it reads a GGUF key differently"),
    ],
)
def test_another_base(functions: dict[str, Callable[..., Any]], what: str) -> None:
    with pytest.raises(MisoError) as caught:
        check_base(Fake(ggml_base(), **functions))  # type: ignore[arg-type]
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "functions",
    [
        _reordered("ggml_rope_ext_inplace", 0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11, 12),
        _reordered("ggml_rope_ext_inplace", 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 9, 11, 12),
        {"ggml_rope_ext_inplace": lambda *given: ggml_base().ggml_rope_ext_inplace(*given[:3], None, *given[4:])},
        {"ggml_rope_ext_inplace": lambda *given: ggml_base().ggml_rope_ext_inplace(*given[:5], 2, *given[6:])},
        _reordered("ggml_flash_attn_ext", 0, 1, 3, 2, 4, 5, 6, 7),
        _reordered("ggml_flash_attn_ext", 0, 1, 2, 3, 4, 7, 6, 5),
        {"ggml_flash_attn_ext": lambda *given: ggml_base().ggml_flash_attn_ext(*given[:4], None, *given[5:])},
        {"ggml_backend_tensor_get": lambda *_: None},
        {"ggml_backend_sched_graph_compute": lambda *_: 1},
    ],
    ids=["base", "magnitude", "no factors", "halves", "keys", "scale", "no mask", "nothing", "failure"],
)
def test_other_arithmetic(functions: dict[str, Callable[..., Any]]) -> None:
    with pytest.raises(MisoError, match="RoPE and attention give other numbers"):
        check_graph(Fake(ggml_base(), **functions), ggml_registry())  # type: ignore[arg-type]


def test_no_cpu() -> None:
    with pytest.raises(MisoError, match="it has no CPU to compute on"):
        check_graph(ggml_base(), Fake(ggml_registry(), ggml_backend_dev_count=lambda: 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("struct", ["llama_model_params", "llama_context_params"])
@pytest.mark.parametrize("shift", [-8, -4, -1, 1, 4, 8])
def test_other_structs_of_llama_cpp(struct: str, shift: int) -> None:
    """As if a field had come in before, or gone: what was written at one place is read at another."""
    function = struct.replace("params", "default_params")
    whole = bytes(getattr(load_library(), function)())
    moved = bytes(shift) + whole[:-shift] if shift > 0 else whole[-shift:] + bytes(-shift)
    other = getattr(load_library(), struct).from_buffer_copy(moved)
    with pytest.raises(MisoError, match=f"{struct} is laid out differently"):
        check_llama(Fake(load_library(), **{function: lambda: other}))


@pytest.mark.parametrize(
    ("struct", "field", "value"),
    [
        ("llama_model_params", "n_gpu_layers", 1 << 20),
        ("llama_model_params", "split_mode", 64),
        ("llama_model_params", "devices", 64),
        ("llama_model_params", "main_gpu", 1),
        ("llama_model_params", "vocab_only", True),
        ("llama_model_params", "check_tensors", True),
        ("llama_model_params", "use_extra_bufts", False),
        ("llama_context_params", "n_ubatch", 0),
        ("llama_context_params", "n_batch", 1 << 20),
        ("llama_context_params", "n_threads", 0),
        ("llama_context_params", "n_threads_batch", 0),
        ("llama_context_params", "n_seq_max", 0),
        ("llama_context_params", "pooling_type", 0),
        ("llama_context_params", "flash_attn_type", 64),
        ("llama_context_params", "type_k", 0),
        ("llama_context_params", "type_v", 0),
        ("llama_context_params", "embeddings", True),
        ("llama_context_params", "offload_kqv", False),
        ("llama_context_params", "kv_unified", True),
    ],
)
def test_each_field_of_llama_cpp_s_structs(struct: str, field: str, value: int) -> None:
    function = struct.replace("params", "default_params")
    params = getattr(load_library(), function)()
    setattr(params, field, value)
    with pytest.raises(MisoError, match=f"{struct} is laid out differently"):
        check_llama(Fake(load_library(), **{function: lambda: params}))


def test_another_batch() -> None:
    def with_tokens(_tokens: int, _embeddings: int, sequences: int) -> Any:
        return load_library().llama_batch_init(2, 0, sequences)

    with pytest.raises(MisoError, match="llama_batch is laid out differently"):
        check_llama(Fake(load_library(), llama_batch_init=with_tokens))


def test_the_message_is_one_line_with_versions_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "version", lambda _name: "0.3.99")
    assert str(self_test.unlike("it reads Q4_K differently")) == (
        "the installed llama-cpp-python 0.3.99 is not what this program was written for (it reads Q4_K differently); "
        "tested with 0.3.36: pip install --force-reinstall 'llama-cpp-python==0.3.36'"
    )


@pytest.mark.parametrize(
    ("module", "check", "user"),
    [
        (libraries, "check_base", ggml_base),
        (libraries, "check_graph", ggml_registry),
        (llama, "check_llama", load_library),
    ],
)
def test_first_use_is_the_test(module: Any, check: str, user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_libraries: object) -> None:
        raise MisoError("refused")

    monkeypatch.setattr(module, check, refuse)
    with pytest.raises(MisoError, match="refused"):
        inspect.unwrap(user)()
    assert user() is user()


def test_once_for_all_threads_and_again_after_a_failure() -> None:
    calls: list[int] = []

    @once
    def slow() -> int:
        calls.append(0)
        time.sleep(0.01)
        if len(calls) == 1:
            raise MisoError("the first time")
        return len(calls)

    with pytest.raises(MisoError, match="the first time"):
        slow()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(slow())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 8
    assert len(calls) == 2
