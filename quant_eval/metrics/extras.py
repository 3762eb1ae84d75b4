"""Optional measurements behind one interface: word error rate, speaker similarity, predicted opinion scores.

Each needs a program or a model that the user installs. One that is absent is reported as "not run" with the reason,
never as a number. None of them is gated.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...core.arrays import F32Array
from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import resampled
from .. import results
from .transcripts import is_latin, word_error_rate

_MODELS_RATE_HZ = 16_000
"""What speech recognisers and the predictors of opinion scores hear."""


class Extra(Protocol):
    """One optional measurement."""

    @property
    def name(self) -> str:
        """As in results."""

    @property
    def unit(self) -> str:
        """As printed; "" for a plain number."""

    def available(self) -> str | None:
        """None if it can run here, else what is missing and how to get it. Loads and fetches nothing."""

    def score(self, samples: F32Array, text: str, reference: F32Array) -> float:
        """The value of one clip.

        Args:
            samples: The clip, float32 [n] at 24 kHz.
            text: What it should say.
            reference: The reference's rendition of it, as `samples`.
        """


class ExtraClip(NamedTuple):
    """One clip to measure."""

    level: str
    text: str
    samples: F32Array
    reference: F32Array


def measure(extra: Extra, clips: Iterable[ExtraClip]) -> results.Extra:
    """The mean of `extra` over the clips of each level. What fails is "not run", with its reason: nothing half done.

    Clips are taken one by one, so they need not all be in memory.
    """

    def not_run(reason: str) -> results.Extra:
        return results.Extra(name=extra.name, unit=extra.unit, values={}, why_not=f"not run: {reason}")

    if (reason := extra.available()) is not None:
        return not_run(reason)
    scores: dict[str, list[float]] = {}
    for clip in clips:
        try:
            value = float(extra.score(clip.samples, clip.text, clip.reference))
        except (Exception, SystemExit) as error:  # another's program: whatever it raises, the evaluation goes on
            return not_run(
                f"{extra.name} failed on {clip.level}, {clip.text[:40]!r}: {str(error) or type(error).__name__}"
            )
        if not math.isfinite(value):
            return not_run(f"{extra.name} gave {value} for {clip.level}, {clip.text[:40]!r}: expected a finite number")
        scores.setdefault(clip.level, []).append(value)
    if not scores:
        return not_run("there are no clips")
    means = {level: math.fsum(values) / len(values) for level, values in scores.items()}
    return results.Extra(name=extra.name, unit=extra.unit, values=means)


def make_extra(wanted: str) -> Extra:
    """The extra called `wanted`: a name of `EXTRAS`, or "name=module:function" for a function of the user's.

    That function is called as `function(samples, text, reference)`, see `Extra.score`. Raises `ValueError` on a name
    that is not known; whether the extra can run is for `Extra.available` to say.
    """
    name, is_function, target = wanted.partition("=")
    if is_function:
        return FunctionExtra(name, target)
    if name not in EXTRAS:
        raise ValueError(f"unknown extra {name!r}: known are {', '.join(EXTRAS)}, or pass NAME=MODULE:FUNCTION")
    return EXTRAS[name]()


@dataclass(frozen=True)
class FunctionExtra:
    """A function of the user's. Raises `ValueError` unless `target` is like "package.module:function"."""

    name: str
    target: str
    unit: str = ""

    def __post_init__(self) -> None:
        module, colon, function = self.target.partition(":")
        if not (self.name and colon and module and function.isidentifier()):
            raise ValueError(f"an extra of your own is NAME=MODULE:FUNCTION, not {self.name}={self.target}")

    def available(self) -> str | None:
        """None if the function can be imported."""
        try:
            self._function  # noqa: B018  (imports it)
        except (Exception, SystemExit) as error:  # importing runs another's program
            return f"{self.target} cannot be imported: {str(error) or type(error).__name__}"
        return None

    def score(self, samples: F32Array, text: str, reference: F32Array) -> float:
        """What the function says."""
        return float(self._function(samples, text, reference))

    @cached_property
    def _function(self) -> Callable[[F32Array, str, F32Array], float]:
        module, _, name = self.target.partition(":")
        function: Callable[[F32Array, str, F32Array], float] = getattr(importlib.import_module(module), name)
        if not callable(function):
            raise TypeError(f"{name} is no function")
        return function


