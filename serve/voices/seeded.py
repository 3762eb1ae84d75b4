"""Speakers of the model's own: for each of some names one who sounds the same in every request.

Left alone, the model finds a speaker anew for each request, and clients send a request for each sentence. So when a
name is first used, the model says a sentence with that name's number and seed, and this is its voice from then on.
"""

import threading
from collections.abc import Callable
from typing import TypeAlias

from ...core.errors import MisoError
from ...models.mimi import FRAME_RATE_HZ
from ...runtime.options import SpeechOptions
from ...runtime.speech import SpokenSentence
from ...runtime.synthesis.stream import SpeechStream
from ...runtime.tts import MisoTTS
from ...runtime.voice import Voice

ALIASES = (
    "alloy",
    "ash",
    "ballad",
    "cedar",
    "coral",
    "echo",
    "fable",
    "marin",
    "nova",
    "onyx",
    "sage",
    "shimmer",
    "verse",
)
"""Names that clients of OpenAI's API offer. Source: the `voice` of its schema."""

SENTENCE = "Good morning, and thank you for asking me to read to you; I will take my time with every word of it."
"""About 5 s: enough to be known by, and short enough to leave room for what is said."""
LEAST_SECONDS, MOST_SECONDS = 2.0, 10.0
"""Nobody has said the sentence in less, or needs more for it."""
Hold: TypeAlias = Callable[[SpeechStream], None]

TRIES = 3
"""Seeds for one name, as long as the sentence does not come to its own end. Of failures the longest is kept."""


class SeededSpeakers:
    """The voices of `ALIASES`, made when they are first asked for. Thread-safe."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str, str], threading.Lock] = {}
        self._voices: dict[tuple[str, str, str], Voice | None] = {}

    def voice(self, name: str, tts: MisoTTS, hold: Hold) -> Voice | None:
        """The voice of one of `ALIASES`; None if the model says nothing at all. Errors as `MisoTTS.stream`.

        `hold` gets each stream that says the sentence. Who stops one gets `MisoError`, and the next makes the voice.
        The model that is loaded says it; the same level of the same bundle, loaded again, has it already.
        """
        key = (tts.level.manifest.fingerprint, tts.level.key, name)
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._voices:
                self._voices[key] = _made(name, tts, hold)
            return self._voices[key]


def _made(name: str, tts: MisoTTS, hold: Hold) -> Voice | None:
    number = ALIASES.index(name)
    best: SpokenSentence | None = None
    for seed in range(number * TRIES, (number + 1) * TRIES):
        said = _said(tts, number, seed, hold)
        is_whole = said.ended == "eos" and len(said.codes) >= LEAST_SECONDS * FRAME_RATE_HZ
        if best is None or is_whole or len(said.codes) > len(best.codes):
            best = said
        if is_whole:
            break
    return Voice(best.codes, SENTENCE, number, name) if best is not None and len(best.codes) else None


def _said(tts: MisoTTS, number: int, seed: int, hold: Hold) -> SpokenSentence:
    options = SpeechOptions(seed=seed, max_seconds=MOST_SECONDS, split_sentences=False, retry=False)
    with tts.stream(SENTENCE, speaker=number, options=options, live=False) as stream:
        hold(stream)
        for _ in stream:
            pass
    sentences = stream.speech.sentences
    if not sentences or sentences[0].ended == "closed":
        raise MisoError("who wanted this voice is gone before it was made")
    return sentences[0]
