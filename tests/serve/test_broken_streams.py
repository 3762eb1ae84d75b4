"""Clients that hang up, read slowly or not at all; models that fail; limits and cuts.

A real server, whose model is scripted.
"""

import asyncio
import base64
import gc
import json
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from elsewhere import PATIENCE_S, Elsewhere, soon
from scripted_speech import FRAME, ScriptedTTS, Steps, pcm, scripted_server

from miso_gguf.core.errors import MisoError
from miso_gguf.serve.service import Service
from miso_gguf.serve.speech.worker import Worker

BODY: dict[str, Any] = {"model": "m", "input": "Hello.", "voice": "default", "response_format": "pcm"}
SPEECH = "/v1/audio/speech"


@contextmanager
def up(tts: ScriptedTTS, **options: Any) -> Iterator[tuple[Service, httpx.Client]]:
    with scripted_server(tts, **options) as (service, address), httpx.Client(base_url=address, timeout=30) as client:
        yield service, client


def test_the_first_chunk_leaves_when_it_is_made() -> None:
    steps = Steps()
    with up(ScriptedTTS(3, steps)) as (_, client), client.stream("POST", SPEECH, json=BODY) as answer:
        received = answer.iter_raw()
        assert next(received) == pcm(1, 1)
        steps.allow(2)
        assert b"".join(received) == pcm(2, 3)


@pytest.mark.parametrize("speed", [0.25, 0.7, 2.0, 4.0])
def test_the_first_chunk_is_as_long_however_fast_it_is_heard(speed: float) -> None:
    """The change of tempo holds back: with what it gave for one frame a listener would run dry before the next."""
    body = BODY | {"speed": speed, "stream_format": "sse"}
    with up(ScriptedTTS(9, steps := Steps(3))) as (_, client), client.stream("POST", SPEECH, json=body) as answer:
        lines = answer.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))["audio"]
        steps.allow(5)
        assert len(base64.b64decode(first)) * speed >= 2 * FRAME
        assert '"speech.audio.done"' in [*lines][-2]


def test_who_hangs_up_ends_his_stream_alone() -> None:
    steps = Steps()
    with (
        up(tts := ScriptedTTS(10, steps), streams=2) as (service, client),
        client.stream("POST", SPEECH, json=BODY) as other,
    ):
        heard = other.iter_raw()
        assert next(heard) == pcm(1, 1)
        with client.stream("POST", SPEECH, json=BODY) as answer:
            received = answer.iter_raw()
            next(received)
            assert not tts.streams[1].stopped.is_set()
        assert soon(tts.streams[1].stopped.is_set)
        assert not tts.streams[0].stopped.is_set()
        steps.allow(10)  # who is gone waits for its next frame, and makes none of it
        assert b"".join(heard) == pcm(2, 10)
        assert soon(lambda: service.turns.speaking == 0)
        assert [stream.made for stream in tts.streams] == [10, 1]


def test_who_hangs_up_while_a_speaker_is_first_made_ends_that_too() -> None:
    steps = Steps()
    with up(tts := ScriptedTTS(10, steps)) as (service, client):
        asking = Elsewhere(client.post, SPEECH, json=BODY | {"voice": "alloy"}, timeout=0.2)
        assert soon(lambda: bool(tts.streams))
        with pytest.raises(httpx.ReadTimeout):
            asking.result()
        assert soon(tts.streams[0].stopped.is_set)
        steps.allow(1)
        assert soon(lambda: service.turns.speaking == 0)
        assert len(tts.streams) == 1


