"""What ggml says when it ends the process, on standard error: the message and its last errors.

The reason stands in the errors that it logs just before. `logging` keeps those back: most of them become exceptions.
"""

import ctypes
import os
from collections import deque
from typing import Any

from .libraries import ggml_base, once

_STANDARD_ERROR = 2
_errors: deque[bytes] = deque(maxlen=8)


def note_error(message: bytes) -> None:
    """Keep a message that ggml logged as an error."""
    _errors.append(message)


@once
def report_aborts() -> Any:
    """Be called when ggml aborts. The callback is cached, because ctypes needs it to outlive every call."""
    base = ggml_base()

    def report(message: bytes) -> None:
        os.write(_STANDARD_ERROR, b"".join(_errors) + message + b"\n")

    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(report)
    base.ggml_set_abort_callback(callback)
    return callback
