"""The clips of a report: the worst of each level, and the spread of all."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import fsum

import numpy as np

from .corpus import Prompt
from .metric import FREE
from .metrics.failures import NEW_FAILURES
from .prosody.compare import DISTORTION
from .prosody.sound import STEP_S
from .results import Clip, Contour, Distribution
from .run.candidate import Candidate
from .run.plan import Plan
from .run.record import Record

WORST_CLIPS = 5


def worst_clips(plan: Plan, candidate: Candidate, records: Sequence[Record]) -> list[Clip]:
    """Up to five of a candidate, the worst first: those that fail, then those that differ most in sound."""
    free = [record for record in records if record.stage == FREE]
    base = {(record.prompt, record.seed): record for record in free if record.level == plan.reference.name}
    prompts: dict[str, Prompt] = {prompt.id: prompt for prompt in plan.corpus.prompts}
    own = [record for record in free if record.level == candidate.name and (record.prompt, record.seed) in base]
    own.sort(key=lambda record: (not _fails_anew(record), -record.values.get(DISTORTION.key, 0.0), record.key))
    clips = []
    for record in own[:WORST_CLIPS]:
        other, prompt = base[record.prompt, record.seed], prompts[record.prompt]
        clips.append(
            Clip(
                level=candidate.name,
                prompt=prompt.id,
                category=prompt.category,
                text=prompt.text,
                seed=record.seed,
                why=_why(record),
                reference_audio=other.files["audio"],
                audio=record.files["audio"],
                reference_contour=Contour(step_s=STEP_S, f0_hz=other.detail["f0_hz"]),
                contour=Contour(step_s=STEP_S, f0_hz=record.detail["f0_hz"]),
                metrics=record.values,
            )
        )
    return clips


def _fails_anew(record: Record) -> bool:
    """A clip that is clean where the reference's fails counts below 0."""
    return record.values[NEW_FAILURES.key] > 0


def _why(record: Record) -> str:
    if _fails_anew(record):
        return f"fails where the reference does not: {', '.join(record.detail['failures'])}"
    if DISTORTION.key in record.values:
        return f"{DISTORTION.label.lower()} {record.values[DISTORTION.key]:.1f} {DISTORTION.unit}"
    return "nothing is heard"


_SCALARS = (
    ("duration", "s", "duration_s"),
    ("mean pause", "s", "pause_mean_s"),
    ("speech rate", "syllables/s", "speech_rate_hz"),
    ("F0 median", "Hz", "f0_median_hz"),
    ("F0 range", "semitones", "f0_range_semitones"),
)
"""What is shown of all clips: name, unit, key in their records."""


def distributions(plan: Plan, by_level: Mapping[str, Sequence[Record]]) -> list[Distribution]:
    """The clips' own scalars at each level, and how far they lie from the reference's.

    Between two seeds there are fewer clips than between two levels, so the floor is rather high than low.
    """
    found = []
    for name, unit, key in _SCALARS:
        base = _by_seed(by_level.get(plan.reference.name, ()), key)
        pooled = _pooled(base)
        pairs = [wasserstein(one, other) for one, other in combinations(base.values(), 2)]
        for candidate in plan.candidates:
            values = _pooled(_by_seed(by_level[candidate.name], key))
            if not values:
                continue
            is_compared = bool(pooled) and candidate.name != plan.reference.name
            found.append(
                Distribution(
                    level=candidate.name,
                    name=name,
                    unit=unit,
                    values=values,
                    shift=wasserstein(values, pooled) if is_compared else None,
                    shift_floor=fsum(pairs) / len(pairs) if pairs else None,
                )
            )
    return found


def wasserstein(first: Sequence[float], second: Sequence[float]) -> float:
    """W1 distance of two samples of one number each, in its unit: how far values must be moved to make one the other.

    The area between the two empirical distribution functions, exact also for samples of different size.
    Source: Vallender, "Calculation of the Wasserstein distance between probability distributions on the line" (1974).

    Raises:
        ValueError: A sample is empty, or a value is not finite.
    """
    one, other = (np.sort(np.asarray(values, np.float64)) for values in (first, second))
    for values in (one, other):
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise ValueError("a distribution needs one finite value or more: leave out clips that have none")
    points = np.sort(np.concatenate([one, other]))
    below = [np.searchsorted(values, points[:-1], side="right") / len(values) for values in (one, other)]
    return float(np.abs(below[0] - below[1]) @ np.diff(points))


def _by_seed(records: Sequence[Record], key: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for record in records:
        if record.stage == FREE and key in record.detail["scalars"]:
            found.setdefault(record.seed, []).append(float(record.detail["scalars"][key]))
    return found


def _pooled(by_seed: Mapping[int, Sequence[float]]) -> list[float]:
    return [value for values in by_seed.values() for value in values]
