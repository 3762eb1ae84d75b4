"""A command that serves without a model, for tests of how a server ends: `stub_command.py GRACE_S`.

`/held` answers "a", and "b" when somebody has asked for `/go`; `/stopping` says whether the server is.
"""

import asyncio
import sys
from typing import Any

import click
from starlette.types import Receive, Scope, Send

from miso_gguf.console import run
from miso_gguf.serve import server
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service


class Model:
    def close(self) -> None:
        print("closed", flush=True)


@click.command()
@click.argument("grace_s", type=float)
def stub(grace_s: float) -> None:
    model: Any = Model()
    service, gate = Service(ServeOptions(port=0, grace_s=grace_s), "stub", lambda: model), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/go":
            gate.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        first = str(service.is_stopping) if path == "/stopping" else "a"
        await send({"type": "http.response.body", "body": first.encode(), "more_body": path == "/held"})
        if path == "/held":
            await gate.wait()
            await send({"type": "http.response.body", "body": b"b"})

    vars(server)["application"] = lambda _: app
    listener = server.bound("127.0.0.1", 0)
    server.run_server(service, listener, lambda: print(server.address_of(listener), flush=True), lambda: None)


if __name__ == "__main__":
    sys.exit(run(stub, sys.argv[1:], "stub"))
