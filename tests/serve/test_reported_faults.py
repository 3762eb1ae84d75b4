"""What users of other speech servers reported as faults, each as such a user would notice it here.

Over HTTP, on real servers: of a tiny model where its sound matters, of a scripted one where what happens when does.
"""

import base64
import gc
import io
import json
import socket
import struct
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import httpx
import numpy as np
import pytest
import soundfile
from clips import clip, tone
from elsewhere import PATIENCE_S, Elsewhere, soon
from openai import OpenAI
from scripted_speech import ScriptedTTS, Steps, pcm, scripted_server
from serving import serving
from speaking import load_tts

from builders import Built
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service
from miso_gguf.serve.speech import pace
from miso_gguf.serve.voices import seeded

SPEECH = "/v1/audio/speech"
BODY: dict[str, Any] = {"model": "tts-1", "input": "Hello.", "voice": "default", "response_format": "pcm"}
LONG = BODY | {"input": "Hello there. This is very good. " * 40}
CLIENTS = 6
EASING = [5, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 1]
"""Frames of first chunks when nothing comes late any more."""


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    """The tiny model that speaks, as others convert it too."""
    return built.tiny("f32", "fp16")


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """F32 throughout: a stream says beside others what it says alone."""
    options = ServeOptions(streams=4, queue=CLIENTS, voices=tmp_path_factory.mktemp("kept") / "voices")
    return Service(options, "tiny", lambda: load_tts(bundle, exact=True, sequences=4))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with serving(service) as address, calling(address) as client:
        yield client


def calling(address: str) -> httpx.Client:
    """Without certificates, which take longer to load than most of what is asked."""
    return httpx.Client(base_url=address, timeout=60, verify=False)


def speak(client: httpx.Client, **asked: Any) -> bytes:
    answer = client.post(SPEECH, json=BODY | asked)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_01_a_voice_agent_asks_an_unknown_model_for_events_and_gets_no_audio() -> None:
    """The plugin asks every model whose name it does not know for events; the server sends plain bytes: no audio."""
    with scripted_server(ScriptedTTS(5)) as (_, address), OpenAI(base_url=f"{address}/v1", api_key="x") as client:
        streaming = client.audio.speech.with_streaming_response
        asked: dict[str, Any] = BODY | {"model": "my-own-voice-model", "stream_format": "sse"}
        with streaming.create(**asked) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == pcm(1, 5)


def test_02_more_requests_than_slots_kill_the_engine() -> None:
    """Two slots and eight requests at once: some hang for ever, and then the engine is dead."""
    steps = Steps()
    with (
        scripted_server(ScriptedTTS(4, steps), streams=2, queue=3) as (service, address),
        calling(address) as client,
    ):
        taken = list[Elsewhere[bytes]]()
        for speaking, waiting in ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3)):
            taken.append(Elsewhere(speak, client))
            assert soon(lambda: (service.turns.speaking, service.turns.waiting) == (speaking, waiting))  # noqa: B023
        for _ in range(3):
            refused = client.post(SPEECH, json=BODY)
            assert refused.status_code == 429
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 600
        steps.allow(3 * len(taken))
        assert [each.result() for each in taken] == [pcm(1, 4)] * len(taken)
        assert soon(lambda: service.turns.speaking == 0)
        steps.allow(3)
        assert speak(client) == pcm(1, 4)


def test_03_a_client_that_hangs_up_keeps_the_engine_busy(client: httpx.Client, service: Service) -> None:
    """Whoever presses stop still has his text spoken to its end; after some of them nobody gets anything."""
    before = speak(client)
    for pieces in (1, 2, 5):
        with client.stream("POST", SPEECH, json=LONG) as answer:
            received = answer.iter_raw()
            for _ in range(pieces):
                assert next(received)
    tts = service.model._tts
    assert tts is not None
    assert soon(lambda: service.turns.speaking == tts.engine.batcher.running == 0)
    metrics = client.get("/metrics").text
    assert 'miso_speech_requests_total{format="pcm",outcome="hung_up"} 3.0' in metrics
    assert speak(client) == before


