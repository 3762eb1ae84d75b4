"""The id of a request: its answer has it, and every line of the log that is about it."""

import logging
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


class NamesRequest(logging.Filter):
    """For a handler of the log: its format may say `%(request_id)s`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id."""
        record.request_id = REQUEST_ID.get()
        return True
