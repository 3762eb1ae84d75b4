"""A line of the log for each answer that is an error: what was asked, and which it is. Nothing that was sent is in it.

Whoever is refused costs little, so there are no more than some lines a minute: strangers do not fill a disk.
"""

import json
import logging
import time

from starlette.types import Scope

from ..core.printable import printable
from .request_id import REQUEST_ID

log = logging.getLogger(__name__)

MOST_LINES = 60
"""A minute, of one server: 20 MB a day at most."""
_MINUTE_S = 60.0
_MOST_CHARACTERS = 100
"""Of method and path."""


class RefusalLog:
    """The lines of one server."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._count = 0

    def tell(self, scope: Scope, status: int, body: bytes) -> None:
        """That a request was answered so."""
        if (now := time.monotonic()) - self._since >= _MINUTE_S:
            if self._count > MOST_LINES:
                log.info("%d more requests were refused", self._count - MOST_LINES)
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= MOST_LINES:
            asked = printable(f"{scope['method']} {scope['path']}"[:_MOST_CHARACTERS])
            log.info("%s: %s: %d %s", REQUEST_ID.get(), asked, status, _code(body))


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"] or "")
    except (ValueError, LookupError, TypeError):
        return ""
