"""`/v1/audio/voices`: a clip becomes a voice; voices are listed and deleted."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from ...runtime.audio.samples import Samples
from ...runtime.voice import MAX_TEXT_CHARS, Voice
from ..errors import ApiError
from ..service import Service
from ..voices.clip import read_clip
from ..voices.spelling import MOST_CHARACTERS
from .refusals import refusals

log = logging.getLogger(__name__)

_FIELDS = ("name", "text", "ref_text", "consent", "speaker", "audio_sample", "type")
"""`type` is OpenAI's word for how a voice is made; here there is one way."""
_CONSENT = ("true", "1", "yes", "on")
_CHARSETS = (b"utf-8", b"us-ascii")
"""Python knows others that take it long to decode."""
_MOST_SPEAKER = 999
"""Of the numbers that a prompt can have; the model knows few."""
_MOST_FIELD_BYTES = 64 << 10
"""The longest text in any script has 8 kB."""

_OBJECT = {
    "type": "object",
    "required": ["object", "id", "name", "created_at"],
    "properties": {
        "object": {"const": "audio.voice"},
        "id": {"type": "string"},
        "name": {"type": "string"},
        "created_at": {"type": "integer", "description": "Seconds since 1970."},
    },
}
_LIST = {
    "type": "object",
    "required": ["object", "data", "voices"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _OBJECT, "description": "Uploaded voices."},
        "voices": {"type": "array", "items": {"type": "string"}, "description": "All that a request may name."},
    },
}
_DELETED = {
    "type": "object",
    "required": ["id", "object", "deleted"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "audio.voice.deleted"},
        "deleted": {"const": True},
    },
}
_UPLOAD = {
    "type": "object",
    "required": ["name", "audio_sample", "text", "consent"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS},
        "audio_sample": {"type": "string", "format": "binary", "description": "0.3 to 30 s; 5 to 15 do best."},
        "text": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_TEXT_CHARS,
            "description": "What is said in it, word for word. May be called `ref_text`.",
        },
        "ref_text": {"type": "string", "maxLength": MAX_TEXT_CHARS},
        "consent": {"enum": [*_CONSENT], "description": "That whose voice it is has agreed."},
        "type": {"const": "audio_sample"},
        "speaker": {"type": "integer", "minimum": 0, "maximum": _MOST_SPEAKER, "default": 0},
    },
}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_NO_VOICE = refusals({404: "There is no such voice."})


class _Upload(NamedTuple):
    """What a form says, checked as far as that costs nothing."""

    name: str
    text: str
    speaker: int
    clip: bytes


