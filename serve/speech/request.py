"""What a request to speak says: the fields of OpenAI's API and ours, and nothing beyond. It knows no model."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...runtime.options import SpeechOptions
from ...runtime.voice import MAX_TEXT_CHARS
from ..errors import ApiError
from ..sound.formats import FormatName

_SPEECH = SpeechOptions()
_MOST_NAME_CHARS = 256
_BRIEF = 200
"""Characters of a fault that are sent back."""
_MOST_UNKNOWN_CHARS = 40
"""Of a field that nobody knows, beside those that there are."""
_WORDS = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "is empty",
    "string_type": "must be a string",
}
"""What pydantic finds, by its names for it. Nothing of a request is in what it adds to these."""


class VoiceReference(BaseModel):
    """A voice by its id, as OpenAI's API has it beside a plain name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=_MOST_NAME_CHARS)]


class SpeechRequest(BaseModel):
    """What is to be said, how, by whom, and in which format. A field that is null is as one that is left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1, max_length=_MOST_NAME_CHARS, description="Any: there is one.")]
    input: Annotated[str, Field(min_length=1, description="What to say.")]
    voice: Annotated[str, Field(min_length=1, max_length=_MOST_NAME_CHARS)] | VoiceReference | None = Field(
        None, description="Name or id of a voice; may be left out where there is a `ref_audio`."
    )
    instructions: str | None = Field(None, description="Ignored, and said to be: the model takes none.")
    response_format: FormatName = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = Field(True, description="False: the answer is whole, with its length.")
    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="Another one, another take.")] = _SPEECH.seed
    temperature: Annotated[float, Field(ge=0, le=10)] = _SPEECH.temperature
    top_k: Annotated[int, Field(ge=1, lt=1 << 31)] = _SPEECH.top_k
    speaker: Annotated[int, Field(ge=0, lt=1 << 31)] | None = Field(None, description="Number of the speaker.")
    ref_audio: str | None = Field(None, description="A clip of the voice in base64, or a data: URL.")
    ref_text: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = Field(
        None, description="What is said in `ref_audio`, word for word."
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}

    @property
    def voice_name(self) -> str | None:
        """Name or id of the voice that is asked for."""
        return self.voice.id if isinstance(self.voice, VoiceReference) else self.voice

    @property
    def is_streamed(self) -> bool:
        """Whether the answer leaves piece by piece. Events do in any case."""
        return self.stream or self.stream_format == "sse"

    @property
    def options(self) -> SpeechOptions:
        """How to speak."""
        return SpeechOptions(temperature=self.temperature, top_k=self.top_k, seed=self.seed)

    @classmethod
    def read(cls, body: bytes, most_characters: int) -> "SpeechRequest":
        """The request in a JSON body. Raises `ApiError` that names the field, and never says what was in it."""
        try:
            request = cls.model_validate_json(body)
        except ValidationError as error:
            raise _refusal(error) from None
        if len(request.input) > most_characters:
            raise ApiError(
                400,
                f"input has {len(request.input)} characters, at most {most_characters} are spoken at once: send it in "
                "parts",
                param="input",
                code="string_above_max_length",
            )
        if request.voice is None and request.ref_audio is None:
            raise ApiError(400, "voice is missing: a name of GET /v1/audio/voices", param="voice", code="missing")
        if (request.ref_audio is None) != (request.ref_text is None):
            missing = "ref_audio" if request.ref_audio is None else "ref_text"
            raise ApiError(400, f"{missing} is missing: a clip, and what is said in it, go together", param=missing)
        return request


def _refusal(error: ValidationError) -> ApiError:
    fault = error.errors(include_url=False, include_input=False)[0]
    name = str(fault["loc"][0])[:_BRIEF] if fault["loc"] else None
    if fault["type"] == "extra_forbidden":
        known = ", ".join(SpeechRequest.model_fields)
        message = f"unknown field {str(name)[:_MOST_UNKNOWN_CHARS]!r}; known are {known}"
        return ApiError(400, message, param=name, code="unknown_parameter")
    if fault["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=name, code="missing")
    if name is None:
        message = fault["msg"][:_BRIEF]
    elif words := _WORDS.get(fault["type"]):
        message = f"{name} {words.format(**fault.get('ctx', {}))}"
    else:
        message = f"{name}: {fault['msg'][:_BRIEF]}"
    return ApiError(400, message, param=name, code=fault["type"])
