"""What this package calls of ggml: the result and the arguments of each function, one table a library, and the structs.

Source: ggml.h, ggml-backend.h, ggml-alloc.h and gguf.h of llama.cpp. llama.h's functions are declared by
llama-cpp-python itself.
"""

import ctypes

from gguf import GGUFValueType

Signature = tuple[object, list[object]]
"""(result, arguments)."""

TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    )


EVAL_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
"""`ggml_backend_sched_eval_callback`."""


class TensorHead(ctypes.Structure):
    """The head of `struct ggml_tensor`."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
    )


class InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class GgufInitParams(ctypes.Structure):
    """`struct gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class Feature(ctypes.Structure):
    """`struct ggml_backend_feature`."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


_p, _text, _bool = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool
_i, _i64, _size, _f = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_float

_GRAPH: dict[str, Signature] = {
    "ggml_init": (_p, [InitParams]),
    "ggml_free": (None, [_p]),
    "ggml_get_mem_size": (_size, [_p]),
    "ggml_set_abort_callback": (_p, [_p]),
    "ggml_log_set": (None, [_p, _p]),
    "ggml_get_no_alloc": (_bool, [_p]),
    "ggml_tensor_overhead": (_size, []),
    "ggml_get_name": (_text, [_p]),
    "ggml_set_name": (_p, [_p, _text]),
    "ggml_graph_overhead_custom": (_size, [_size, _bool]),
    "ggml_new_graph_custom": (_p, [_p, _size, _bool]),
    "ggml_build_forward_expand": (None, [_p, _p]),
    "ggml_graph_n_nodes": (_i, [_p]),
    "ggml_new_tensor": (_p, [_p, _i, _i, ctypes.POINTER(_i64)]),
    "ggml_set_input": (None, [_p]),
    "ggml_set_output": (None, [_p]),
    "ggml_view_4d": (_p, [_p, _p, _i64, _i64, _i64, _i64, _size, _size, _size, _size]),
    "ggml_reshape_4d": (_p, [_p, _p, _i64, _i64, _i64, _i64]),
    "ggml_is_contiguous": (_bool, [_p]),
    "ggml_is_contiguous_1": (_bool, [_p]),
    "ggml_mul_mat": (_p, [_p, _p, _p]),
    "ggml_rms_norm": (_p, [_p, _p, _f]),
    "ggml_mul": (_p, [_p, _p, _p]),
    "ggml_add": (_p, [_p, _p, _p]),
    "ggml_concat": (_p, [_p, _p, _p, _i]),
    "ggml_rope_ext_inplace": (_p, [_p, _p, _p, _p, _i, _i, _i, _f, _f, _f, _f, _f, _f]),
    "ggml_swiglu": (_p, [_p, _p]),
    "ggml_swiglu_split": (_p, [_p, _p, _p]),
    "ggml_cpy": (_p, [_p, _p, _p]),
    "ggml_flash_attn_ext": (_p, [_p, _p, _p, _p, _p, _f, _f, _f]),
    "ggml_top_k": (_p, [_p, _p, _i]),
    "ggml_argsort": (_p, [_p, _p, _i]),
    "ggml_argmax": (_p, [_p, _p]),
    "ggml_get_rows": (_p, [_p, _p, _p]),
}
_TYPES: dict[str, Signature] = {
    "ggml_quantize_chunk": (_size, [_i, _p, _p, _i64, _i64, _i64, _p]),
    "ggml_validate_row_data": (_bool, [_i, _p, _size]),
    "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), [_i]),
}
_BACKEND: dict[str, Signature] = {
    "ggml_backend_dev_name": (_text, [_p]),
    "ggml_backend_dev_description": (_text, [_p]),
    "ggml_backend_dev_memory": (None, [_p, ctypes.POINTER(_size), ctypes.POINTER(_size)]),
    "ggml_backend_dev_type": (_i, [_p]),
    "ggml_backend_dev_init": (_p, [_p, _text]),
    "ggml_backend_dev_buffer_type": (_p, [_p]),
    "ggml_backend_dev_backend_reg": (_p, [_p]),
    "ggml_backend_dev_supports_op": (_bool, [_p, _p]),
    "ggml_backend_reg_get_proc_address": (_p, [_p, _text]),
    "ggml_backend_free": (None, [_p]),
    "ggml_backend_buft_name": (_text, [_p]),
    "ggml_backend_buft_alloc_buffer": (_p, [_p, _size]),
    "ggml_backend_buffer_free": (None, [_p]),
    "ggml_backend_buffer_get_base": (_p, [_p]),
    "ggml_backend_buffer_get_size": (_size, [_p]),
    "ggml_backend_buffer_clear": (None, [_p, ctypes.c_uint8]),
    "ggml_backend_buffer_set_usage": (None, [_p, _i]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_p, [_p, _p]),
    "ggml_backend_tensor_set": (None, [_p, _p, _size, _size]),
    "ggml_backend_tensor_get": (None, [_p, _p, _size, _size]),
    "ggml_backend_sched_new": (_p, [ctypes.POINTER(_p), ctypes.POINTER(_p), _i, _size, _bool, _bool]),
    "ggml_backend_sched_free": (None, [_p]),
    "ggml_backend_sched_alloc_graph": (_bool, [_p, _p]),
    "ggml_backend_sched_graph_compute": (_i, [_p, _p]),
    "ggml_backend_sched_set_eval_callback": (None, [_p, _p, _p]),
    "ggml_backend_sched_get_n_splits": (_i, [_p]),
    "ggml_backend_sched_get_buffer_size": (_size, [_p, _p]),
}

GGUF_GETTERS = {
    GGUFValueType.UINT32: "gguf_get_val_u32",
    GGUFValueType.FLOAT32: "gguf_get_val_f32",
    GGUFValueType.STRING: "gguf_get_val_str",
    GGUFValueType.BOOL: "gguf_get_val_bool",
}
"""For the types of value that our files use."""
_GGUF: dict[str, Signature] = {
    "gguf_init_from_file": (_p, [_text, GgufInitParams]),
    "gguf_init_from_buffer": (_p, [_p, _size, GgufInitParams]),
    "gguf_free": (None, [_p]),
    "gguf_get_data_offset": (_size, [_p]),
    "gguf_find_key": (_i64, [_p, _text]),
    "gguf_get_n_kv": (_i64, [_p]),
    "gguf_get_key": (_text, [_p, _i64]),
    "gguf_get_kv_type": (_i, [_p, _i64]),
    "gguf_get_val_u32": (ctypes.c_uint32, [_p, _i64]),
    "gguf_get_val_f32": (_f, [_p, _i64]),
    "gguf_get_val_str": (_text, [_p, _i64]),
    "gguf_get_val_bool": (_bool, [_p, _i64]),
    "gguf_get_arr_type": (_i, [_p, _i64]),
    "gguf_get_arr_n": (_size, [_p, _i64]),
    "gguf_get_arr_str": (_text, [_p, _i64, _size]),
    "gguf_get_arr_data": (_p, [_p, _i64]),
    "gguf_get_n_tensors": (_i64, [_p]),
    "gguf_get_tensor_name": (_text, [_p, _i64]),
    "gguf_get_tensor_ne": (ctypes.POINTER(_i64), [_p, _i64]),
    "gguf_get_tensor_type": (_i, [_p, _i64]),
    "gguf_get_tensor_offset": (_size, [_p, _i64]),
}

GGML_BASE: dict[str, Signature] = {**_TYPES, **_GRAPH, **_BACKEND, **_GGUF}
"""libggml-base: what every build has."""

GGML: dict[str, Signature] = {
    "ggml_backend_load_all": (None, []),
    "ggml_backend_dev_count": (_size, []),
    "ggml_backend_dev_get": (_p, [_size]),
}
"""libggml: the registry of devices."""

PROCEDURES: dict[str, Signature] = {
    "ggml_backend_dev_get_extra_bufts": (ctypes.POINTER(_p), [_p]),
    "ggml_backend_set_n_threads": (None, [_p, _i]),
    "ggml_backend_get_features": (ctypes.POINTER(Feature), [_p]),
}
"""What a backend offers by name only."""
