"""Clips of strangers as samples. Their bytes are read in a process of its own (`child.py`), never in the server's."""

import asyncio
import base64
import binascii
import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples
from ...runtime.voice import MAX_VOICE_SECONDS
from ..errors import ApiError
from .child import REFUSED

log = logging.getLogger(__name__)

WALL_S = 30.0
"""For one clip, of which it takes 1 s on a machine that is idle."""

_MOST_BYTES = int(MAX_VOICE_SECONDS * SAMPLE_RATE_HZ) * 4
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE | re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,20}:", re.IGNORECASE | re.ASCII)


def clip_bytes(value: str, most_bytes: int, param: str = "ref_audio") -> bytes:
    """The clip in a text: base64, or a data: URL of it. Nothing is fetched and no file is opened.

    Raises `ApiError` that is about `param`.
    """
    expected = f"{param} is a clip in base64, or as data:audio/wav;base64,..."
    text = value.strip()
    if url := _DATA_URL.match(text):
        text = text[url.end() :]
    elif _SCHEME.match(text):
        raise ApiError(400, f"{expected}; other URLs are not fetched", param=param)
    if len(text) > -(-most_bytes // 3) * 4:
        raise ApiError(413, f"{param} has more than {most_bytes} bytes: send a clip of 5 to 15 s", param=param)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ApiError(400, f"{expected}; this is neither, and paths are not read", param=param) from None
    if not data:
        raise ApiError(400, f"{expected}; this is empty", param=param)
    return data


async def read_clip(data: bytes, param: str = "ref_audio") -> Samples:
    """The samples of a clip, float32 [n], 24 kHz mono, 0.3 to 30 s; ended with all that it started when cancelled.

    Raises `ApiError` that is about `param`, the client's name of the clip.
    """
    returncode, answer = await _run(data, param)
    if returncode == REFUSED:
        raise ApiError(400, f"{param}: {answer.decode(errors='replace')}", param=param)
    if returncode or len(answer) % 4:
        log.warning("a clip of %d bytes could not be read: its process ended with %d", len(data), returncode)
        raise ApiError(400, f"{param}: not audio that can be read (damaged). Record or export it again.", param=param)
    return np.frombuffer(answer, "<f4").astype(np.float32)


async def _run(data: bytes, param: str) -> tuple[int, bytes]:
    """How the process ended, and what it wrote. Whatever happens, it is gone then."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{__package__}.child", f"{MAX_VOICE_SECONDS:g}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_environment(),
    )
    try:
        return await asyncio.wait_for(_talk(process, data), WALL_S)
    except asyncio.TimeoutError:
        raise ApiError(400, f"{param}: it takes too long to read. Send a plain WAV.", param=param) from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _talk(process: asyncio.subprocess.Process, data: bytes) -> tuple[int, bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # its end says more
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
    answer = bytearray()
    while len(answer) <= _MOST_BYTES and (block := await process.stdout.read(1 << 16)):
        answer += block
    return (1 if len(answer) > _MOST_BYTES else await process.wait()), bytes(answer)


def _environment() -> dict[str, str]:
    """Nothing of the server's own, which has its key, but where modules are. One thread is enough for a clip."""
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    windows = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **windows}
