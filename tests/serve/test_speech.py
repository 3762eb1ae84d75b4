"""`POST /v1/audio/speech` on a real server: what is heard is what the library says, however it is sent."""

import base64
import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest
from clips import clip
from elsewhere import Elsewhere, soon
from speaking import load_tts

from builders import Built
from miso_gguf.runtime.audio.samples import to_pcm16
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.serve.service import Service

TEXT = "Hello there. This is very good."
BODY: dict[str, Any] = {"model": "tts-1", "input": TEXT, "voice": "default", "response_format": "pcm", "seed": 3}
STREAMS = 2
LONG = "Hello there. This is very good. " * 40


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def solo(built: Built) -> bytes:
    """The PCM of `BODY` as the library makes it, alone."""
    with load_tts(built.tiny("q4_k_m"), "q4_k_m") as tts, tts.stream(TEXT, options=SpeechOptions(seed=3)) as stream:
        return b"".join(to_pcm16(chunk.samples).astype("<i2").tobytes() for chunk in stream)


def test_streamed_whole_and_events_are_what_the_library_says(client: httpx.Client, solo: bytes) -> None:
    streamed = client.post("/v1/audio/speech", json=BODY)
    assert streamed.status_code == 200
    assert streamed.content == solo
    assert streamed.headers["content-type"] == "audio/pcm"
    assert streamed.headers["transfer-encoding"] == "chunked"
    assert streamed.headers["content-disposition"] == 'attachment; filename="speech.pcm"'
    assert streamed.headers["x-sample-rate"] == "24000"
    assert (streamed.headers["cache-control"], streamed.headers["x-accel-buffering"]) == ("no-store", "no")
    assert "x-ignored" not in streamed.headers
    whole = client.post("/v1/audio/speech", json=BODY | {"stream": False})
    assert whole.content == solo
    assert whole.headers["content-length"] == str(len(solo))
    events = client.post("/v1/audio/speech", json=BODY | {"stream_format": "sse"})
    assert events.headers["content-type"] == "text/event-stream"
    assert "content-disposition" not in events.headers
    lines = events.text.split("\n\n")
    assert lines.pop() == ""
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert len(deltas) > 5
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == solo
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens"] <= len(solo) / 2 / 1920
    assert 0 < usage["input_tokens"] < len(TEXT) + 20


def test_a_wav_carries_no_length_when_it_is_streamed_and_the_right_one_when_it_is_whole(
    client: httpx.Client, solo: bytes
) -> None:
    for stream, sizes in ((True, (0xFFFFFFFF, 0xFFFFFFFF)), (False, (36 + len(solo), len(solo)))):
        wav = client.post("/v1/audio/speech", json=BODY | {"response_format": "wav", "stream": stream}).content
        assert struct.unpack("<4sI4s", wav[:12]) == (b"RIFF", sizes[0], b"WAVE")
        assert struct.unpack("<4sI", wav[36:44]) == (b"data", sizes[1])
        assert wav[44:] == solo


def test_instructions_are_said_to_be_ignored(client: httpx.Client, solo: bytes) -> None:
    answer = client.post("/v1/audio/speech", json=BODY | {"instructions": "Cheerfully."})
    assert answer.headers["x-ignored"] == "instructions"
    assert answer.content == solo


def test_speed_changes_the_length(client: httpx.Client, solo: bytes) -> None:
    twice = client.post("/v1/audio/speech", json=BODY | {"speed": 2.0}).content
    assert len(twice) == pytest.approx(len(solo) / 2, abs=0.1 * 48000)
    assert twice == client.post("/v1/audio/speech", json=BODY | {"speed": 2.0, "stream": False}).content


def test_a_clip_in_the_request_is_the_voice(client: httpx.Client) -> None:
    asked = BODY | {"input": "Hello.", "seed": 5}
    hiss = np.random.default_rng(0).normal(0, 0.2, 12_000).astype(np.float32)  # unlike all that it has heard
    reference = {"ref_audio": base64.b64encode(clip(hiss)).decode(), "ref_text": "Good.", "voice": None, "speaker": 1}
    plain, first, second = (client.post("/v1/audio/speech", json=asked | own) for own in ({}, reference, reference))
    assert first.status_code == 200
    assert first.content == second.content != plain.content
    for wrong in ("/etc/passwd", "https://example.org/a.wav", base64.b64encode(b"RIFF junk").decode()):
        refused = client.post("/v1/audio/speech", json=BODY | reference | {"ref_audio": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "ref_audio")


def test_who_hangs_up_frees_the_row_and_the_others_hear_all(
    client: httpx.Client, service: Service, solo: bytes
) -> None:
    turns = service.turns
    with client.stream("POST", "/v1/audio/speech", json=BODY | {"input": LONG}) as answer:
        received = answer.iter_raw()  # which hangs up when nobody holds it
        next(received)
        assert turns.speaking == 1
        assert len(client.post("/v1/audio/speech", json=BODY).content) > len(solo) / 4
    assert soon(lambda: turns.speaking == 0)
    tts = service.model._tts
    assert tts is not None
    assert soon(lambda: tts.engine.batcher.running == 0)
    assert soon(lambda: 'outcome="hung_up"' in client.get("/metrics").text)


def test_requests_more_than_streams_wait_and_too_many_are_told_when_to_come_again(
    client: httpx.Client, service: Service, solo: bytes
) -> None:
    with ExitStack() as stack:
        spoken = [
            stack.enter_context(client.stream("POST", "/v1/audio/speech", json=BODY | {"input": LONG}))
            for _ in range(STREAMS)
        ]
        waiting = [Elsewhere(client.post, "/v1/audio/speech", json=BODY) for _ in range(3)]
        assert soon(lambda: service.turns.waiting == 3)
        refused = client.post("/v1/audio/speech", json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "server_busy"
        for answer in spoken:
            answer.close()
        assert all(len(each.result().content) > len(solo) / 4 for each in waiting)


def test_what_was_never_begun_is_an_error_of_its_own(client: httpx.Client) -> None:
    for wrong, param in (({"input": "..."}, "input"), ({"voice": "nobody"}, "voice"), ({"speed": 5}, "speed")):
        refused = client.post("/v1/audio/speech", json=BODY | wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    as_text = client.post("/v1/audio/speech", content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert as_text.status_code == 415


def test_the_samples_are_finite_and_audible(solo: bytes) -> None:
    samples = np.frombuffer(solo, "<i2")
    assert 1000 < np.abs(samples).max() <= 32767
