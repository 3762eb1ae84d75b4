"""The worst clips of each level: what was said, what is wrong, and the two F0 contours. Does not know the formats."""

import numpy as np

from ...results import Clip, Contour, Results
from ..view import NOTHING, Cell, Section, Table, heads
from ..words import label_of, metric_of, number, with_unit


def f0(results: Results) -> Section:
    """F0 of the very worst clip of each level, in numbers."""
    section = Section(
        "f0",
        "F0 of the worst clips",
        "The worst clip of each level over its reference. A flattened line is flattened intonation; a line that ends "
        "early or late is a change of tempo or of pauses.",
    )
    clips = worst_of_each(results)
    if not clips:
        return section.without(_NO_CLIPS)
    head = heads("Level", "Prompt", "Median F0, reference", "Median F0, level", "Range, reference", "Range, level")
    rows = tuple(
        (
            Cell(label_of(clip.level)),
            Cell(clip.prompt, f"seed {clip.seed}"),
            _median(clip.reference_contour),
            _median(clip.contour),
            _range(clip.reference_contour),
            _range(clip.contour),
        )
        for clip in clips
    )
    return section.of(
        Table("F0 of voiced steps: median, and 5th to 95th percentile", head, rows, words=frozenset({0, 1}))
    )


def clips(results: Results) -> Section:
    """All clips that a report has."""
    section = Section(
        "clips",
        "The worst clips, to be heard",
        "Up to five of each level, chosen because they are bad: they say how bad it gets, not how it is on average.",
    )
    if not results.clips:
        return section.without(_NO_CLIPS)
    head = heads("Level", "Prompt", "Why", "Text", "Values")
    rows = tuple(
        (
            Cell(label_of(clip.level)),
            Cell(clip.prompt, f"{clip.category}, seed {clip.seed}"),
            Cell(clip.why),
            Cell(clip.text, is_quote=True),
            Cell("; ".join(f"{name} {value}" for name, value in clip_values(clip))),
        )
        for clip in results.clips
    )
    return section.of(Table("The worst first", head, rows, words=frozenset(range(5))))


def worst_of_each(results: Results) -> list[Clip]:
    """The first clip of each level, which is the worst."""
    first: dict[str, Clip] = {}
    for clip in results.clips:
        first.setdefault(clip.level, clip)
    return list(first.values())


def clip_values(clip: Clip) -> list[tuple[str, str]]:
    """(label, value with unit) of each metric of a clip."""
    found = ((metric_of(key), value) for key, value in clip.metrics.items())
    return [(metric.label, with_unit(number(value, metric.digits), metric.unit)) for metric, value in found]


def voiced_hz(contour: Contour) -> list[float]:
    """F0 of the voiced steps."""
    return [hz for hz in contour.f0_hz if hz > 0]


def f0_in_words(contour: Contour) -> str:
    """For those who cannot see the plot."""
    if not voiced_hz(contour):
        return "unvoiced throughout"
    return f"median {_median(contour).text}, range {_range(contour).text}"


def _median(contour: Contour) -> Cell:
    voiced = voiced_hz(contour)
    return Cell(with_unit(number(float(np.median(voiced)), 0), "Hz")) if voiced else NOTHING


def _range(contour: Contour) -> Cell:
    voiced = voiced_hz(contour)
    if not voiced:
        return NOTHING
    low, high = np.percentile(voiced, (5, 95))
    return Cell(with_unit(number(12 * float(np.log2(high / low)), 1), "semitones"))


_NO_CLIPS = "No clips were kept: the free stage was not run, or no level differs from its reference."
