"""A server that is up while a test runs, on a port of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from starlette.types import ASGIApp

from miso_gguf.serve.server import HttpServer, Stoppable, bound

_PATIENCE_S = 60


@contextmanager
def serving(service: Stoppable, app: ASGIApp | None = None) -> Iterator[str]:
    """The address of the service's application, or of another one. It ends at once with the block."""
    listener = bound("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    started, failures = threading.Event(), list[BaseException]()
    server = HttpServer(app or _application(service), service, listener, started.set)

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


def _application(service: Stoppable) -> ASGIApp:
    made: ASGIApp = import_module("miso_gguf.serve.app").application(service)
    return made
