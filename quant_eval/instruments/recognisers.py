"""What writes down what it hears: faster-whisper, whisper, or PocketSphinx with the model that comes with it."""

import importlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ...core.arrays import F32Array
from .instrument import version_of, why_missing
from .transcripts import is_latin

_PCM = 32767
_FEWEST_SAMPLES = 1600
"""0.1 s: in less there is no word, and no frame to decode."""


class Recogniser(Protocol):
    """One of them. The same sound gives the same words, whatever was heard before."""

    @property
    def by(self) -> str:
        """See `Instrument`."""

    @property
    def cost_s(self) -> float:
        """See `Instrument`."""

    def available(self) -> str | None:
        """See `Instrument`."""

    def knows(self, text: str) -> bool:
        """Whether it knows the language of `text`, as far as letters tell."""

    def heard(self, samples: F32Array, text: str) -> str:
        """What is said in `samples`, float32 `[n]` at 16 kHz; `text` only tells the language."""


class Whisper:
    """Of either package, greedily, without context between segments: the same transcript every time.

    A text in Latin letters is heard as English, by `model`; another by `multilingual`, which finds out the language.
    A model is fetched by the library when it is first used, unless it is a directory.
    """

    cost_s = 0.0

    def __init__(self, package: str, module: str, model: str = "base.en", multilingual: str = "base") -> None:
        """Of "faster-whisper" (faster_whisper) or "openai-whisper" (whisper)."""
        self._package, self._module = package, module
        self._model, self._multilingual = model, multilingual

    @property
    def by(self) -> str:
        """See `Recogniser`."""
        return f"{version_of(self._package)}, {self._model}, {self._multilingual}"

    def available(self) -> str | None:
        """See `Recogniser`."""
        missing = why_missing([self._module], "Whisper")
        return f"no Whisper: pip install {self._package}" if missing else None

    def knows(self, text: str) -> bool:
        """All."""
        return True

    def heard(self, samples: F32Array, text: str) -> str:
        """See `Recogniser`."""
        return self._english(samples) if is_latin(text) else self._any_language(samples)

    @cached_property
    def _english(self) -> Callable[[F32Array], str]:
        return self._transcriber(self._model, "en")

    @cached_property
    def _any_language(self) -> Callable[[F32Array], str]:
        return self._transcriber(self._multilingual, None)

    def _transcriber(self, model: str, language: str | None) -> Callable[[F32Array], str]:
        library: Any = importlib.import_module(self._module)
        options = {"language": language, "temperature": 0.0, "condition_on_previous_text": False}
        if self._module == "faster_whisper":
            fast: Any = library.WhisperModel(model, device="cpu")

            def by_faster_whisper(samples: F32Array) -> str:
                segments, _ = fast.transcribe(samples, beam_size=1, **options)
                return " ".join(segment.text for segment in segments)

            return by_faster_whisper
        whisper: Any = library.load_model(model, device="cpu")

        def by_whisper(samples: F32Array) -> str:
            return str(whisper.transcribe(samples, fp16=False, **options)["text"])

        return by_whisper


class PocketSphinx:
    """English, by the acoustic model, dictionary and trigrams of the package itself.

    Its trigrams make fewer errors than a loop over the words of a corpus, unless these are few: see docs/evaluation.md.
    """

    cost_s = 0.4

    @property
    def by(self) -> str:
        """See `Recogniser`."""
        return f"{version_of('pocketsphinx')}, en-us"

    def available(self) -> str | None:
        """See `Recogniser`."""
        return why_missing(["pocketsphinx"], "speech recogniser")

    def knows(self, text: str) -> bool:
        """English is in Latin letters."""
        return is_latin(text)

    def heard(self, samples: F32Array, text: str) -> str:
        """See `Recogniser`."""
        if len(samples) < _FEWEST_SAMPLES:
            return ""
        decoder = self._decoder
        # Means of cepstra and of noise are carried over to the next utterance otherwise.
        decoder.reinit_feat()
        decoder.start_utt()
        decoder.process_raw(np.round(_PCM * np.clip(samples, -1.0, 1.0)).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return "" if found is None else str(found.hypstr)

    @cached_property
    def _decoder(self) -> Any:
        library: Any = importlib.import_module("pocketsphinx")
        paths = {"hmm": "en-us/en-us", "dict": "en-us/cmudict-en-us.dict", "lm": "en-us/en-us.lm.bin"}
        files = {name: library.get_model_path(path) for name, path in paths.items()}
        return library.Decoder(library.Config(loglevel="FATAL", **files))
