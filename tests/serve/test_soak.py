"""Hundreds of requests, of which many hang up, talk nonsense or read slowly: nothing is lost, and nothing grows.

The engine is paced, without a pace: it says at once what is known beforehand. The client is in the same process, and is
measured with the server.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from arrivals import Asked, asked_for
from elsewhere import soon
from numpy.random import Generator
from own_memory import settled_anonymous_bytes
from paced import Pacing, paced_tts
from serving import serving
from speech_client import Client
from speech_load import is_right

from miso_gguf.runtime.audio.samples import to_pcm16
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service

STREAMS, CLIENTS = 4, 12
PACING = Pacing(frame_s=0.0, chunk_s=0.0, frames_a_row=0.3)
ASKED = [Asked(0, " ".join(each.text for each in asked_for(6)), 5), *asked_for(12)[1:]]
"""The first has several sentences."""
WARM_UP = 100
"""Requests before memory is looked at."""
_ERROR = {"message", "type", "param", "code"}
GROWTH_BYTES = 8_000_000
"""What allocators keep for themselves; one stream of the codec that is not let go is as much."""
NONSENSE: list[tuple[bytes, int]] = [
    (b"{", 400),
    (b"[" * 2000, 400),
    (b"\xff\xfe", 400),
    (b'{"model": "a", "voice": "default"}', 400),
    (b'{"model": "a", "input": "", "voice": "default"}', 400),
    (b'{"model": "a", "input": "***", "voice": "default"}', 400),
    (b'{"model": "a", "input": "b", "voice": "../../etc/passwd"}', 400),
    (b'{"model": "a", "input": "b", "voice": "default", "speed": 100}', 400),
    (b'{"model": "a", "input": "b", "voice": "default", "response_format": "exe"}', 400),
    (b'{"model": "a", "input": "' + b"b" * 5000 + b'", "voice": "default"}', 400),
]


@dataclass
class Soak:
    """Clients of one server."""

    port: int
    sounds: dict[int, bytes]
    """Of each of `ASKED`, alone."""
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def run(self, requests: int, seed: int) -> None:
        """So many requests of all kinds, from `CLIENTS` at a time."""
        asyncio.run(self._run(requests, seed))

    async def _run(self, requests: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        left = iter(range(requests))
        kinds: list[Callable[[Client, Generator], Awaitable[None]]] = [
            self._well,
            self._hang_up,
            self._nonsense,
            self._slow,
        ]

        async def client() -> None:
            speaking = Client(self.port)
            for _ in left:
                kind = kinds[rng.choice(len(kinds), p=[0.5, 0.25, 0.15, 0.1])]
                await kind(speaking, rng)
                self.counts[kind.__name__] += 1
            speaking.close()

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def _well(self, client: Client, rng: Generator) -> None:
        """All of an answer, over a connection that is kept."""
        heard = await client.speak(ASKED[rng.integers(len(ASKED))])
        if not heard.is_answered or not is_right(heard.sound, self.sounds[heard.asked.number]):
            self.faults.append(f"{heard.asked}: status {heard.status}, cut {heard.is_cut}, {len(heard.sound)} bytes")

    async def _hang_up(self, _client: Client, rng: Generator) -> None:
        """Anywhere: in the request, while it waits, after some of the sound."""
        asked = ASKED[rng.integers(len(ASKED))]
        request = _request(_body(asked))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request[: rng.integers(len(request)) if rng.random() < 0.3 else None])
        if rng.random() < 0.5:
            wanted = int(rng.integers(len(self.sounds[asked.number])))
            while wanted > 0 and (piece := await _within(reader.read(wanted))):
                wanted -= len(piece)
        if rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()

    async def _nonsense(self, _client: Client, rng: Generator) -> None:
        """It is refused in the contract's shape."""
        body, status = NONSENSE[rng.integers(len(NONSENSE))]
        head, _, content = (await self._all(body)).partition(b"\r\n\r\n")
        if f"HTTP/1.1 {status} ".encode() != head[:13] or set(json.loads(content)["error"]) != _ERROR:
            self.faults.append(f"{body[:80]!r}: {head[:40]!r}, {content[:200]!r}")

    async def _slow(self, _client: Client, rng: Generator) -> None:
        """It takes little at a time, with rests, through a small buffer."""
        asked = ASKED[rng.integers(len(ASKED))]
        raw = await self._all(_body(asked), most_bytes=4096, rest_s=0.002)
        sound, rest = b"", raw.partition(b"\r\n\r\n")[2]
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            sound, rest = sound + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        if not is_right(sound, self.sounds[asked.number]) or not raw.endswith(b"\r\n0\r\n\r\n"):
            self.faults.append(f"{asked}: slowly {len(sound)} bytes, {raw[:40]!r}")

    async def _all(self, body: bytes, most_bytes: int = 1 << 16, rest_s: float = 0.0) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=most_bytes)
        writer.write(_request(body))
        pieces: list[bytes] = []
        while piece := await reader.read(most_bytes):
            pieces.append(piece)
            await asyncio.sleep(rest_s)
        writer.close()
        return b"".join(pieces)


async def _within(piece: Awaitable[bytes]) -> bytes:
    """What comes of a request that may not be whole."""
    try:
        return await asyncio.wait_for(piece, 0.2)
    except asyncio.TimeoutError:
        return b""


def _body(asked: Asked) -> bytes:
    fields = {"model": "a", "input": asked.text, "voice": "default", "seed": asked.seed, "response_format": "pcm"}
    return json.dumps(fields).encode()


def _request(body: bytes) -> bytes:
    head = (
        "POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _alone(tts: MisoTTS, asked: Asked) -> bytes:
    with tts.stream(asked.text, options=SpeechOptions(seed=asked.seed)) as stream:
        return b"".join(to_pcm16(chunk.samples).astype("<i2").tobytes() for chunk in stream)


@pytest.fixture
def service(bundle: Path) -> Service:
    options = ServeOptions(streams=STREAMS, queue=CLIENTS)
    return Service(options, "paced", lambda: paced_tts(bundle, "q4_k_m", PACING, sequences=STREAMS))


@pytest.fixture
def soak(bundle: Path, service: Service) -> Iterator[Soak]:
    with paced_tts(bundle, "q4_k_m", PACING, sequences=1) as tts:
        sounds = {asked.number: _alone(tts, asked) for asked in ASKED}
    with serving(service) as address:
        yield Soak(int(address.rsplit(":", 1)[1]), sounds)


@pytest.mark.parametrize(
    "requests", [pytest.param(300, marks=pytest.mark.long), pytest.param(5000, marks=pytest.mark.slow)]
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_nothing_is_lost_and_nothing_grows(service: Service, soak: Soak, requests: int) -> None:
    def at_rest() -> bool:
        tts = service.model._tts
        nobody = service.turns.speaking == service.turns.waiting == 0 and not service._workers
        return nobody and tts is not None and tts.engine.batcher.running == tts.engine.batcher.waiting == 0

    soak.run(WARM_UP, seed=0)
    assert soon(at_rest)
    process, threads = psutil.Process(), threading.active_count()
    descriptors, own, resident = process.num_fds(), settled_anonymous_bytes(), process.memory_info().rss
    soak.run(requests, seed=1)
    assert soak.faults == []
    assert sum(soak.counts.values()) == WARM_UP + requests
    assert len(soak.counts) == 4
    assert soon(at_rest)
    assert soon(lambda: process.num_fds() <= descriptors)
    assert threading.active_count() <= threads
    assert settled_anonymous_bytes() - own < GROWTH_BYTES
    assert process.memory_info().rss - resident < GROWTH_BYTES
