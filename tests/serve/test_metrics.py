"""What the server counts, to the last frame; and what reaches the model."""

import base64
import re
from typing import Any, cast

import httpx
import numpy as np
import pytest
from clips import clip, tone
from elsewhere import soon
from scripted_speech import ScriptedStream, ScriptedTTS, scripted_server
from voicing import CODEBOOKS, model

from miso_gguf.runtime.options import SpeechOptions

SPEECH = "/v1/audio/speech"
BODY: dict[str, Any] = {"model": "m", "input": "Hello.", "voice": "default", "response_format": "pcm"}


class Noting(ScriptedTTS):
    """Remembers what it was asked, and computes two frames more than are heard."""

    def __init__(self, frames: int) -> None:
        super().__init__(frames)
        self.asked: list[dict[str, Any]] = []

    def stream(self, text: str, **asked: Any) -> ScriptedStream:
        self.asked.append({"text": text, **asked})
        stream = super().stream(text)
        stream.speech.timing.frames = self.frames + 2
        return stream


def figures(client: httpx.Client) -> dict[str, float]:
    """All of ours that are not zero, but for those that say when something began, and parts of a histogram."""
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    found = {name: float(value) for name, value in lines if float(value)}
    return {
        name: value
        for name, value in found.items()
        if name.startswith("miso_") and not re.search("_created|_bucket", name)
    }


def test_what_was_spoken_is_counted() -> None:
    with scripted_server(Noting(5), streams=3) as (_, address), httpx.Client(base_url=address) as client:
        assert figures(client) == {"miso_streams": 3.0}
        for asked in ({}, {"response_format": "wav"}, {"input": "silent"}):
            client.post(SPEECH, json=BODY | asked)
        assert client.get("/nothing").status_code == 404
        assert soon(lambda: 'miso_speech_requests_total{format="pcm",outcome="no_speech"}' in figures(client))
        found = figures(client)
    first_s, answers = found.pop("miso_first_audio_seconds_sum"), found.pop('miso_answers_total{status="200"}')
    assert answers >= 4  # of which those are that give these figures
    assert 0 < first_s < 60
    assert found == {
        "miso_streams": 3.0,
        "miso_model_loaded": 1.0,
        "miso_model_loads_total": 1.0,
        'miso_speech_requests_total{format="pcm",outcome="done"}': 1.0,
        'miso_speech_requests_total{format="wav",outcome="done"}': 1.0,
        'miso_speech_requests_total{format="pcm",outcome="no_speech"}': 1.0,
        'miso_answers_total{status="404"}': 1.0,
        'miso_answers_total{status="422"}': 1.0,
        "miso_audio_seconds_total": pytest.approx(0.8),
        "miso_frames_total": 21.0,
        "miso_input_characters_total": 18.0,
        "miso_first_audio_seconds_count": 2.0,
    }


def test_what_is_asked_reaches_the_model() -> None:
    with scripted_server(tts := Noting(1)) as (_, address), httpx.Client(base_url=address) as client:
        for asked in ({}, {"speaker": 3, "temperature": 0.5, "top_k": 9, "seed": 7}):
            assert client.post(SPEECH, json=BODY | asked).status_code == 200
        cast(Any, tts).codec = model().codec
        cast(Any, tts).codec.encode = lambda _: np.full((7, CODEBOOKS), 3)
        recorded = {"ref_audio": base64.b64encode(clip(tone(0.5))).decode(), "ref_text": "What is said."}
        assert client.post(SPEECH, json=BODY | recorded).status_code == 200
    reference = tts.asked.pop()["voice"]
    assert (reference.text, reference.codes.shape) == ("What is said.", (7, CODEBOOKS))
    expected: dict[str, Any] = {"text": "Hello.", "voice": None, "speaker": None, "options": SpeechOptions()}
    options = SpeechOptions(temperature=0.5, top_k=9, seed=7)
    assert tts.asked == [expected, expected | {"speaker": 3, "options": options}]
