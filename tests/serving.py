"""A server that is up while a test runs, on a port of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from miso_gguf.serve.app import application
from miso_gguf.serve.server import HttpServer, Stoppable, bound
from miso_gguf.serve.service import Service

_PATIENCE_S = 60


@contextmanager
def serving(service: Service | Stoppable, app: ASGIApp | None = None) -> Iterator[str]:
    """The address of the service's application, or of another one. It ends at once with the block."""
    if app is None:
        assert isinstance(service, Service)
        app = application(service)
    listener = bound("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    started, failures = threading.Event(), list[BaseException]()
    server = HttpServer(app, service, listener, started.set)

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    try:
        assert started.wait(_PATIENCE_S), "the server does not start"
        assert not failures, failures
        yield address
    finally:
        server.stop()
        server.stop()
        thread.join(_PATIENCE_S)
    assert not thread.is_alive(), "the server does not stop"
    assert not failures, failures
