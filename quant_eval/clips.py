"""The clips of a report: the worst of each level, and the spread of all."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    own.sort(key=lambda each: (each.values[NEW_FAILURES.key] <= 0, -each.values.get(DISTORTION.key, 0.0), each.key))
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


def _why(record: Record) -> str:
    if record.values[NEW_FAILURES.key] > 0:
        return f"fails where the reference does not: {', '.join(record.detail['failures'])}"
    if DISTORTION.key in record.values:
        return f"{DISTORTION.label.lower()} {record.values[DISTORTION.key]:.1f} {DISTORTION.unit}"
    return "nothing is heard"


def distributions(plan: Plan, by_level: Mapping[str, Sequence[Record]]) -> list[Distribution]:
    """The clips' own scalars at each level."""
    named = (("duration", "s", "duration_s"), ("mean pause", "s", "pause_mean_s"), ("F0 median", "Hz", "f0_median_hz"))
    found = []
    for candidate in plan.candidates:
        scalars: list[dict[str, Any]] = [
            record.detail["scalars"] for record in by_level[candidate.name] if record.stage == FREE
        ]
        for name, unit, key in named:
            values = [float(each[key]) for each in scalars if key in each]
            if values:
                found.append(Distribution(level=candidate.name, name=name, unit=unit, values=values))
    return found
