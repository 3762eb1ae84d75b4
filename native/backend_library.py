"""ggml's backend interface as ctypes functions: devices, buffers, schedulers. It keeps no state and knows no order."""

import ctypes
from functools import lru_cache
from typing import Any

from ..core.errors import MisoError
from .libraries import bind


@lru_cache(maxsize=1)
def ggml_base() -> ctypes.CDLL:
    """What every build has."""
    p, size, i = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return bind(
        "ggml-base",
        {
            "ggml_backend_dev_name": (ctypes.c_char_p, [p]),
            "ggml_backend_dev_description": (ctypes.c_char_p, [p]),
            "ggml_backend_dev_memory": (None, [p, ctypes.POINTER(size), ctypes.POINTER(size)]),
            "ggml_backend_dev_type": (i, [p]),
            "ggml_backend_dev_init": (p, [p, ctypes.c_char_p]),
            "ggml_backend_dev_buffer_type": (p, [p]),
            "ggml_backend_dev_backend_reg": (p, [p]),
            "ggml_backend_dev_supports_op": (ctypes.c_bool, [p, p]),
            "ggml_backend_reg_get_proc_address": (p, [p, ctypes.c_char_p]),
            "ggml_backend_free": (None, [p]),
            "ggml_backend_buft_name": (ctypes.c_char_p, [p]),
            "ggml_backend_buft_alloc_buffer": (p, [p, size]),
            "ggml_backend_buffer_free": (None, [p]),
            "ggml_backend_buffer_get_base": (p, [p]),
            "ggml_backend_buffer_get_size": (size, [p]),
            "ggml_backend_buffer_clear": (None, [p, ctypes.c_uint8]),
            "ggml_backend_buffer_set_usage": (None, [p, i]),
            "ggml_backend_alloc_ctx_tensors_from_buft": (p, [p, p]),
            "ggml_backend_tensor_set": (None, [p, p, size, size]),
            "ggml_backend_tensor_get": (None, [p, p, size, size]),
            "ggml_backend_sched_new": (p, [ctypes.POINTER(p), p, i, size, ctypes.c_bool, ctypes.c_bool]),
            "ggml_backend_sched_free": (None, [p]),
            "ggml_backend_sched_alloc_graph": (ctypes.c_bool, [p, p]),
            "ggml_backend_sched_graph_compute": (i, [p, p]),
            "ggml_backend_sched_get_n_splits": (i, [p]),
            "ggml_backend_sched_get_buffer_size": (size, [p, p]),
        },
    )


@lru_cache(maxsize=1)
def ggml_registry() -> ctypes.CDLL:
    """The devices of this build, its backends loaded."""
    library = bind(
        "ggml",
        {
            "ggml_backend_load_all": (None, []),
            "ggml_backend_dev_count": (ctypes.c_size_t, []),
            "ggml_backend_dev_get": (ctypes.c_void_p, [ctypes.c_size_t]),
        },
    )
    library.ggml_backend_load_all()
    return library


def procedure(device: int, name: str, result: object, *arguments: object) -> Any:
    """A function that the backend of `device` offers by name only. Raises `MisoError` if it does not."""
    backend = ggml_base().ggml_backend_dev_backend_reg(device)
    address = ggml_base().ggml_backend_reg_get_proc_address(backend, name.encode())
    if not address:
        raise MisoError(f"{ggml_base().ggml_backend_dev_name(device).decode()} has no {name}")
    return ctypes.CFUNCTYPE(result, *arguments)(address)  # type: ignore[arg-type]
