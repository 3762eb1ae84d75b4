"""Eight who are spoken to together: nobody hears anything of another, to the last code and sample."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from arrivals import Asked, Heard
from numpy.typing import NDArray
from serving import serving
from speaking import load_tts, random_codes
from speech_client import Client
from speech_load import is_right

from miso_gguf.runtime.audio.samples import to_pcm16
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.synthesis.stream import SpeechStream
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.runtime.voice import Voice
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service

VOICES = {
    name: Voice(random_codes(9 + speaker, speaker), "hello there", speaker, name)
    for speaker, name in enumerate(("first", "second"))
}
MOST_S = 0.8
"""Of a sentence: this model finds no end."""
ASKED = [
    (Asked(0, "No.", 0), "default"),
    (Asked(1, "No.", 1), "default"),
    (Asked(2, "No.", 1), "first"),
    (Asked(3, "No.", 1), "second"),
    (Asked(4, "It was.", 7), "second"),
    (Asked(5, "Hello there. This is very good.", 1 << 63), "default"),
    (Asked(6, "Who?", 2), "first"),
    (Asked(7, "Why not?", 2), "second"),
]


@dataclass
class Seen:
    """What the server's model was asked for."""

    streams: list[SpeechStream] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    """Rows of each step of the backbone."""

    def watch(self, tts: MisoTTS) -> MisoTTS:
        begin, step = tts.stream, tts.engine.step

        def watched_stream(*args: Any, options: SpeechOptions, **how: Any) -> SpeechStream:
            self.streams.append(begin(*args, options=replace(options, max_seconds=MOST_S), **how))
            return self.streams[-1]

        def watched_step(sequences: Sequence[int], codes: Any) -> Any:
            self.widths.append(len(sequences))
            return step(sequences, codes)

        mock.patch.multiple(tts, stream=watched_stream).start()
        mock.patch.multiple(tts.engine, step=watched_step).start()
        return tts


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def port(bundle: Path, tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> Iterator[int]:
    def load() -> MisoTTS:
        return seen.watch(load_tts(bundle, exact=True, sequences=len(ASKED)))

    options = ServeOptions(streams=len(ASKED), voices=tmp_path_factory.mktemp("voices"))
    service = Service(options, "tiny", load)
    for voice in VOICES.values():
        service.voices.add(voice)
    with serving(service) as address:
        yield int(address.rsplit(":", 1)[1])


def alone(tts: MisoTTS, asked: Asked, voice: str) -> tuple[NDArray[np.int64], bytes]:
    """Codes and PCM of a request in the library, with nothing beside it."""
    options = SpeechOptions(seed=asked.seed, max_seconds=MOST_S)
    with tts.stream(asked.text, voice=VOICES.get(voice), options=options) as stream:
        sound = b"".join(to_pcm16(chunk.samples).astype("<i2").tobytes() for chunk in stream)
    return stream.speech.codes, sound


def test_each_hears_what_it_would_hear_alone(bundle: Path, port: int, seen: Seen) -> None:
    async def speak(asked: Asked, voice: str) -> Heard:
        client = Client(port)
        try:
            return await client.speak(asked, voice=voice)
        finally:
            client.close()

    async def together() -> list[Heard]:
        return await asyncio.gather(*(speak(*each) for each in ASKED))

    heard = asyncio.run(together())
    with load_tts(bundle, exact=True) as tts:
        expected = [alone(tts, *each) for each in ASKED]
    assert all(answer.is_answered for answer in heard)
    assert {stream.speech.codes.tobytes() for stream in seen.streams} == {codes.tobytes() for codes, _ in expected}
    assert max(seen.widths) > len(ASKED) / 2
    assert len(seen.streams) == len({sound for _, sound in expected}) == len(ASKED)
    for answer, (_, sound) in zip(heard, expected, strict=True):
        assert is_right(answer.sound, sound), answer.asked
