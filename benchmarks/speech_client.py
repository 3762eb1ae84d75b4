"""A client of the speech endpoint that costs little: it shares the CPU with the server that it measures.

HTTP/1.1 by hand, on one connection after the other; it knows of it what our server says, and no more.
"""

import asyncio
import json
import time
from typing import Any

from arrivals import Asked, Heard

_HOST = "127.0.0.1"
_SAMPLE_BYTES = 2


class Client:
    """One user: a request at a time, over a connection that is kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def speak(self, asked: Asked, **fields: Any) -> Heard:
        """Ask for PCM, and note when what came. `fields` are of the request, beside text and seed."""
        body = {"model": "miso", "voice": "default", "input": asked.text, "seed": asked.seed, "response_format": "pcm"}
        content = json.dumps(body | fields).encode()
        head = (
            f"POST /v1/audio/speech HTTP/1.1\r\nHost: {_HOST}:{self._port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        reader, writer = await self._connected()
        heard, pieces = Heard(asked, time.perf_counter()), list[bytes]()
        writer.write(head.encode() + content)
        try:
            heard.status, headers = await _head(reader)
            if headers.get("transfer-encoding") == "chunked":
                while piece := await _chunk(reader):
                    heard.came(len(piece) // _SAMPLE_BYTES)
                    pieces.append(piece)
            else:
                pieces.append(await reader.readexactly(int(headers["content-length"])))
                heard.came(len(pieces[0]) // _SAMPLE_BYTES)
        except (asyncio.IncompleteReadError, ConnectionError):
            heard.is_cut, headers = True, {"connection": "close"}
        if headers.get("connection", "").lower() == "close":
            self.close()
        heard.sound = b"".join(pieces)
        return heard

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._connection is None or self._connection[0].at_eof():
            self.close()
            self._connection = await asyncio.open_connection(_HOST, self._port)
        return self._connection


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if line)
    return int(status.split()[1]), {name.lower(): value.strip() for name, value in pairs}


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """The next one; empty at the end."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:size]
