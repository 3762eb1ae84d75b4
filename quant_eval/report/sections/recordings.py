"""People's speech beside the reference's own: what a level makes of either. Does not know the formats."""

from ...metric import LOGITS, ONE_STEP, RECORDINGS
from ...metrics.codes import FLIP_RATE
from ...metrics.divergence import AT_A_GLANCE
from ...metrics.table import METRICS, TWINS
from ...results import MetricResult, Results
from ..view import NOTHING, Cell, Section, Table, heads
from ..words import BOUNDS, label_of, number, quantity, spread

_SHOWN = {metric.key: TWINS[metric.key].key for metric in (*AT_A_GLANCE, FLIP_RATE)}


def has_recordings(results: Results) -> bool:
    """Whether anything was measured on them."""
    return any(entry.metric in METRICS and METRICS[entry.metric].needs == RECORDINGS for entry in results.metrics)


def recordings(results: Results) -> Section:
    """A row for each level and metric: on its own speech, and on recordings."""
    section = Section(
        "recordings",
        "On its own speech, and on people's",
        "All levels have heard the same: what the reference says, and what people have said. A model judged on its own "
        "samples is judged where it is sure, so people's speech is judged by itself, with the same margins.",
    )
    found = {(entry.level, entry.metric): entry for entry in results.metrics}
    levels = dict.fromkeys(level for level, metric in found if metric in _SHOWN.values())
    rows = [
        (
            Cell(label_of(level)),
            Cell(METRICS[key].label, quantity(METRICS[key])),
            *(_estimated(found.get((level, metric))) for metric in (key, twin)),
        )
        for level in levels
        for key, twin in _SHOWN.items()
        if (level, twin) in found
    ]
    if not rows:
        return section.without(f"Not measured in the stages {LOGITS} and {ONE_STEP}.")
    head = heads("Level", "Metric", "Own speech", "Recordings")
    return section.of(Table(f"Mean and {BOUNDS}", head, tuple(rows), words=frozenset({0, 1})))


def _estimated(entry: MetricResult | None) -> Cell:
    if entry is None:
        return NOTHING
    digits = METRICS[entry.metric].digits
    return Cell(number(entry.estimate.value, digits), spread(entry.estimate, digits))
