"""The word error rate of what a recogniser hears. It knows no recogniser."""

import math

from ..metric import Range
from .instrument import Heard, at_heard_rate
from .recognisers import Recogniser
from .transcripts import tokens, word_error_rate


class WordErrorRate:
    """Errors in % of the words of the text; characters stand for words where a script has no spaces.

    A mean over clips weighs short texts more than the usual rate over all words. A text without words, or in letters
    that the recogniser does not know, has no value.
    """

    name, unit, is_kept = "wer", "%", True
    range: Range = (0.0, math.inf)

    def __init__(self, recogniser: Recogniser) -> None:
        """By this recogniser."""
        self._recogniser = recogniser
        self.by, self.cost_s = recogniser.by, recogniser.cost_s

    def available(self) -> str | None:
        """See `Instrument`."""
        return self._recogniser.available()

    def score(self, heard: Heard) -> float | None:
        """See `Instrument`."""
        if not tokens(heard.text) or not self._recogniser.knows(heard.text):
            return None
        return word_error_rate(heard.text, self._recogniser.heard(at_heard_rate(heard.samples), heard.text))
