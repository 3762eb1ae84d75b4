"""The `openai` package and a real server: what people call, what they hear, and what errors they catch."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal

import av
import numpy as np
import openai
import pytest
from clips import clip
from elsewhere import soon
from numpy.typing import NDArray
from openai import OpenAI, _base_client
from scripted_speech import ScriptedTTS, Steps, pcm, scripted_server
from serving import serving
from speaking import load_tts

from builders import Built
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service

SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "default", "input": "Hello."}
SEED = {"seed": 5}
FORMATS: list[Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]] = ["mp3", "opus", "aac", "flac", "wav", "pcm"]
MP3_LEAD = 1105
"""Samples at the start that are the encoder's own; a file says so in its first frame, a stream cannot."""


@pytest.fixture(scope="module")
def client(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Of the tiny model that speaks. Nothing here is spoken beside something else, so it says the same each time."""
    options = ServeOptions(voices=tmp_path_factory.mktemp("voices"))
    service = Service(options, "tiny", lambda: load_tts(built.tiny("q4_k_m"), "q4_k_m"))
    with (
        serving(service) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none is needed", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def spoken(client: OpenAI) -> NDArray[np.int16]:
    """The samples of `SPEECH`."""
    answer = client.audio.speech.create(**SPEECH, response_format="pcm", extra_body=SEED)
    return np.frombuffer(answer.content, "<i2")


@contextmanager
def scripted(tts: ScriptedTTS, *, key: str = "a key", **options: Any) -> Iterator[tuple[Service, OpenAI]]:
    with scripted_server(tts, **options) as (service, address), OpenAI(base_url=f"{address}/v1", api_key=key) as client:
        yield service, client


def decoded(name: str, content: bytes) -> NDArray[Any]:
    """As a player does it, which finds out the format by itself."""
    if name == "pcm":
        return np.frombuffer(content, "<i2")
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.audio[0].codec_context.sample_rate == (48_000 if name == "opus" else 24_000)
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.mark.parametrize("name", FORMATS)
def test_streamed_and_whole_are_the_same_samples_in_every_format(
    client: OpenAI, spoken: NDArray[np.int16], name: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
) -> None:
    streaming = client.audio.speech.with_streaming_response
    with streaming.create(**SPEECH, response_format=name, extra_body=SEED) as answer:
        pieces = list(answer.iter_bytes())
    whole = client.audio.speech.create(**SPEECH, response_format=name, extra_body=SEED | {"stream": False})
    assert len(pieces) > 2
    assert int(whole.response.headers["content-length"]) == len(whole.content)
    heard, kept = decoded(name, b"".join(pieces)), decoded(name, whole.content)
    if name == "mp3":
        heard = heard[MP3_LEAD : MP3_LEAD + len(kept)]
    assert np.array_equal(heard, kept)
    length = len(kept) / (2 if name == "opus" else 1)
    if name == "aac":  # whole frames of 1024 samples, one of them before the sound
        assert 0 <= length - len(spoken) < 3 * 1024
    else:
        assert length == len(spoken)
    if name in ("flac", "wav", "pcm"):
        assert np.array_equal(kept, spoken)


def test_without_a_format_it_is_mp3(client: OpenAI) -> None:
    answer = client.audio.speech.create(**SPEECH, extra_body=SEED)
    assert answer.response.headers["content-type"] == "audio/mpeg"
    with av.open(io.BytesIO(answer.content)) as container:
        assert container.format.name == "mp3"
    assert answer.response.headers["x-request-id"].startswith("req_")


def test_a_voice_by_its_id(client: OpenAI, spoken: NDArray[np.int16]) -> None:
    """`spoken` has it by its name."""
    asked: dict[str, Any] = SPEECH | {"voice": {"id": "default"}}
    answer = client.audio.speech.create(**asked, response_format="pcm", extra_body=SEED)
    assert answer.content == spoken.tobytes()


def test_events(client: OpenAI, spoken: NDArray[np.int16]) -> None:
    streaming = client.audio.speech.with_streaming_response
    with streaming.create(**SPEECH, response_format="pcm", stream_format="sse", extra_body=SEED) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == spoken.tobytes()
    assert done["type"] == "speech.audio.done"
    assert done["usage"].keys() == {"input_tokens", "output_tokens", "total_tokens"}


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"voice": "nobody"}, "voice", "unknown_voice"),
        ({"input": ""}, "input", "string_too_short"),
        ({"input": "a" * 4097}, "input", "string_above_max_length"),
        ({"speed": 9.0}, "speed", "less_than_equal"),
        ({"response_format": "ogg"}, "response_format", "literal_error"),
        ({"extra_body": {"cheerfulness": 3}}, "cheerfulness", "unknown_parameter"),
    ],
)
def test_what_is_wrong_with_a_request(client: OpenAI, wrong: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(**SPEECH | wrong)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert caught.value.request_id is not None


def test_a_voice_that_is_uploaded(client: OpenAI, spoken: NDArray[np.int16]) -> None:
    if not hasattr(client.audio, "voices"):
        pytest.skip("this version of the client has no voices")
    hiss = np.random.default_rng(0).normal(0, 0.2, 12_000).astype(np.float32)  # unlike all that it has heard
    sample = ("me.wav", clip(hiss))
    voice = client.audio.voices.create(
        name="anna", audio_sample=sample, consent="true", extra_body={"text": "Good.", "speaker": 1}
    )
    assert (voice.object, voice.name) == ("audio.voice", "anna")
    asked: dict[str, Any] = SPEECH | {"voice": {"id": voice.id}}
    answer = client.audio.speech.create(**asked, response_format="pcm", extra_body=SEED)
    assert answer.content != spoken.tobytes()
    assert client.audio.voices.delete(voice.id).deleted
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(**asked)
    assert caught.value.param == "voice"


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_a_key() -> None:
    with scripted(ScriptedTTS(2), api_keys=("a key",)) as (_, client):
        assert client.audio.speech.create(**SPEECH, response_format="pcm").content == pcm(1, 2)
        stranger = client.with_options(api_key="a guess")
        for call in (stranger.models.list, lambda: stranger.audio.speech.create(**SPEECH)):
            with pytest.raises(openai.AuthenticationError) as caught:
                call()
            assert caught.value.code == "invalid_api_key"


def test_who_comes_when_all_is_full_waits_as_long_as_he_is_told_and_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, waits = Steps(), list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(_base_client, "time", SimpleNamespace(sleep=sleep))
    with scripted(ScriptedTTS(2, steps), queue=0) as (service, client):
        streaming = client.audio.speech.with_streaming_response
        with streaming.create(**SPEECH, response_format="pcm") as answer:
            pieces = answer.iter_bytes()
            assert next(pieces) == pcm(1, 1)
            with pytest.raises(openai.RateLimitError) as caught:
                client.audio.speech.create(**SPEECH)
            assert caught.value.code == "server_busy"
            retry_after = int(caught.value.response.headers["retry-after"])
            assert waits == [retry_after] * 2
            steps.allow(2)
            assert b"".join(pieces) == pcm(2, 2)
        assert soon(lambda: service.turns.speaking == 0)
        assert client.audio.speech.create(**SPEECH, response_format="pcm").content == pcm(1, 2)