class WordErrorRate:
    """Errors of what Whisper hears, in % of the words of the text: faster-whisper if that is installed, else whisper.

    Characters stand for words where a script has no spaces: see `transcripts.tokens`. Greedy, without context between
    segments: the same transcript every time. A text in Latin letters is heard as English, by `model`; another by
    `multilingual`, which finds out the language. A model is fetched by the library when it is first used, unless it is
    a directory.
    """

    name, unit = "wer", "%"

    def __init__(self, model: str = "base.en", multilingual: str = "base") -> None:
        self._model, self._multilingual = model, multilingual

    def available(self) -> str | None:
        """See `Extra`."""
        if _is_installed("faster_whisper") or _is_installed("whisper"):
            return None
        return "no speech recogniser: pip install faster-whisper (or openai-whisper)"

    def score(self, samples: F32Array, text: str, reference: F32Array) -> float:
        """See `Extra`. A mean over clips weighs short texts more than the usual rate over all words."""
        transcribe = self._english if is_latin(text) else self._any_language
        return word_error_rate(text, transcribe(resampled(samples, SAMPLE_RATE_HZ, _MODELS_RATE_HZ)))

    @cached_property
    def _english(self) -> Callable[[F32Array], str]:
        return _recogniser(self._model, "en")

    @cached_property
    def _any_language(self) -> Callable[[F32Array], str]:
        return _recogniser(self._multilingual, None)


def _recogniser(model: str, language: str | None) -> Callable[[F32Array], str]:
    options = {"language": language, "temperature": 0.0, "condition_on_previous_text": False}
    if _is_installed("faster_whisper"):
        fast: Any = importlib.import_module("faster_whisper").WhisperModel(model, device="cpu")

        def by_faster_whisper(samples: F32Array) -> str:
            segments, _ = fast.transcribe(samples, beam_size=1, **options)
            return " ".join(segment.text for segment in segments)

        return by_faster_whisper
    whisper: Any = importlib.import_module("whisper").load_model(model, device="cpu")

    def by_whisper(samples: F32Array) -> str:
        return str(whisper.transcribe(samples, fp16=False, **options)["text"])

    return by_whisper


class SpeakerSimilarity:
    """Cosine of the voices of a clip and of its reference's rendition, by Resemblyzer, whose model comes with it."""

    name, unit = "speaker_similarity", ""

    def available(self) -> str | None:
        """See `Extra`."""
        return None if _is_installed("resemblyzer") else "no speaker encoder: pip install resemblyzer"

    def score(self, samples: F32Array, text: str, reference: F32Array) -> float:
        """See `Extra`."""
        one, other = (self._embed(each) for each in (samples, reference))
        return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))

    def _embed(self, samples: F32Array) -> F32Array:
        library, encoder = self._library
        return np.asarray(
            encoder.embed_utterance(library.preprocess_wav(samples, source_sr=SAMPLE_RATE_HZ)), np.float32
        )

    @cached_property
    def _library(self) -> tuple[Any, Any]:
        library: Any = importlib.import_module("resemblyzer")
        return library, library.VoiceEncoder("cpu", verbose=False)


class Dnsmos:
    """Overall quality, 1 to 5, as predicted by DNSMOS P.835, by speechmos, whose models come with it."""

    name, unit = "dnsmos", "MOS"

    def available(self) -> str | None:
        """See `Extra`."""
        return None if _is_installed("speechmos") else "no DNSMOS: pip install speechmos librosa"

    def score(self, samples: F32Array, text: str, reference: F32Array) -> float:
        """See `Extra`. It refuses samples beyond full scale, which resampling can make."""
        dnsmos: Any = importlib.import_module("speechmos.dnsmos")
        heard = np.clip(resampled(samples, SAMPLE_RATE_HZ, _MODELS_RATE_HZ), -1.0, 1.0)
        return float(dnsmos.run(heard, sr=_MODELS_RATE_HZ)["ovrl_mos"])


class Utmos:
    """Naturalness as predicted by UTMOS. No package brings its model, so this only says how to have it."""

    name, unit = "utmos", "MOS"

    def available(self) -> str | None:
        """See `Extra`."""
        return "no package brings UTMOS: pass utmos=MODULE:FUNCTION with a function of your own"

    def score(self, samples: F32Array, text: str, reference: F32Array) -> float:
        """Never called."""
        raise NotImplementedError(self.available())


EXTRAS: dict[str, Callable[[], Extra]] = {
    "wer": WordErrorRate,
    "speaker_similarity": SpeakerSimilarity,
    "dnsmos": Dnsmos,
    "utmos": Utmos,
}
"""By name, in the order of the report."""


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def measure_all(wanted: Sequence[str], clips: Callable[[], Iterable[ExtraClip]]) -> list[results.Extra]:
    """Every known extra, and those of the user's: who was not asked for is "not run: not asked for".

    `clips` is called once for each that runs. Raises `ValueError` as `make_extra`, before anything is measured.
    """
    asked = [make_extra(each) for each in wanted]
    names = [extra.name for extra in asked]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"the extra {twice[0]} is asked for twice: give one of them another name")
    rest = [
        results.Extra(name=extra.name, unit=extra.unit, values={}, why_not="not run: not asked for")
        for extra in (make() for make in EXTRAS.values())
        if extra.name not in names
    ]
    return [*(measure(extra, clips()) for extra in asked), *rest]
