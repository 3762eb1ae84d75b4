"""The server on its port: uvicorn, in one process and one event loop, and how it stops.

Asked to stop, it still answers: what is spoken and what waits goes on for a while, who is new is sent away. What is
asked for and how it is answered it does not know.
"""

import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from ..core.interrupts import asked
from ..core.note import NOTE
from .app import application
from .connection import protocol
from .options import ServeOptions
from .service import Service

log = logging.getLogger(__name__)

_TICK_S = 0.05
_BACKLOG = 64
"""Connections that may wait to be accepted. All are at once, before the first of them is found to be too many."""
_OTHER_DESCRIPTORS = 256
"""Beside those of connections: of such that are being accepted or closed, of children that read clips, of files."""
_KEEP_ALIVE_S = 5
"""For the next request of a connection. Source of the value: uvicorn's default."""
_CLOSING_S = 2
"""For clients to take what was cut, when all else is over."""


class Stoppable(Protocol):
    """What a server must know of a service."""

    @property
    def options(self) -> ServeOptions:
        """Where to serve, and with which limits."""

    def begin_stop(self) -> None:
        """Send away who is new; who speaks or waits goes on."""

    async def cut(self) -> None:
        """End what is still spoken, and what waits."""

    async def close(self) -> None:
        """Free everything."""


def run_server(
    service: Service, listener: socket.socket, started: Callable[[], None], give_up: Callable[[], None]
) -> None:
    """Load the model, and serve until something asks this process to end; it then stops gracefully.

    `started` is called when clients are let in; `give_up` when it is asked again while the model is loaded, at start
    or on demand, for no thread that loads can be stopped: it ends the process. Raises `MisoError` if the model cannot
    be loaded, `OSError` if the port cannot be opened.
    """
    server = HttpServer(application(service), service, listener, started)

    def stop() -> None:
        is_again = server.is_asked
        server.stop()
        if service.model.is_loading:
            if is_again:
                give_up()
            else:
                log.warning("stopping when the model is loaded; once more ends at once", extra=NOTE)

    with asked(stop):
        asyncio.run(_loaded_first(service, server))


async def _loaded_first(service: Service, server: "HttpServer") -> None:
    try:
        async with service.model.use():
            pass
        await server.serve()
    finally:
        await service.close()


class HttpServer:
    """One application on one port, until it is asked to stop."""

    def __init__(
        self, application: ASGIApp, service: Stoppable, listener: socket.socket, started: Callable[[], None]
    ) -> None:
        """`listener` is of `bound`; `started` is called as soon as clients are let in."""
        self._service, self._listener = service, listener
        config = uvicorn.Config(
            application,
            http=protocol(within_descriptors(service.options)),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            # Responses that break off are errors for it, each with a traceback.
            log_level=None if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSING_S,
        )
        self._server = _Uvicorn(config, started)
        self._asked = 0

    @property
    def is_asked(self) -> bool:
        """Whether it is to stop."""
        return self._asked > 0

    def run(self) -> None:
        """Serve until it has stopped; the service is closed then. Raises `OSError` if the port cannot be opened."""
        asyncio.run(self.serve())

    def stop(self) -> None:
        """Ask it to stop, from any thread or signal handler: gracefully, and at once if it was asked before."""
        self._asked += 1
        self._server.force_exit = self._asked > 1

    async def serve(self) -> None:
        """As `run`, in an event loop."""
        server, service = self._server, self._service
        if self._asked:  # while the model was loaded
            await service.close()
            return
        serving = asyncio.create_task(server.serve([self._listener]))
        try:
            await _until(lambda: self.is_asked or serving.done())
            service.begin_stop()
            await _until(lambda: self._asked > 1 or not server.server_state.tasks, service.options.grace_s)
            await service.cut()
            server.should_exit = True
            await serving
        finally:
            await service.close()


async def _until(is_true: Callable[[], bool], longest_s: float = float("inf")) -> None:
    """Looks now and then, as uvicorn does, because signal handlers and other threads may be what makes it true."""
    now = asyncio.get_running_loop().time
    end = now() + longest_s
    while not is_true() and now() < end:
        await asyncio.sleep(_TICK_S)


class _Uvicorn(uvicorn.Server):
    """Without its signal handlers, which would raise the signals anew when all is over."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def within_descriptors(options: ServeOptions) -> ServeOptions:
    """With as many connections as this process may have files open, which it may from now on if it has the right.

    Systems begin with 256 or 1024, and asyncio writes thousands of lines when they are used up. Windows counts none.
    """
    if sys.platform == "win32":
        return options
    import resource  # noqa: PLC0415

    wanted = options.most_connections + _OTHER_DESCRIPTORS
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now == resource.RLIM_INFINITY or now >= wanted:
        return options
    may = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (may, most))
    if may == wanted:
        return options
    connections = max(1, may - _OTHER_DESCRIPTORS)
    log.warning("%d connections, not %d: only %d files may be open", connections, options.most_connections, may)
    return replace(options, most_connections=connections)


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the port, and lets nobody in yet. Raises `OSError`, in words, if it cannot be had."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(f"{host} is no address of this machine: {error.strerror}. Choose another --host.") from error
    listener = socket.socket(family, kind, number)
    try:
        if os.name == "posix":  # elsewhere it would mean to share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        other = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise OSError(f"{host}:{port} cannot be had: {error.strerror}. Choose another {other}.") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Where clients find it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
