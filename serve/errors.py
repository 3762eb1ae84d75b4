"""What went wrong, as clients of OpenAI's API expect it: `{"error": {"message", "type", "param", "code"}}`.

Nobody outside sees where in the code something failed; the log does.
"""

import errno
import logging
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match

from ..core.errors import Busy, MisoError
from .request_id import REQUEST_ID

log = logging.getLogger(__name__)

ABORT = "miso.abort"
"""Extension of the scope: a function that hangs up without a last chunk, so that a client knows that it is cut."""

INVALID, AUTHENTICATION, PERMISSION, NOT_FOUND = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
)
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"
_MOST_CHARACTERS = 300
"""Of a message or a field's name, which may be the client's own."""
_SCARCE = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What a system says when it has no more files, processes or memory to give."""
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
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
        param = None if self.param is None else _brief(self.param)
        return {"error": {"message": _brief(self.message), "type": self.type, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body, self.status, self.headers)


def stopping() -> ApiError:
    """For who is new when the server stops, and who has no answer yet when its time is over.

    A new one each time: an error that is raised holds all that it came through.
    """
    return ApiError(503, "the server stops: try again later", code="server_stopping", headers={"Retry-After": "5"})


def as_api_error(error: BaseException) -> ApiError:
    """Any error as an answer; what nobody expected goes to the log, and its answer says nothing of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, "too many requests wait already: try again later", code="server_busy")
    if isinstance(error, MisoError | MemoryError):
        log.error("%s: %s", REQUEST_ID.get(), error)
        return ApiError(503, "the model cannot speak at present; the server's log says why", code="model_unavailable")
    if isinstance(error, OSError) and error.errno in _SCARCE:
        log.error("%s: refused for want of resources: %s", REQUEST_ID.get(), error.strerror)
        message = "the server's machine has no room for it at present: try again later"
        return ApiError(503, message, code="server_busy", headers={"Retry-After": "2"})
    log.error("%s: internal error", REQUEST_ID.get(), exc_info=error)
    return ApiError(500, "internal error; the server's log says more", code="internal_error")


def install_handlers(app: FastAPI) -> None:
    """Answer every error of an application in the contract's shape."""
    for kind, handler in (
        (HTTPException, _of_framework),
        (RequestValidationError, _of_validation),
        (ApiError, _of_ours),
        (Exception, _of_ours),
    ):
        app.add_exception_handler(kind, handler)


async def _of_ours(_: Request, error: Exception) -> JSONResponse:
    return as_api_error(error).response()


async def _of_framework(request: Request, error: Any) -> JSONResponse:
    message, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == 404:
        message = "nothing is at this path: GET /openapi.json lists what there is; a client's base URL ends in /v1"
    elif error.status_code == 405:
        allowed = headers["Allow"] = ", ".join(_methods(request))
        message = f"{request.method} is nothing for this path, which takes {allowed}"
    return ApiError(error.status_code, message, headers=headers).response()


def _methods(request: Request) -> list[str]:
    """That a path takes; the framework names those of its first route alone."""
    asked = {"type": "http", "path": request.scope["path"], "root_path": request.scope.get("root_path", "")}

    def is_taken(method: str) -> bool:
        return any(route.matches({**asked, "method": method})[0] is Match.FULL for route in request.app.routes)

    return [*filter(is_taken, _METHODS)]


async def _of_validation(_: Request, error: Any) -> JSONResponse:
    """The first fault, by its field. It never says what was in it."""
    fault = error.errors()[0]
    # A place begins with where the field is, body, path or query; in a body that is no JSON, a number follows.
    param = ".".join(part for part in fault["loc"][1:] if isinstance(part, str)) or None
    message = fault["msg"] if param is None else f"{_brief(param)}: {fault['msg']}"
    return ApiError(400, message, param, fault["type"]).response()


def _brief(text: str) -> str:
    return text[:_MOST_CHARACTERS].encode("utf-8", "replace").decode()
