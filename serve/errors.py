"""What went wrong, as clients of OpenAI's API expect it: `{"error": {"message", "type", "param", "code"}}`.

Nobody outside sees where in the code something failed; the log does.
"""

import logging
from dataclasses import dataclass, field

from starlette.responses import JSONResponse

from ..core.errors import Busy, MisoError

log = logging.getLogger(__name__)

INVALID, AUTHENTICATION, PERMISSION, NOT_FOUND = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
)
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"
_KINDS = {401: AUTHENTICATION, 403: PERMISSION, 404: NOT_FOUND, 429: RATE_LIMIT}


@dataclass
class ApiError(Exception):
    """An answer that is an error. `type` follows from `status`."""

    status: int
    message: str
    param: str | None = None
    """The field of the request that it is about."""
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The kind, in the contract's words."""
        return _KINDS.get(self.status, SERVER if self.status >= 500 else INVALID)

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The contract's shape. What is no text (half of a surrogate pair) is shown as a question mark."""
        message = self.message.encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body, self.status, self.headers)


def as_api_error(error: BaseException) -> ApiError:
    """Any error as an answer; what nobody expected goes to the log, and its answer says nothing of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, "too many requests wait already: try again later", code="server_busy")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    if isinstance(error, MisoError | MemoryError):
        log.error("%s", error)
        return ApiError(503, "the model cannot speak at present; the server's log says why", code="model_unavailable")
    log.error("internal error", exc_info=error)
    return ApiError(500, "internal error; the server's log says more", code="internal_error")
