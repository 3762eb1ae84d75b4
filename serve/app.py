"""The application: all endpoints of a service, and the guard before them."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from ..version import __version__
from .endpoints import speech, status, voices
from .errors import install_handlers
from .security import guarded
from .service import Service


def api(service: Service) -> FastAPI:
    """The endpoints alone."""
    app = FastAPI(title="miso-serve", version=__version__, docs_url=None, redoc_url=None)
    install_handlers(app)
    for endpoints in (speech, voices, status):
        app.include_router(endpoints.routes(service))
    return app


def application(service: Service) -> ASGIApp:
    """What is served."""
    return guarded(api(service), service.options, service.metrics.answered)
