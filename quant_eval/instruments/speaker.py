"""Whether a clip is in the voice that it should be in, by Resemblyzer, whose model comes with it."""

import importlib
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import F32Array
from ..metric import Range
from .instrument import HEARD_RATE_HZ, Heard, at_heard_rate, silenced, version_of, why_missing

_Embedding = NDArray[np.float64]


class SpeakerSimilarity:
    """Cosine of the voices of a clip and of what its speaker said before.

    Without such turns, or with nothing that sounds like speech in them, there is no value. A clip in which nothing
    sounds like speech resembles nobody: 0.
    """

    name, unit, is_kept, cost_s = "speaker_similarity", "", True, 0.07
    range: Range = (-1.0, 1.0)

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self.by = version_of("resemblyzer")
        self._voice: tuple[F32Array, _Embedding | None] | None = None

    def available(self) -> str | None:
        """See `Instrument`. The detector of speech that it needs imports pkg_resources, without asking for it."""
        return why_missing(["resemblyzer", "webrtcvad", "pkg_resources"], "speaker encoder")

    def score(self, heard: Heard) -> float | None:
        """See `Instrument`."""
        if heard.voice is None or (voice := self._embedded_voice(heard.voice)) is None:
            return None
        own = self._embedded(heard.samples)
        return 0.0 if own is None else float(own @ voice)

    def _embedded_voice(self, voice: F32Array) -> _Embedding | None:
        """Levels come one after the other with the same voice."""
        if self._voice is None or not np.array_equal(self._voice[0], voice):
            self._voice = voice, self._embedded(voice)
        return self._voice[1]

    def _embedded(self, samples: F32Array) -> _Embedding | None:
        """Of length 1; None without speech."""
        library, encoder = self._library
        if not np.any(samples):
            return None
        speech = library.preprocess_wav(at_heard_rate(samples), source_sr=HEARD_RATE_HZ)
        if not len(speech):
            return None
        found = np.asarray(encoder.embed_utterance(speech), np.float64)
        unit: _Embedding = found / np.linalg.norm(found)
        return unit

    @cached_property
    def _library(self) -> tuple[Any, Any]:
        with silenced():
            library: Any = importlib.import_module("resemblyzer")
            return library, library.VoiceEncoder("cpu", verbose=False)