def test_04_no_api_key() -> None:
    """Anybody in the network can use it, and there is no way to set a key."""
    with scripted_server(ScriptedTTS(1), api_keys=("right",)) as (_, address), calling(address) as client:
        for key, status in ((None, 401), ("wrong", 401), ("right", 200)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert client.post(SPEECH, json=BODY, headers=headers).status_code == status
        assert client.get("/v1/audio/voices").status_code == 401
        assert client.get("/health").status_code == 200
    with pytest.raises(ValueError, match="set a key"):
        ServeOptions(host="0.0.0.0")


@pytest.mark.parametrize("speed", [1.0, 1.3])
def test_05_streams_have_wrong_headers_clicks_where_chunks_meet_and_no_tail(client: httpx.Client, speed: float) -> None:
    """It clicks several times a second when it is streamed; the last word lacks its end; no player likes the WAV."""
    asked = {"speed": speed, "input": "Hello there.", "response_format": "wav"}
    with client.stream("POST", SPEECH, json=BODY | asked) as answer:
        assert answer.headers["content-type"] == "audio/wav"
        pieces = list(answer.iter_raw())
    streamed, whole = b"".join(pieces), speak(client, **asked, stream=False)
    assert struct.unpack("<I", streamed[4:8]) == struct.unpack("<I", streamed[40:44]) == (0xFFFFFFFF,)
    kept, rate_hz = soundfile.read(io.BytesIO(whole), dtype="int16")
    with av.open(io.BytesIO(streamed)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert rate_hz == 24_000
    assert np.array_equal(heard, kept)
    borders = (np.cumsum([len(piece) for piece in pieces])[:-1] - 44) // 2
    assert len(borders) > 5
    steps = np.abs(np.diff(heard.astype(np.int32)))
    elsewhere = np.delete(steps, borders - 1)
    assert steps[borders - 1].max() <= elsewhere.max()
    assert np.abs(heard[-4800:]).max() > 0
    assert np.abs(heard[-24:]).max() <= 1  # and it ends in silence


def test_06_streams_run_dry_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk is so small that there is a gap after it whenever somebody else's prompt is read."""
    now, late_s, first_frames, is_heard = 0.0, 0.4, 1, threading.Event()

    def step(number: int) -> None:
        nonlocal now
        if number:
            now += late_s if number == 1 else 0.04
        if number == first_frames:
            assert is_heard.wait(PATIENCE_S), "the first chunk does not leave"

    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now))
    with (
        scripted_server(ScriptedTTS(6, step)) as (service, address),
        calling(address) as client,
    ):

        def first_chunk_has(frames: int) -> bool:
            nonlocal first_frames
            first_frames = frames
            is_heard.clear()
            with client.stream("POST", SPEECH, json=BODY) as answer:
                received = answer.iter_raw()
                first = next(received)
                is_heard.set()
                assert first + b"".join(received) == pcm(1, 6)
            assert soon(lambda: service.turns.speaking == 0)
            return first == pcm(1, frames)

        assert first_chunk_has(1)
        assert "miso_underruns_total 1.0" in client.get("/metrics").text
        assert first_chunk_has(5)
        late_s = 0.04
        for frames in EASING:
            assert first_chunk_has(frames)
        assert "miso_underruns_total 1.0" in client.get("/metrics").text


