"""What the server is, and how it does: `/v1/models`, `/health`, `/ready`, `/metrics`."""

import time
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from ...version import __version__
from ..errors import ApiError
from ..service import Service


def routes(service: Service) -> APIRouter:
    """The endpoints of one server."""
    router = APIRouter()
    model = {"id": service.model.name, "object": "model", "created": int(time.time()), "owned_by": "miso-gguf"}

    @router.get("/v1/models", summary="List the model")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name}", summary="The model", responses={404: {"description": "There is no such model."}})
    async def one_model(name: str) -> dict[str, Any]:
        if name != service.model.name:
            raise ApiError(404, f"there is one model: {service.model.name!r}", param="model", code="model_not_found")
        return model

    @router.get("/health", summary="Whether the server answers")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": __version__,
            "model": service.model.name,
            "loaded": service.model.is_loaded,
            "streams": service.turns.streams,
            "speaking": service.turns.speaking,
            "waiting": service.turns.waiting,
        }

    @router.get("/ready", summary="Whether it takes requests to speak", responses={503: {"description": "It stops."}})
    async def ready() -> Response:
        status = "stopping" if service.is_stopping else "ready"
        return JSONResponse({"status": status}, 503 if service.is_stopping else 200)

    @router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
