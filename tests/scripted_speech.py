"""A model that says what a test wants, chunk by chunk, for tests of the server: no engine and no codec."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from elsewhere import PATIENCE_S
from serving import serving

from miso_gguf.core.closing import Closing
from miso_gguf.runtime.speech import Chunk, Speech, SpokenSentence
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service

FRAME = 1920
"""Samples."""


class ScriptedStream(Closing):
    """Chunks of one frame each, the first of value 1/1000, the second of 2/1000, ..."""

    def __init__(self, frames: int, step: Callable[[int], None]) -> None:
        self.speech = Speech(0)
        self._frames, self._step = frames, step
        self.stopped = threading.Event()
        self.made = 0

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self.made == self._frames or self.stopped.is_set():
            raise StopIteration
        self._step(self.made)
        if self.stopped.is_set():
            raise StopIteration
        self.made += 1
        return Chunk(np.full(FRAME, self.made / 1000, np.float32), 0.0, 0, 0.0)

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        self.stop()
        if self.made and not self.speech.sentences:  # as of a sentence that was left half-way
            codes = np.ones((self.made, 2), np.int64)
            self.speech.sentences.append(SpokenSentence("", codes, "closed", 1, 1, 0))


class ScriptedTTS:
    """Says `frames` frames to every text; `step(n)` is called before frame n of each, and may wait or raise."""

    def __init__(self, frames: int = 5, step: Callable[[int], None] = lambda _: None) -> None:
        self.frames, self._step = frames, step
        self.streams: list[ScriptedStream] = []
        self.closed = 0
        self.level = SimpleNamespace(manifest=SimpleNamespace(fingerprint="scripted"), key="scripted")
        block: list[int] = [0]
        self.engine = SimpleNamespace(prompts=SimpleNamespace(text=lambda *_: block), spec=SimpleNamespace())

    def stream(self, text: str, **_: Any) -> ScriptedStream:
        if text == "nothing":
            raise ValueError("nothing to say")
        self.streams.append(ScriptedStream(0 if text == "silent" else self.frames, self._step))
        return self.streams[-1]

    def close(self) -> None:
        self.closed += 1

    @property
    def as_tts(self) -> MisoTTS:
        return cast(MisoTTS, self)


class Steps:
    """Lets the first frame of each stream be made, and so many of all streams together."""

    def __init__(self, count: int = 0) -> None:
        self._semaphore = threading.Semaphore(count)

    def __call__(self, number: int) -> None:
        assert not number or self._semaphore.acquire(timeout=PATIENCE_S), "nobody lets it go on"

    def allow(self, count: int) -> None:
        self._semaphore.release(count)


def pcm(first: int, last: int) -> bytes:
    """Of frames `first` to `last` of a stream."""
    values = np.minimum(np.array([number / 1000 for number in range(first, last + 1)], np.float32), 1)
    return np.repeat(np.rint(values * np.float32(32767)).astype("<i2"), FRAME).tobytes()


@contextmanager
def scripted_server(tts: ScriptedTTS, **options: Any) -> Iterator[tuple[Service, str]]:
    """A server of it, and its address."""
    service = Service(ServeOptions(**options), "scripted", lambda: tts.as_tts)
    with serving(service) as address:
        yield service, address