def test_07_truncated_replayed_or_endless_audio_under_load(client: httpx.Client) -> None:
    """With many at once some end in the middle, some say a sentence twice, and one never ends."""
    words = ["Hello.", "Goodbye.", "Hello there.", "This is very good."]
    asked = [{"input": words[number % 4], "speaker": number // 4, "seed": number} for number in range(CLIENTS)]
    alone = [speak(client, **each) for each in asked]
    assert len(set(alone)) == CLIENTS
    together = [Elsewhere(speak, client, **each) for each in asked]
    assert [each.result() for each in together] == alone


def test_08_an_empty_input_or_an_unknown_voice_is_an_error_500_or_an_empty_file(client: httpx.Client) -> None:
    """An empty string gives 500, dots give a file without sound, and a voice that is not there whatever comes first."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input": ""}, "input"),
        ({"input": "   \n"}, "input"),
        ({"input": "..."}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"voice": ""}, "voice"),
        ({"voice": {"id": "voice_000000000000000000000000"}}, "voice"),
        ({"voice": None}, "voice"),
        ({"model": None}, "model"),
    ]
    for asked, param in wrong:
        answer = client.post(SPEECH, json=BODY | asked)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert answer.json()["error"]["type"] == "invalid_request_error"
    with scripted_server(ScriptedTTS()) as (_, address), calling(address) as scripted:
        assert scripted.post(SPEECH, json=BODY | {"input": "silent"}).status_code == 422


def test_09_uploaded_voices_leave_their_directory_collide_are_lost_and_may_last_ten_minutes(
    client: httpx.Client, service: Service
) -> None:
    """A name with `..` is a path; two of one name at once collide; a restart loses them; ten minutes fill memory."""
    directory, evil = service.options.voices, "../../evil"
    assert directory is not None
    sample = clip(tone(0.5))

    def upload(content: bytes) -> httpx.Response:
        form = {"name": evil, "text": "Hello.", "consent": "true", "speaker": "1"}
        return client.post("/v1/audio/voices", data=form, files={"audio_sample": ("../../evil.wav", content)})

    long = upload(clip(np.zeros(600 * 8000, np.float32), 8000, "FLAC"))
    assert (long.status_code, long.json()["error"]["param"]) == (400, "audio_sample")
    answers = sorted(
        (each.result() for each in [Elsewhere(upload, sample) for _ in range(2)]), key=lambda answer: answer.status_code
    )
    assert [answer.status_code for answer in answers] == [200, 400]
    id = answers[0].json()["id"]
    assert [path.name for path in directory.parent.rglob("*") if path.is_file()] == [f"{id}.safetensors"]
    for path in ("..%2F..%2Fevil", "%2Fetc%2Fpasswd", evil):
        assert client.delete(f"/v1/audio/voices/{path}").status_code == 404
    spoken = [speak(client, voice=voice) for voice in (evil, {"id": id})]
    assert spoken[0] != speak(client)
    restarted = Service(service.options, "tiny", service.model._load)
    with serving(restarted) as address, calling(address) as later:
        assert [voice["name"] for voice in later.get("/v1/audio/voices").json()["data"]] == [evil]
        assert speak(later, voice=evil) == spoken[0] == spoken[1]
        assert later.delete(f"/v1/audio/voices/{id}").status_code == 200
    assert client.post(SPEECH, json=BODY | {"voice": evil}).status_code == 400


def test_10_memory_grows_and_an_idle_model_stays(bundle: Path) -> None:
    """The card is full although nobody has spoken for hours."""
    engines = list[weakref.ref[Engine]]()

    def load() -> MisoTTS:
        tts = load_tts(bundle)
        engines.append(weakref.ref(tts.engine))
        return tts

    def is_freed() -> bool:
        gc.collect()
        return engines[0]() is None

    service = Service(ServeOptions(idle_unload_s=0.1), "tiny", load)
    with serving(service) as address, calling(address) as client:
        first = speak(client)
        assert soon(lambda: not client.get("/health").json()["loaded"])
        assert "miso_model_loaded 0.0" in client.get("/metrics").text
        assert soon(is_freed)
        assert speak(client) == first
        assert "miso_model_loads_total 2.0" in client.get("/metrics").text


def test_11_asked_for_mp3_got_wav_alloy_refused_and_stream_false_an_error(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What clients send as a matter of course is refused, or answered with something else."""
    monkeypatch.setattr(seeded, "MOST_SECONDS", 1.0)
    as_usual = {name: value for name, value in BODY.items() if name != "response_format"} | {"voice": "alloy"}
    answer = client.post(SPEECH, json=as_usual)
    assert answer.headers["content-type"] == "audio/mpeg"
    with av.open(io.BytesIO(answer.content)) as container:
        assert container.format.name == "mp3"
    assert client.post(SPEECH, json=as_usual).content == answer.content  # the same speaker again
    monkeypatch.setattr(seeded.SeededSpeakers, "voice", lambda *_: None)
    with scripted_server(ScriptedTTS(1)) as (_, address), calling(address) as scripted:
        for voice in seeded.ALIASES:
            assert speak(scripted, voice=voice, stream=False) == pcm(1, 1)


def test_12_the_next_request_waits_for_the_whole_utterance_before_it() -> None:
    """One reads a chapter aloud, and nobody else hears a word until it is over."""
    steps = Steps()
    with (
        scripted_server(tts := ScriptedTTS(500, steps), streams=2) as (_, address),
        calling(address) as client,
        client.stream("POST", SPEECH, json=BODY) as chapter,
    ):
        received = chapter.iter_raw()
        assert next(received) == pcm(1, 1)
        tts.frames = 1
        assert speak(client) == speak(client) == pcm(1, 1)
        steps.allow(499)
        assert b"".join(received) == pcm(2, 500)


def test_13_a_slow_reader_stalls_the_others() -> None:
    """One client on a bad line, and everybody's sound stops."""
    small, frames = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)], 3000  # more than sockets hold between them
    with (
        scripted_server(tts := ScriptedTTS(frames), streams=2, most_backlog_bytes=20_000) as (_, address),
        calling(address) as client,
        httpx.Client(transport=httpx.HTTPTransport(verify=False, socket_options=small), timeout=60) as slow,
        slow.stream("POST", address + SPEECH, json=BODY) as answer,
    ):
        tts.frames = 50
        for _ in range(3):
            assert speak(client) == pcm(1, 50)
        assert tts.streams[0].made < frames
        assert b"".join(answer.iter_raw()) == pcm(1, frames)
