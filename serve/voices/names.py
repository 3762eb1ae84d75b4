"""Which voice a name means: an uploaded one, one of the operator, or a name that clients of OpenAI's API know."""

from dataclasses import replace
from pathlib import Path

from ...runtime.tts import MisoTTS
from ...runtime.voice import Voice
from ..errors import ApiError
from .named import named_voices
from .seeded import ALIASES, Hold, SeededSpeakers
from .spelling import check_name, spelled
from .store import StoredVoice, VoiceStore

DEFAULT = "default"
"""The model's speaker 0 without a voice: somebody else each time."""


class Voices:
    """All voices of a server. Thread-safe.

    A name means the operator's voice, or else an alias, or else an uploaded voice; ids are of uploaded ones alone.
    """

    def __init__(self, directory: Path | None, *, most: int) -> None:
        """Read the operator's voices in `directory`, and keep up to `most` uploaded ones there; None keeps none.

        Raises `ValueError` with one line if the directory or its `voices.toml` cannot be used.
        """
        self._store = None if directory is None else VoiceStore(directory, most=most)
        self._named = {} if directory is None else named_voices(directory)
        self._seeded = SeededSpeakers()
        self._fixed = dict.fromkeys((DEFAULT, *ALIASES, *self._named))
        """Names that an upload cannot have; in this order."""

    def names(self) -> list[str]:
        """All that a request may name, once each: uploaded voices by their ids where another has their name."""
        names = dict(self._fixed)
        for voice in self._uploaded():
            names[voice.id if voice.name in names else voice.name] = None
        return list(names)

    def listing(self) -> list[dict[str, str | int]]:
        """Uploaded voices, oldest first, in the contract's shape."""
        return [voice.as_dict() for voice in self._uploaded()]

    def get(self, id: str) -> dict[str, str | int]:
        """An uploaded voice in the contract's shape. Raises `ApiError` (404) if it is not there."""
        return self._kept(404).get(id).as_dict()

    def check(self, name: str) -> None:
        """Raise `ApiError` if no voice has this name or id. Cheap, and without the model."""
        name = spelled(name)
        if name not in self._fixed:
            self._found(name)

    def resolve(self, name: str, tts: MisoTTS, hold: Hold) -> Voice | None:
        """The voice of a name or id; None is the model's plain speaker 0.

        Takes some seconds when a seeded speaker is first heard; `hold` gets the streams that say it. Raises `ApiError`
        if there is no such voice or it was made for another model, and as `SeededSpeakers.voice`.
        """
        name = spelled(name)
        if name in self._named:
            voice = self._named[name]
        elif name in ALIASES:
            return self._seeded.voice(name, tts, hold)
        elif name == DEFAULT:
            return None
        else:
            voice = self._loaded(name)
        try:
            voice.check(tts.codec.codebooks, tts.engine.spec.audio_vocab)
        except ValueError as error:
            raise ApiError(400, str(error), param="voice", code="voice_of_another_model") from error
        return voice

    def check_new(self, name: str) -> None:
        """Raise `ApiError` if no voice of this name can be uploaded: cheap, and before the clip is read."""
        store = self._kept(403)
        self._check_free(name)
        store.check_room(spelled(name))

    def add(self, voice: Voice) -> dict[str, str | int]:
        """Keep an uploaded voice under its name, and say it in the contract's shape. Raises `ApiError`."""
        store = self._kept(403)
        self._check_free(voice.name)
        return store.add(replace(voice, name=spelled(voice.name))).as_dict()

    def delete(self, id: str) -> None:
        """Delete an uploaded voice. Raises `ApiError` (404) if it is not there."""
        self._kept(404).delete(id)

    def _check_free(self, name: str) -> None:
        try:
            check_name(name)
        except ValueError as error:
            raise ApiError(400, str(error), param="name", code="invalid_value") from error
        if spelled(name).casefold() in {fixed.casefold() for fixed in self._fixed}:
            raise ApiError(400, f"{name!r} is a voice of this server: choose another name", "name", "name_taken")

    def _uploaded(self) -> list[StoredVoice]:
        return [] if self._store is None else self._store.all()

    def _kept(self, status: int) -> VoiceStore:
        if self._store is None:
            raise ApiError(
                status,
                "this server keeps no voices: its operator enables that with --voices DIR",
                code="voices_disabled",
            )
        return self._store

    def _found(self, name: str) -> StoredVoice:
        for voice in self._uploaded():
            if name == voice.id or (name == voice.name and name not in self._fixed):
                return voice
        raise _unknown(name)

    def _loaded(self, name: str) -> Voice:
        found = self._found(name)
        assert self._store is not None
        try:
            return self._store.load(found.id)
        except ApiError:  # deleted just now
            raise _unknown(name) from None


def _unknown(name: str) -> ApiError:
    message = f"no voice {name[:100]!r}: GET /v1/audio/voices lists those there are"
    return ApiError(400, message, param="voice", code="unknown_voice")
