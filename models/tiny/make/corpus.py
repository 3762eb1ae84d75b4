"""What the language model learns from: sentences as text and codes, made of the words' codes.

The codec codes every frame on its own, so the codes of a sentence are those of its words one after the other, and each
word is coded once.
"""

from dataclasses import dataclass

import numpy as np

from ...mimi import FRAME_SAMPLES
from .linear_codec import LinearCodec
from .renderings import Rendering, Renderings
from .rvq import Codes
from .sentences import Samples, Sentence, parts, samples_of
from .words import Speaker

_SILENCE = np.zeros(FRAME_SAMPLES, np.float32)


@dataclass(frozen=True)
class Span:
    """Where a word lies in a sentence: frames `[start, stop)`."""

    word: str
    start: int
    stop: int


class Corpus:
    """Any sentence of a vocabulary, coded.

    Args:
        renderings: Its words.
        codec: Codes them, frame by frame.
    """

    def __init__(self, renderings: Renderings, codec: LinearCodec) -> None:
        self.renderings = renderings
        self.codec = codec
        self._silence = codec.encode(_SILENCE)
        self._codes: dict[tuple[str, str, str, int], Codes] = {}

    def speaker(self, sentence: Sentence) -> Speaker:
        """Who says it."""
        return self.renderings.speakers[sentence.speaker]

    def codes(self, sentence: Sentence) -> Codes:
        """Int64 `[frames, codebooks]`, equal to coding `samples`; no frame of it is all zeros, which means EOS.

        Raises `ValueError` if the sentence is not one of these renderings.
        """
        return np.concatenate([self._part(part) for part in parts(self.renderings, sentence)])

    def samples(self, sentence: Sentence) -> Samples:
        """The reference before coding, float32 `[frames * 1920]`, 24 kHz."""
        return samples_of(self.renderings, sentence)

    def copy(self, sentence: Sentence) -> Samples:
        """The reference as the codec gives it back: the best that a model can do."""
        return self.codec.decode(self.codes(sentence))

    def spans(self, sentence: Sentence) -> list[Span]:
        """Where its words are."""
        spans: list[Span] = []
        frame = 0
        for part in parts(self.renderings, sentence):
            if isinstance(part, Rendering):
                spans.append(Span(part.word, frame, frame + part.frames))
                frame += part.frames
            else:
                frame += part
        return spans

    def _part(self, part: Rendering | int) -> Codes:
        if isinstance(part, int):
            return np.repeat(self._silence, part, axis=0)
        key = (part.word, part.kind, part.speaker, part.variant)
        if key not in self._codes:
            self._codes[key] = self.codec.encode(part.samples)
        return self._codes[key]
