"""What ggml and llama.cpp say: to `logging`, and on standard error when they end the process.

The reason for an end stands in the errors that they log just before. `logging` keeps those back: most of them become
exceptions.
"""

import ctypes
import logging
import os
from collections import deque
from typing import Any

from ..core.interrupts import unheard

TRACE = 5
"""Level of `logging` for ggml's own debugging: lines about every graph. Only who asks for this level gets them."""
_LOG_LEVEL_DEBUG, _LOG_LEVEL_ERROR = 1, 4  # Source: ggml.h.
_STANDARD_ERROR = 2

log = logging.getLogger(__name__)
_errors: deque[bytes] = deque(maxlen=8)


@unheard
def _forward(level: int, message: bytes, _data: object) -> None:
    if level == _LOG_LEVEL_ERROR:
        _errors.append(message)
    importance = TRACE if level == _LOG_LEVEL_DEBUG else logging.DEBUG
    if log.isEnabledFor(importance):
        log.log(importance, "%s", message.decode("utf-8", "replace").rstrip())


def _report(message: bytes) -> None:
    os.write(_STANDARD_ERROR, b"".join(_errors) + message + b"\n")


# Of the module, because ctypes needs them to outlive every call.
_LOG_CALLBACK: Any = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_forward)
_ABORT_CALLBACK: Any = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_report)


def listen(base: ctypes.CDLL) -> None:
    """Be called by ggml when it logs and when it aborts."""
    base.ggml_log_set(_LOG_CALLBACK, None)
    base.ggml_set_abort_callback(_ABORT_CALLBACK)


def listen_to_llama(library: Any) -> None:
    """The same for what llama.cpp logs; ggml, once open, must be so before."""
    library.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
