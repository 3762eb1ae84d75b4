"""Voices over HTTP: in the contract's shape, with its errors, and lost by nothing."""

import asyncio
import errno
import io
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import httpx
import jsonschema
import numpy as np
import pytest
import soundfile
from clips import clip, tone
from elsewhere import PATIENCE_S
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from speaking import load_tts
from starlette.responses import Response
from voicing import model, nothing

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.audio.samples import Samples
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve import service
from miso_gguf.serve.endpoints import voices as endpoint
from miso_gguf.serve.errors import ApiError, as_api_error
from miso_gguf.serve.options import ServeOptions
from miso_gguf.serve.service import Service
from miso_gguf.serve.voices.names import Voices

FORM = {"name": "Anna", "text": "What is said.", "consent": "true"}
CLIP = clip(tone())


def _fake() -> MisoTTS:
    tts = model()
    cast(Any, tts).close = lambda: None
    cast(Any, tts.codec).encode = lambda samples: np.full((-(-len(samples) // 1920), 8), 3, np.int64)
    return tts


def application(directory: Path | None, load: Callable[[], MisoTTS] = _fake, **options: Any) -> FastAPI:
    asked = ServeOptions(voices=directory, **options)
    app = FastAPI()
    app.include_router(endpoint.routes(Service(asked, "tiny", load)))

    async def answer(_request: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    app.add_exception_handler(ApiError, answer)
    app.add_exception_handler(MisoError, answer)
    return app


def ask(app: FastAPI, method: str, path: str, **request: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, path, **request)

    return asyncio.run(run())


def upload(app: FastAPI, form: dict[str, Any] | None = None, **files: Any) -> httpx.Response:
    given = files or {"audio_sample": ("../../me.wav", CLIP)}
    return ask(app, "POST", "/v1/audio/voices", data=FORM if form is None else form, files=given)


@contextmanager
def read_at_once() -> Iterator[mock.Mock]:
    """Without a process: what a clip is read as is not the matter."""

    async def read(_data: bytes, param: str) -> Samples:
        assert param == "audio_sample"
        return tone()

    with mock.patch.object(endpoint, "read_clip", side_effect=read) as reading:
        yield reading


def refused(answer: httpx.Response, status: int, param: str | None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    return str(error["message"])


def test_a_clip_becomes_a_voice_that_outlives_the_server(tmp_path: Path, bundle: Path) -> None:
    with load_tts(bundle) as tts:
        app = application(tmp_path, lambda: tts)
        made = upload(app, {**FORM, "speaker": "2"})
        assert made.status_code == 200, made.text
        voice = made.json()
        assert re.fullmatch("voice_[0-9a-f]{24}", voice["id"])
        assert voice == {**voice, "object": "audio.voice", "name": "Anna"}
        assert [path.name for path in tmp_path.iterdir()] == [f"{voice['id']}.safetensors"]
        app = application(tmp_path)
        assert ask(app, "GET", f"/v1/audio/voices/{voice['id']}").json() == voice
        listed = ask(app, "GET", "/v1/audio/voices").json()
        assert listed["object"] == "list"
        assert listed["data"] == [voice]
        assert listed["voices"][:2] == ["default", "alloy"]
        assert listed["voices"][-1] == "Anna"
        kept = Voices(tmp_path, most=1).resolve("Anna", tts, nothing)
        assert kept is not None
        assert (kept.text, kept.speaker, kept.seconds) == ("What is said.", 2, 1.04)
        heard = soundfile.read(io.BytesIO(CLIP), dtype="float32")[0]
        np.testing.assert_array_equal(kept.codes, tts.codec.encode(heard))
    gone = ask(app, "DELETE", f"/v1/audio/voices/{voice['id']}")
    assert gone.json() == {"id": voice["id"], "object": "audio.voice.deleted", "deleted": True}
    assert [*tmp_path.iterdir()] == []
    for method in ("GET", "DELETE"):
        refused(ask(app, method, f"/v1/audio/voices/{voice['id']}"), 404, None)


@pytest.mark.parametrize("id", ["alloy", "..", "%2e%2e", "voice_" + "g" * 24, "a" * 999, "%00", "%ff"])
def test_what_is_no_id_is_not_there(id: str, tmp_path: Path) -> None:
    app = application(tmp_path / "voices")
    (tmp_path / "victim.safetensors").write_text("")
    for method in ("GET", "DELETE"):
        assert ask(app, method, f"/v1/audio/voices/{id}").status_code in (404, 405, 307)
    assert (tmp_path / "victim.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"consent": None}, "consent", "consent is missing"),
        ({"consent": "false"}, "consent", "consent must be true"),
        ({"consent": "cons_123"}, "consent", "consent must be true"),
        ({"name": None}, "name", "name is missing"),
        ({"name": "a" * 101}, "name", "has 101 characters"),
        ({"name": "a\x00b"}, "name", "has '\\x00' in it"),
        ({"name": "alloy"}, "name", "is a voice of this server"),
        ({"text": None}, "text", "text is missing"),
        ({"text": " \n"}, "text", "text is missing"),
        ({"text": "a" * 2001}, "text", "has 2001 characters"),
        ({"type": "prompt"}, "type", "of clips alone"),
        ({"speaker": "-1"}, "speaker", "a number from 0 to 999"),
        ({"speaker": "1000"}, "speaker", "a number from 0 to 999"),
        ({"speaker": "٣"}, "speaker", "a number from 0 to 999"),
        ({"path": "/etc"}, "path", "unknown field 'path'"),
        ({"audio_sample": "RIFF"}, "audio_sample", "must be a file"),
    ],
)
def test_a_form_that_is_wrong_is_told_before_the_clip_is_read(
    change: dict[str, str | None], param: str, message: str, tmp_path: Path
) -> None:
    form = {name: value for name, value in {**FORM, **change}.items() if value is not None}
    files = {"other" if "audio_sample" in change else "audio_sample": ("a.wav", CLIP)}
    with read_at_once() as reading:
        if "audio_sample" in change:
            answer = ask(application(tmp_path), "POST", "/v1/audio/voices", data=form, files={"text": (None, "Hi.")})
        else:
            answer = upload(application(tmp_path), form, **files)
    assert message in refused(answer, 400, param)
    assert not reading.called
    assert [*tmp_path.iterdir()] == []


def test_words_may_have_the_name_that_others_gave_them(tmp_path: Path) -> None:
    with read_at_once():
        app = application(tmp_path)
        form = {"name": "Anna", "ref_text": "Ours.", "consent": "True", "type": "audio_sample"}
        answer = upload(app, form)
    assert answer.status_code == 200
    kept = Voices(tmp_path, most=1).resolve("Anna", model(), nothing)
    assert kept is not None
    assert kept.text == "Ours."


def test_a_clip_that_is_no_use_is_told(tmp_path: Path) -> None:
    app = application(tmp_path, most_upload_bytes=1 << 16)
    assert "not audio" in refused(upload(app, audio_sample=("a.wav", b"text and no audio")), 400, "audio_sample")
    assert "at most 65536" in refused(upload(app, audio_sample=("a.wav", bytes(70_000))), 413, "audio_sample")


@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        ("application/json", b"{}", 415),
        ("", b"", 415),
        ("multipart/form-data; boundary=x; charset=punycode", b"--x--", 415),
        ("multipart/form-data", b"--x--", 400),
        ("multipart/form-data; boundary=x", b"nothing of that kind", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 99 + b"\r\na\r\n--x--", 400),
        ("multipart/form-data; boundary=" + "x" * 9999, b"--x--", 400),
    ],
)
def test_what_is_no_form_is_told(kind: str, content: bytes, status: int, tmp_path: Path) -> None:
    answer = ask(application(tmp_path), "POST", "/v1/audio/voices", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_parts_are_counted_and_measured(tmp_path: Path) -> None:
    app = application(tmp_path)
    many: list[Any] = [("audio_sample", ("a.wav", CLIP))] * 2
    assert "Too many files" in refused(ask(app, "POST", "/v1/audio/voices", data=FORM, files=many), 400, None)
    assert "Too many fields" in refused(upload(app, {**FORM, **{f"f{n}": "" for n in range(9)}}), 400, None)
    assert "exceeded maximum size" in refused(upload(app, {**FORM, "text": "a" * (65 << 10)}), 400, None)


def test_limits_of_the_operator(tmp_path: Path) -> None:
    assert "--voices DIR" in refused(upload(application(None)), 403, None)
    with read_at_once():
        app = application(tmp_path, most_voices=1)
        assert upload(app).status_code == 200
        assert "'Anna' already" in refused(upload(app), 400, "name")
        assert "keeps 1 uploaded" in refused(upload(app, {**FORM, "name": "Bea"}), 403, None)
        just = application(tmp_path, most_upload_bytes=len(CLIP))
        assert upload(just, {**FORM, "name": "Bea"}).status_code == 200
        too_large = upload(application(tmp_path, most_upload_bytes=len(CLIP) - 1), {**FORM, "name": "Cleo"})
        assert f"at most {len(CLIP) - 1} are read" in refused(too_large, 413, "audio_sample")


def test_a_model_that_cannot_be_had_is_no_fault_of_the_client(tmp_path: Path) -> None:
    def fails() -> MisoTTS:
        raise MisoError("no memory in /secret/place")

    with read_at_once():
        answer = upload(application(tmp_path, fails))
    assert "secret" not in refused(answer, 503, None)
    assert [*tmp_path.iterdir()] == []


def test_many_uploads_at_once_are_all_kept_or_told(tmp_path: Path) -> None:
    app = application(tmp_path, most_voices=5)

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            answers = await asyncio.gather(
                *(
                    client.post("/v1/audio/voices", data={**FORM, "name": f"{n // 2}"}, files={"audio_sample": CLIP})
                    for n in range(16)
                )
            )
        return [answer.status_code for answer in answers]

    with read_at_once():
        codes = asyncio.run(run())
    assert codes.count(200) == 5
    assert {*codes} <= {200, 400, 403}
    listed = ask(app, "GET", "/v1/audio/voices").json()["data"]
    assert len({voice["name"] for voice in listed}) == len(listed) == 5


def test_so_many_wait_to_become_voices_and_the_next_is_told_when_to_come_again(tmp_path: Path) -> None:
    may = threading.Event()

    def load() -> MisoTTS:
        assert may.wait(PATIENCE_S)
        return _fake()

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application(tmp_path, load))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

            async def post(number: int) -> httpx.Response:
                form = {**FORM, "name": str(number)}
                return await client.post("/v1/audio/voices", data=form, files={"audio_sample": ("a", CLIP)})

            posting = [asyncio.create_task(post(number)) for number in range(5)]
            while sum(task.done() for task in posting) < 2:
                await asyncio.sleep(0.001)
            late = await post(9)
            may.set()
            return [late, *(await asyncio.gather(*posting))]

    with read_at_once(), mock.patch.object(service, "CLIPS_WAITING", 2):
        answers = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert [answer.status_code for answer in answers].count(200) == 3
    for answer in (answer for answer in answers if answer.status_code != 200):
        assert "try again later" in refused(answer, 429, None)
        assert int(answer.headers["retry-after"]) >= 1


def test_two_clips_are_read_at_once(tmp_path: Path) -> None:
    reading = most = 0

    async def read(_data: bytes, _param: str) -> Samples:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0.01)
        reading -= 1
        return tone()

    async def run() -> list[int]:
        transport = httpx.ASGITransport(application(tmp_path))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

            async def post(number: int) -> int:
                form = {**FORM, "name": str(number)}
                answer = await client.post("/v1/audio/voices", data=form, files={"audio_sample": ("a", CLIP)})
                return answer.status_code

            return await asyncio.gather(*map(post, range(6)))

    with mock.patch.object(endpoint, "read_clip", side_effect=read), mock.patch.object(service, "CLIPS_WAITING", 3):
        codes = asyncio.run(run())
    assert sorted(codes) == [200] * 5 + [429]
    assert most == 2


def test_the_document_says_what_is_answered(tmp_path: Path) -> None:
    app = application(tmp_path)
    document = get_openapi(title="x", version="1", routes=app.routes)
    paths = document["paths"]
    assert {path: {*methods} for path, methods in paths.items()} == {
        "/v1/audio/voices": {"get", "post"},
        "/v1/audio/voices/{id}": {"get", "delete"},
    }
    assert "422" not in str(paths)

    def holds(answer: httpx.Response, path: str, method: str) -> None:
        said = paths[path][method]["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), said)

    with read_at_once():
        made = upload(app)
    holds(made, "/v1/audio/voices", "post")
    holds(upload(app), "/v1/audio/voices", "post")
    holds(ask(app, "GET", "/v1/audio/voices"), "/v1/audio/voices", "get")
    for method in ("GET", "DELETE", "DELETE"):
        answer = ask(app, method, f"/v1/audio/voices/{made.json()['id']}")
        holds(answer, "/v1/audio/voices/{id}", method.lower())
    form = paths["/v1/audio/voices"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    jsonschema.validate({**FORM, "audio_sample": "bytes"}, form)


def test_a_large_clip_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "no space left"))
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
    refused = upload(application(tmp_path), audio_sample=("me.wav", bytes(3 << 20)))
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage")
    assert full.called
    assert [record.levelname for record in caplog.records] == ["ERROR"]
