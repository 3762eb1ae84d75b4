"""What a request may say, and what is said of one that is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.serve.errors import ApiError
from miso_gguf.serve.speech.request import SpeechRequest

PLAIN = {"model": "tts-1", "input": "Hello.", "voice": "alloy"}


def read(**fields: Any) -> SpeechRequest:
    return SpeechRequest.read(json.dumps(PLAIN | fields).encode(), 4096)


def refused(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        SpeechRequest.read(body, 4096)
    assert caught.value.status == 400
    json.dumps(caught.value.body).encode("utf-8")
    return caught.value


def test_what_clients_send() -> None:
    request = read()
    assert (request.response_format, request.speed, request.stream_format, request.is_streamed) == (
        "mp3",
        1.0,
        "audio",
        True,
    )
    assert request.options == SpeechOptions()
    assert read(voice={"id": "voice_1"}).voice_name == "voice_1"
    assert read(instructions=None, seed=None, stream=None) == request
    assert read(speed=2).speed == 2.0
    assert len(read(input="a" * 4096).input) == 4096
    assert not read(stream=False).is_streamed
    assert read(stream=False, stream_format="sse").is_streamed
    asked = read(seed=7, temperature=0.5, top_k=9, speaker=3)
    assert (asked.options, asked.speaker) == (SpeechOptions(temperature=0.5, top_k=9, seed=7), 3)
    assert read(voice=None, ref_audio="UklG", ref_text="Hi.").voice_name is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "string_too_short"),
        ({"input": "a" * 4097}, "input", "string_above_max_length"),
        ({"input": None}, "input", "missing"),
        ({"input": 5}, "input", "string_type"),
        ({"model": ""}, "model", "string_too_short"),
        ({"voice": None}, "voice", "missing"),
        ({"voice": ""}, "voice", "string_too_short"),
        ({"voice": {"name": "x"}}, "voice", None),
        ({"voice": ["alloy"]}, "voice", None),
        ({"response_format": "ogg"}, "response_format", "literal_error"),
        ({"stream_format": "ws"}, "stream_format", "literal_error"),
        ({"stream": "no"}, "stream", "bool_type"),
        ({"speed": 0.24}, "speed", "greater_than_equal"),
        ({"speed": 4.01}, "speed", "less_than_equal"),
        ({"speed": float("nan")}, None, None),
        ({"seed": -1}, "seed", "greater_than_equal"),
        ({"seed": 1 << 64}, "seed", "less_than"),
        ({"seed": 1.5}, "seed", None),
        ({"temperature": 11}, "temperature", "less_than_equal"),
        ({"top_k": 0}, "top_k", "greater_than_equal"),
        ({"speaker": True}, "speaker", None),
        ({"ref_audio": "UklG"}, "ref_text", None),
        ({"ref_text": "Hi."}, "ref_audio", None),
        ({"language": "en"}, "language", "unknown_parameter"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str | None, code: str | None) -> None:
    error = refused(json.dumps(PLAIN | fields).encode())
    if param is not None:
        assert error.param == param
        assert param in error.message
    if code is not None:
        assert error.code == code


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": 5}, "input must be a string"),
        ({"model": ""}, "model is empty"),
        ({"voice": "v" * 257}, "voice must have at most 256 characters"),
        ({"response_format": "ogg"}, "response_format must be 'mp3', 'opus', 'aac', 'flac', 'wav' or 'pcm'"),
        ({"stream": "no"}, "stream must be true or false"),
        ({"speed": 0.24}, "speed must be at least 0.25"),
        ({"speed": 9}, "speed must be at most 4.0"),
        ({"speed": "fast"}, "speed must be a number"),
        ({"seed": 1 << 64}, "seed must be below 18446744073709551616"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"top_k": "five"}, "top_k must be a whole number"),
        (
            {"sped": 1.1},
            "unknown field 'sped'; known are model, input, voice, instructions, response_format, speed, stream_format, "
            "stream, seed, temperature, top_k, speaker, ref_audio, ref_text",
        ),
    ],
)
def test_it_is_said_in_our_words(fields: dict[str, Any], message: str) -> None:
    assert refused(json.dumps(PLAIN | fields).encode()).message == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"model": "m", "voice": "v", "input": "\\ud800"}',
        b'{"model": "m", "voice": "v", "input": "\xed\xa0\x80"}',
        b'{"model": "m", "voice": "v", "input": "a", "speed": 1e999}',
        b'{"model": "m", "voice": "v", "input": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"\\ud800": 1}',
    ],
)
def test_what_is_no_json_of_this_kind_is_refused(body: bytes) -> None:
    assert len(refused(body).message) < 300


@given(st.text(min_size=5, max_size=300), st.one_of(st.integers(), st.text(), st.booleans(), st.floats()))
def test_an_unknown_field_is_named_and_its_value_is_not_sent_back(name: str, value: Any) -> None:
    error = refused(json.dumps(PLAIN | {f"x-{name}": value}).encode())
    assert error.code in {"unknown_parameter", "json_invalid"}
    assert len(error.message) < 600