def test_readers_that_take_nothing_hold_up_nobody_while_there_is_memory() -> None:
    tts = ScriptedTTS(1000)
    with up(tts, streams=1) as (_, client), ExitStack() as stack:
        for number in range(1, 4):  # more than there are streams, each behind by more than sockets hold
            stack.enter_context(client.stream("POST", SPEECH, json=BODY))
            assert soon(lambda: tts.streams[number - 1].made == 1000)  # noqa: B023  (it is over by then)
        tts.frames = 2
        assert client.post(SPEECH, json=BODY).content == pcm(1, 2)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_in_the_queue_is_never_spoken(stream: bool) -> None:
    steps = Steps()
    with up(tts := ScriptedTTS(2, steps)) as (service, client), client.stream("POST", SPEECH, json=BODY) as answer:
        received = answer.iter_raw()
        next(received)
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
            request = client.build_request("POST", SPEECH, json=BODY | {"stream": stream})
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            raw.sendall(f"POST {SPEECH} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
            assert soon(lambda: service.turns.waiting == 1)
        assert soon(lambda: service.turns.waiting == 0)
        steps.allow(10)
        list(received)
        assert soon(lambda: service.turns.speaking == 0)
        assert len(tts.streams) == 1


def test_a_slow_reader_holds_only_itself_back_and_one_that_stalls_is_hung_up_on() -> None:
    tts = ScriptedTTS(20_000)
    options = {"streams": 2, "reader_timeout_s": 1.0, "most_backlog_bytes": 100_000}
    with up(tts, **options) as (service, client), client.stream("POST", SPEECH, json=BODY):
        # It has its answer's head, and takes nothing of it.
        made = 0

        def stands() -> bool:
            nonlocal made
            before, made = made, tts.streams[0].made
            return before == made > 0

        assert soon(stands)
        assert made < 20_000
        tts.frames = 5
        assert client.post(SPEECH, json=BODY).content == pcm(1, 5)
        assert soon(lambda: 'outcome="hung_up"' in client.get("/metrics").text)
        assert service.turns.speaking == 0


def test_an_error_before_the_first_byte_is_an_answer_and_one_after_it_breaks_off() -> None:
    fails_at = 0

    def step(number: int) -> None:
        if number == fails_at:
            raise MisoError("the secret of /srv/model")

    with up(ScriptedTTS(4, step)) as (service, client):
        for body in (BODY, BODY | {"stream": False}, BODY | {"stream_format": "sse"}):
            refused = client.post(SPEECH, json=body)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "model_unavailable"
            assert "secret" not in refused.text
        fails_at = 2
        received: list[bytes] = []
        with client.stream("POST", SPEECH, json=BODY) as answer, pytest.raises(httpx.RemoteProtocolError):
            received.extend(answer.iter_raw())
        assert b"".join(received) == pcm(1, 2)
        assert client.post(SPEECH, json=BODY | {"stream": False}).status_code == 503
        events = client.post(SPEECH, json=BODY | {"stream_format": "sse"})
        assert '{"error": {"message": "the model cannot speak at present' in events.text.split("\n\n")[-2]
        fails_at = 9
        assert client.post(SPEECH, json=BODY).content == pcm(1, 4)
        assert soon(lambda: service.turns.speaking == 0)


def test_what_the_model_does_not_say_is_no_empty_file() -> None:
    with up(ScriptedTTS()) as (_, client):
        for stream in (True, False):
            refused = client.post(SPEECH, json=BODY | {"input": "silent", "stream": stream})
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_speech")
        refused = client.post(SPEECH, json=BODY | {"input": "nothing"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


def test_what_was_refused_is_kept_by_nobody() -> None:
    with up(ScriptedTTS()) as (service, client):
        workers = list[weakref.ref[Worker]]()
        begin = service.worker

        def watched(*asked: Any) -> Worker:
            worker = begin(*asked)
            workers.append(weakref.ref(worker))
            return worker

        service.worker = watched  # type: ignore[method-assign,assignment]
        for stopping, status in ((False, 422), (True, 503)):
            service.is_stopping = stopping
            for _ in range(2):
                assert client.post(SPEECH, json=BODY | {"input": "silent"}).status_code == status
            service.is_stopping = False
        gc.collect()
        assert len(workers) == 2
        assert soon(lambda: not any(worker() for worker in workers))


def test_one_request_has_so_many_seconds() -> None:
    with up(tts := ScriptedTTS(1000), most_seconds=1) as (_, client):
        sound = client.post(SPEECH, json=BODY).content
        assert len(sound) == 2 * 24000
        assert sound[: 2 * 12 * FRAME] == pcm(1, 12)
        assert sound[-200:] == bytes(200)  # cut without a click
        assert tts.streams[0].made == 13
        done = client.post(SPEECH, json=BODY | {"stream_format": "sse"}).text.split("data: ")[-1]
        assert json.loads(done)["usage"] == {"input_tokens": 1, "output_tokens": 13, "total_tokens": 14}


def test_what_a_stream_needed_is_noted_of_as_many_as_spoke_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(number: int) -> None:
        service.turns.speaking = 5 if number == 1 else 1  # as if others came and went

    noted = list[int]()
    with up(ScriptedTTS(3, step)) as (service, client):
        monkeypatch.setattr(service.pace, "note", lambda _, speaking: noted.append(speaking))
        assert client.post(SPEECH, json=BODY).content == pcm(1, 3)
    assert noted == [5]


def test_a_server_that_stops_takes_nothing_new_and_finishes_the_rest() -> None:
    steps = Steps()
    with up(ScriptedTTS(3, steps), grace_s=60) as (service, client):
        with client.stream("POST", SPEECH, json=BODY) as answer:
            received = answer.iter_raw()
            next(received)
            waiting = Elsewhere(client.post, SPEECH, json=BODY)
            assert soon(lambda: service.turns.waiting == 1)
            service.begin_stop()
            refused = client.post(SPEECH, json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
            assert "retry-after" in refused.headers
            assert client.get("/ready").status_code == 503
            assert client.get("/health").status_code == 200
            steps.allow(5)
            assert b"".join(received) == pcm(2, 3)
        assert waiting.result().content == pcm(1, 3)


def test_what_is_cut_breaks_off_and_what_waits_is_sent_away() -> None:
    steps = Steps()
    with up(tts := ScriptedTTS(3, steps)) as (service, client), client.stream("POST", SPEECH, json=BODY) as answer:
        received = answer.iter_raw()
        next(received)
        waiting = Elsewhere(client.post, SPEECH, json=BODY)
        assert soon(lambda: service.turns.waiting == 1)
        (loop,) = {worker._backlog._loop for worker in service._workers}
        cutting = asyncio.run_coroutine_threadsafe(service.cut(), loop)
        assert soon(tts.streams[0].stopped.is_set)
        with pytest.raises(httpx.RemoteProtocolError):
            list(received)
        assert waiting.result().status_code == 503
        steps.allow(9)  # what is being made ends later than it is told to
        cutting.result(PATIENCE_S)
        assert not service._workers
        assert len(tts.streams) == 1


def test_a_first_chunk_is_as_large_as_streams_before_needed() -> None:
    with up(ScriptedTTS(6)) as (service, client):
        service.pace._needed_s[1] = 0.2
        steps = Steps(1)
        client.post(SPEECH, json=BODY)
        tts = ScriptedTTS(6, steps)
        assert service.model._tts is not None
        service.model._tts = tts.as_tts
        service.pace._needed_s[1] = 0.2
        begun = threading.Event()

        def listen() -> bytes:
            with client.stream("POST", SPEECH, json=BODY) as answer:
                received = answer.iter_raw()
                first = next(received)
                begun.set()
                steps.allow(9)
                list(received)
                return first

        listening = Elsewhere(listen)
        assert soon(lambda: bool(tts.streams) and tts.streams[0].made == 2)
        assert not begun.wait(0.05)
        steps.allow(2)
        assert listening.result() == pcm(1, 4)


@pytest.mark.parametrize("log_text", [False, True])
def test_the_log_has_a_line_of_each_request_and_its_text_only_if_asked(
    log_text: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "miso_gguf.serve")
    with up(ScriptedTTS(5), log_text=log_text) as (_, client):
        answer = client.post(SPEECH, json=BODY | {"input": "A secret."})
        assert soon(lambda: "of speech" in caplog.text)
        for wrong in ({"input": "", "x": "A secret."}, {"input": "...", "voice": "A secret."}):
            client.post(SPEECH, json=BODY | wrong)
    (line,) = [record.message for record in caplog.records if "of speech" in record.message]
    assert line.startswith(f"{answer.headers['x-request-id']} done: ")
    assert "0.4 s of speech" in line
    assert ("A secret." in line) == log_text
    assert log_text or "secret" not in caplog.text
