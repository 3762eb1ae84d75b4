"""All metrics, gathered from where they are declared: beside the functions that compute them."""

from collections.abc import Iterable

from ..instruments.differences import INSTRUMENTS
from ..metric import Family, Metric
from ..prosody import compare
from . import codes, divergence, failures

_FAMILIES: tuple[Family, ...] = (
    divergence.DISTRIBUTIONS,
    divergence.ENDS,
    codes.FLIPS,
    compare.ALIGNED,
    compare.RENDITIONS,
    codes.SEMANTIC,
    compare.VOICES,
    codes.PATHS,
    failures.ANEW,
    INSTRUMENTS,
)

_TEACHER_FORCED: tuple[Family, ...] = (divergence.DISTRIBUTIONS, codes.FLIPS, compare.ALIGNED)

TWINS: dict[str, Metric] = {metric.key: metric.on_recordings() for family in _TEACHER_FORCED for metric in family}
"""By the key of what is measured of the reference's own speech: the same of recordings."""

METRICS: dict[str, Metric] = {metric.key: metric for family in _FAMILIES for metric in family} | {
    twin.key: twin for twin in TWINS.values()
}
"""By key, in the order in which reports show them."""


def frame_weights(keys: Iterable[str], frames: int) -> dict[str, float]:
    """How much a clip of so many frames counts: by key, for metrics that are means over frames."""
    return {key: float(frames) for key in keys if METRICS[key].is_per_frame}
