"""The id of a request: its answer has it, and the log where it says what came of the request."""

import re
import uuid
from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("miso_request_id", default="-")
"""Of the request that this task answers."""
HEADER = "X-Request-Id"
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(given: str | None) -> str:
    """The client's own, if it can be written anywhere; else a new one."""
    return given if given and _HARMLESS.fullmatch(given) else f"req_{uuid.uuid4().hex}"
