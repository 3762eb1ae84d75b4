"""All that is declared of ggml and llama.cpp, against the headers that llama-cpp-python installs."""

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest
from c_headers import Headers, ctypes_function, ctypes_word

import miso_gguf.native
from miso_gguf.native.llama import load_library
from miso_gguf.native.signatures import (
    GGML,
    GGML_BASE,
    GGUF_GETTERS,
    PROCEDURES,
    Feature,
    GgufInitParams,
    InitParams,
    TensorHead,
    TypeTraits,
)

NATIVE = Path(miso_gguf.native.__file__).parent
NAMES = {InitParams: "ggml_init_params", GgufInitParams: "gguf_init_params"}


@pytest.fixture(scope="module")
def headers() -> Headers:
    return Headers("ggml.h", "ggml-backend.h", "ggml-alloc.h", "gguf.h", "llama.h")


def _sized(word: str, sizes: dict[str, str]) -> str:
    for name, size in sizes.items():
        word = word.replace(name, size)
    return word


def _as_in_c(kind: Any) -> str:
    return NAMES[kind] if kind in NAMES else ctypes_word(kind)


@pytest.mark.parametrize("name", [*GGML_BASE, *GGML])
def test_functions(name: str, headers: Headers) -> None:
    result, arguments = {**GGML_BASE, **GGML}[name]
    assert (_as_in_c(result), [_as_in_c(argument) for argument in arguments]) == headers.function(name)


@pytest.mark.parametrize("name", PROCEDURES)
def test_functions_of_backends(name: str, headers: Headers) -> None:
    result, arguments = PROCEDURES[name]
    assert ctypes_function(result, arguments) == headers.function_type(f"{name}_t")


@pytest.mark.parametrize(
    ("ours", "name"),
    [(TypeTraits, "ggml_type_traits"), (TensorHead, "ggml_tensor"), (Feature, "ggml_backend_feature"), *NAMES.items()],
    ids=str,
)
def test_structs(ours: type[ctypes.Structure], name: str, headers: Headers) -> None:
    found = headers.struct(name)
    fields = [(field[0], ctypes_word(field[1])) for field in ours._fields_]
    if ours is TensorHead:
        sizes = {"GGML_MAX_DIMS": "4", "GGML_MAX_OP_PARAMS / sizeof(int32_t)": "16", "GGML_MAX_SRC": "10"}
        found = [(field, _sized(word, sizes)) for field, word in found[: len(fields)]]
    assert fields == found


def test_a_getter_returns_what_its_type_says() -> None:
    words = {"UINT32": "u32", "FLOAT32": "f32", "STRING": "char*", "BOOL": "bool"}
    assert {kind.name: ctypes_word(GGML_BASE[name][0]) for kind, name in GGUF_GETTERS.items()} == words


def test_every_function_that_is_called_is_declared() -> None:
    called = set()
    for path in NATIVE.glob("*.py"):
        called |= set(re.findall(r"\.((?:ggml|gguf)_\w+)\(", path.read_text("utf-8")))
    called -= {"ggml_base", "ggml_registry"}
    assert len(called) > 50
    assert called | set(GGUF_GETTERS.values()) == {*GGML_BASE, *GGML}


LLAMA = sorted(
    {
        name
        for path in (NATIVE.parent / folder for folder in ("native", "runtime", "convert", "quant_eval"))
        for file in path.rglob("*.py")
        for name in re.findall(r"(?:lib|library)\.(llama_\w+)\(", file.read_text("utf-8"))
    }
    - {"llama_log_callback"}
)


@pytest.mark.parametrize("name", LLAMA)
def test_llama_cpp_python_declares_what_we_call_of_llama_cpp(name: str, headers: Headers) -> None:
    function = getattr(load_library(), name)
    result, arguments = headers.function(name)
    # A text may be declared as any pointer.
    found = [word.replace("char*", "pointer") for word in ctypes_function(function.restype, function.argtypes)[1]]
    assert ctypes_word(function.restype) == result
    assert found == [word.replace("char*", "pointer") for word in arguments]


def test_there_are_functions_of_llama_cpp() -> None:
    assert {"llama_decode", "llama_tokenize", "llama_model_load_from_file", "llama_batch_init"} <= set(LLAMA)


@pytest.mark.parametrize("name", ["llama_model_params", "llama_context_params", "llama_batch"])
def test_structs_of_llama_cpp(name: str, headers: Headers) -> None:
    fields = [(field[0], ctypes_word(field[1])) for field in getattr(load_library(), name)._fields_]
    assert fields == headers.struct(name)


def test_the_parser_sees_a_difference(headers: Headers) -> None:
    assert headers.function("ggml_top_k") != ctypes_function(ctypes.c_void_p, [ctypes.c_void_p] * 3)
    assert headers.function("ggml_rope_ext_inplace")[1].count("f32") == 6
    assert headers.function("ggml_backend_load_all") == ("void", [])
    assert headers.struct("ggml_init_params")[-1] == ("no_alloc", "bool")
