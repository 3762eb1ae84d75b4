"""The metrics that instruments give: how much worse a level's clip scores than the reference's of the same prompt.

Both were spoken freely with the same seed. It knows no instrument.
"""

from ..metric import DIFFERENCE, FREE, Family

INSTRUMENTS = Family(FREE)
"""Of the scores of a level's clip and of the reference's."""


@INSTRUMENTS.metric(
    "WER", "% points", "lower", DIFFERENCE,
    "Words that a recogniser gets wrong, in percent of the text's, less those that it gets wrong in the reference's "
    "rendition.",
    digits=1, needs="wer",
)  # fmt: skip
def wer(level: float, reference: float) -> float:
    """Percentage points."""
    return level - reference


@INSTRUMENTS.metric(
    "Speaker similarity", "", "higher", DIFFERENCE,
    "Cosine of a clip's voice and of what its speaker said before, less that of the reference's rendition.",
    digits=3, needs="speaker_similarity",
)  # fmt: skip
def speaker_similarity(level: float, reference: float) -> float:
    """Difference of cosines."""
    return level - reference


@INSTRUMENTS.metric(
    "DNSMOS", "MOS", "higher", DIFFERENCE,
    "Overall quality as DNSMOS P.835 predicts it, 1 to 5, less that of the reference's rendition.",
    digits=3, needs="dnsmos",
)  # fmt: skip
def dnsmos(level: float, reference: float) -> float:
    """Difference of opinion scores."""
    return level - reference


@INSTRUMENTS.metric(
    "PLCMOS", "MOS", "higher", DIFFERENCE,
    "Quality with losses concealed as PLCMOS predicts it, 1 to 5, less that of the reference's rendition.",
    digits=3, needs="plcmos",
)  # fmt: skip
def plcmos(level: float, reference: float) -> float:
    """Difference of opinion scores."""
    return level - reference


@INSTRUMENTS.metric(
    "UTMOS", "MOS", "higher", DIFFERENCE,
    "Naturalness as UTMOS predicts it, 1 to 5, less that of the reference's rendition.",
    digits=3, needs="utmos",
)  # fmt: skip
def utmos(level: float, reference: float) -> float:
    """Difference of opinion scores."""
    return level - reference