def routes(service: Service) -> APIRouter:
    """The endpoints of one server."""
    router, voices = APIRouter(), service.voices

    @router.post(
        "/v1/audio/voices",
        summary="Make a voice of a clip",
        response_model=None,
        responses={
            200: _answer("The voice.", _OBJECT),
            **refusals(
                {
                    400: "The form or the clip is wrong; `param` says where.",
                    403: "This server keeps no voices, or no more.",
                    413: "The clip is too large.",
                    415: "It is no form.",
                    429: "Too many clips wait already.",
                    503: "The model cannot be had.",
                    507: "The voice cannot be written.",
                }
            ),
        },
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}},
    )
    async def add(request: Request) -> dict[str, Any]:
        service.uploads.check()
        async with _form(request) as form:
            upload = await _read(form, service)
        async with service.clips.turn():
            samples = await read_clip(upload.clip, "audio_sample")
        async with service.uploads.turn():
            # Goes on when the client is gone: a thread cannot be stopped, and needs the model until it is done.
            return await asyncio.shield(asyncio.create_task(_kept(service, upload, samples)))

    @router.get(
        "/v1/audio/voices", summary="List voices", response_model=None, responses={200: _answer("All voices.", _LIST)}
    )
    def all_voices() -> dict[str, Any]:
        return {"object": "list", "data": voices.listing(), "voices": voices.names()}

    @router.get(
        "/v1/audio/voices/{id}",
        summary="One uploaded voice",
        response_model=None,
        responses={200: _answer("The voice.", _OBJECT), **_NO_VOICE},
        openapi_extra={"parameters": [_ID]},
    )
    def one_voice(request: Request) -> dict[str, Any]:
        return voices.get(request.path_params["id"])

    @router.delete(
        "/v1/audio/voices/{id}",
        summary="Delete an uploaded voice",
        response_model=None,
        responses={200: _answer("It is gone.", _DELETED), **_NO_VOICE},
        openapi_extra={"parameters": [_ID]},
    )
    def delete(request: Request) -> dict[str, Any]:
        id = request.path_params["id"]
        voices.delete(id)
        return {"id": id, "object": "audio.voice.deleted", "deleted": True}

    return router


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The form in the body, whose files go with the block. Raises `ApiError`."""
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise ApiError(415, f"the body is {kind[:60].decode('latin-1') or 'of no type'}, expected multipart/form-data")
    if parameters.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise ApiError(415, "a form is read as UTF-8: leave its charset out")
    try:
        form = await request.form(max_files=1, max_fields=len(_FIELDS), max_part_size=_MOST_FIELD_BYTES)
    except HTTPException as error:  # as Starlette hides a MultiPartException
        raise ApiError(400, f"the form cannot be read: {error.detail}", code="invalid_form") from error
    except OSError as error:  # Starlette puts files of more than 1 MB into a temporary one
        log.error("an upload has no room in the directory of temporary files: %s", error)
        raise ApiError(507, "the clip cannot be written; the server's log says why", code="storage") from error
    try:
        yield form
    finally:
        await form.close()


async def _read(form: FormData, service: Service) -> _Upload:
    if unknown := next((name for name in form if name not in _FIELDS), None):
        raise ApiError(
            400, f"unknown field {unknown[:40]!r}; known are {', '.join(_FIELDS)}", unknown[:40], "unknown_parameter"
        )
    if form.get("type", "audio_sample") != "audio_sample":
        raise ApiError(400, "type must be audio_sample: voices are made of clips alone", "type", "invalid_value")
    consent = _text(form, "consent", "true, if whose voice it is has agreed to that")
    if consent.strip().lower() not in _CONSENT:
        raise ApiError(400, "consent must be true: whose voice it is has agreed", "consent", "consent_required")
    name = _text(form, "name", "what the voice is to be called").strip()
    await asyncio.to_thread(service.voices.check_new, name)
    words = "ref_text" if "ref_text" in form and "text" not in form else "text"
    text = _text(form, words, "what is said in the clip, word for word")
    if len(text) > MAX_TEXT_CHARS:
        raise ApiError(400, f"{words} has {len(text)} characters, at most {MAX_TEXT_CHARS} are said in a clip", words)
    speaker = form.get("speaker", "0")
    if not (isinstance(speaker, str) and speaker.isascii() and speaker.isdigit() and len(speaker) <= 3):
        raise ApiError(400, f"speaker must be a number from 0 to {_MOST_SPEAKER}", "speaker", "invalid_value")
    clip = form.get("audio_sample")
    if not isinstance(clip, UploadFile):
        raise ApiError(400, "audio_sample must be a file, with its filename", "audio_sample", "missing")
    most = service.options.most_upload_bytes
    if (clip.size or 0) > most:
        raise ApiError(413, f"audio_sample has {clip.size} bytes, at most {most} are read", "audio_sample")
    return _Upload(name, text, int(speaker), await clip.read())


def _text(form: FormData, field: str, what: str) -> str:
    value = form.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ApiError(400, f"{field} is missing: {what}", field, "missing")
    return value


async def _kept(service: Service, upload: _Upload, samples: Samples) -> dict[str, Any]:
    async with service.model.use() as tts:
        try:
            voice = await asyncio.to_thread(
                Voice.from_audio, samples, upload.text, tts.codec, speaker=upload.speaker, name=upload.name
            )
        except ValueError as error:
            raise ApiError(400, str(error), "audio_sample", "invalid_value") from error
    return await asyncio.to_thread(service.voices.add, voice)
