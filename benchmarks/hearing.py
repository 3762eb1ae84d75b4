"""Listening to the tiny model: which sentence, which word, which melody. Mel cepstra and dynamic time warping."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import parselmouth  # type: ignore[import-not-found]
from numpy.typing import NDArray

from miso_gguf.models.mimi import SAMPLE_RATE_HZ
from miso_gguf.models.tiny.make.corpus import Corpus
from miso_gguf.models.tiny.make.figures import STEP_S, f0_hz
from miso_gguf.models.tiny.make.sentences import Samples, Sentence
from miso_gguf.models.tiny.make.words import VARIANTS, Speaker

F64Array = NDArray[np.float64]
Path = NDArray[np.int64]
"""Pairs of steps that lie on each other, `[n, 2]`, from the first to the last."""

_COEFFICIENTS = 12
_WINDOW_S = 0.025


@dataclass(frozen=True)
class Heard:
    """Mel cepstra every 10 ms, `[steps, 12]`, without the energy."""

    cepstra: F64Array


def f0_contour(samples: Samples, speaker: Speaker, ceiling_hz: float | None = None) -> F64Array:
    """F0 every 10 ms in the speaker's range, 0 where unvoiced."""
    if ceiling_hz is None:
        return f0_hz(samples, speaker)
    return f0_hz(samples, Speaker(speaker.name, speaker.voice, 0, 0, speaker.floor_hz, ceiling_hz))


def mel_cepstra(samples: Samples) -> F64Array:
    """`[steps, 12]` for as many steps of 10 ms as `samples` have, by Praat."""
    padded = np.pad(samples.astype(np.float64), SAMPLE_RATE_HZ // 20)
    # Praat's logarithm of digital silence would be minus infinity: a noise at -80 dB, always the same.
    padded += np.random.default_rng(0).normal(0, 1e-4, len(padded))
    mfcc = parselmouth.Sound(padded, SAMPLE_RATE_HZ).to_mfcc(
        number_of_coefficients=_COEFFICIENTS, window_length=_WINDOW_S, time_step=STEP_S
    )
    steps = np.asarray(mfcc.to_array(), np.float64)[1:].T
    surplus = (len(steps) - round(len(samples) / SAMPLE_RATE_HZ / STEP_S)) // 2
    kept: F64Array = steps[surplus : len(steps) - surplus]
    return kept


def warp(a: F64Array, b: F64Array) -> tuple[float, Path]:
    """Dynamic time warping of `[n, d]` and `[m, d]`: mean distance along the best path, and that path."""
    n, m = len(a), len(b)
    local = np.sqrt(np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0))
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(n + m - 1):
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = local[i, j] + before
    path = [(n - 1, m - 1)]
    while path[-1] != (0, 0):
        row, column = path[-1]
        steps = ((row - 1, column - 1), (row - 1, column), (row, column - 1))
        path.append(min(steps, key=lambda step: float(total[step[0] + 1, step[1] + 1])))
    return float(total[n, m] / len(path)), np.array(path[::-1])


class Listener:
    """Knows the corpus' words by ear."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._template = cache(self._make_template)

    def hear(self, samples: Samples) -> Heard:
        """What can be compared of `samples`."""
        return Heard(mel_cepstra(samples))

    def warp(self, a: Heard, b: Heard) -> tuple[float, Path]:
        """See `warp`."""
        return warp(a.cepstra, b.cepstra)

    def word(self, sentence: Sentence, index: int, own: Heard, heard: Heard, path: Path) -> str:
        """Which of the vocabulary is heard where word `index` should be, by the nearest template of its speaker.

        `path` lays `heard` on the sentence's own reference, which tells where that is.
        """
        span = self._corpus.spans(sentence)[index]
        per_frame = len(own.cepstra) / self._corpus.spans(sentence)[-1].stop
        inside = (path[:, 0] >= span.start * per_frame) & (path[:, 0] < span.stop * per_frame)
        start, stop = path[inside, 1].min(), path[inside, 1].max() + 1
        piece = heard.cepstra[start:stop]
        kind = sentence.ending if index == len(sentence.words) - 1 else ""
        costs = {
            word: min(
                warp(self._template(word, kind, sentence.speaker, variant), piece)[0]
                for variant in range(VARIANTS[kind])
            )
            for word in self._corpus.renderings.words
        }
        return min(costs, key=costs.__getitem__)

    def f0_correlation(self, own: F64Array, heard: F64Array, path: Path) -> float:
        """Pearson correlation of log F0 along `path` where both are voiced; NaN where that is too little."""
        i, j = np.minimum(path[:, 0], len(own) - 1), np.minimum(path[:, 1], len(heard) - 1)
        a, b = own[i], heard[j]
        both = (a > 0) & (b > 0)
        if both.sum() < 10:
            return float("nan")
        return float(np.corrcoef(np.log(a[both]), np.log(b[both]))[0, 1])

    def _make_template(self, word: str, kind: str, speaker: str, variant: int) -> NDArray[Any]:
        rendering = self._corpus.renderings.get(word, kind, speaker, variant)
        return mel_cepstra(self._corpus.codec.decode(self._corpus.codec.encode(rendering.samples)))
