"""`POST /v1/audio/speech`, as OpenAI's clients send it."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import ApiError
from ..service import Service
from ..sound.formats import FORMATS
from ..speech.request import SpeechRequest
from ..speech.response import SpeechResponse
from .refusals import refusals

_AUDIO = {"schema": {"type": "string", "format": "binary"}}
_REFUSALS = {
    400: "The request is wrong; `param` says where.",
    413: "It is too long.",
    415: "It is not JSON.",
    422: "The model said nothing.",
    429: "Too many wait already; `Retry-After` says when to come again.",
    503: "The server stops, or cannot speak.",
}


def routes(service: Service) -> APIRouter:
    """The endpoint of one server."""
    router = APIRouter()
    audio = {audio_format.media_type: _AUDIO for audio_format in FORMATS.values()}
    spoken: dict[str, Any] = {"description": "Sound, as it is made.", "content": {**audio, "text/event-stream": {}}}

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={200: spoken, **refusals(_REFUSALS)},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _schema()}},
            }
        },
        summary="Speak",
    )
    async def speak(request: Request) -> Response:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the body is {kind[:60] or 'of no type'}, expected application/json")
        asked = SpeechRequest.read(await request.body(), service.options.most_characters)
        if asked.ref_audio is None and asked.voice_name is not None:
            service.voices.check(asked.voice_name)
        service.check()
        return SpeechResponse(service, asked)

    return router


def _schema() -> dict[str, Any]:
    """Of the body, without references: in the document they would lead elsewhere."""
    schema = SpeechRequest.model_json_schema()
    kinds: dict[str, Any] = schema.pop("$defs")
    choices = schema["properties"]["voice"]["anyOf"]
    schema["properties"]["voice"]["anyOf"] = [kinds[c["$ref"].split("/")[-1]] if "$ref" in c else c for c in choices]
    return schema
