"""What of the clips is shown: the worst, to be heard, and the spread of all."""

from collections.abc import Mapping, Sequence
from typing import Any

from .corpus import Prompt
from .prosody.contours import STEP_S
from .results import Clip, Contour, Distribution
from .run.candidate import Contender
from .run.plan import Plan
from .run.record import Record
from .run.stages import FREE

WORST_CLIPS = 5


def worst_clips(plan: Plan, contender: Contender, records: Sequence[Record]) -> list[Clip]:
    """Up to five of a contender, the worst first: those that fail, then those that differ most in sound."""
    free = [record for record in records if record.layer == FREE]
    base = {(record.prompt, record.seed): record for record in free if record.level == plan.baseline.name}
    prompts: dict[str, Prompt] = {prompt.id: prompt for prompt in plan.corpus.prompts}
    own = [record for record in free if record.level == contender.name and (record.prompt, record.seed) in base]
    own.sort(key=lambda record: (-record.values["new_failures"], -record.values.get("mcd", 0.0), record.key))
    clips = []
    for record in own[:WORST_CLIPS]:
        other, prompt = base[record.prompt, record.seed], prompts[record.prompt]
        clips.append(
            Clip(
                level=contender.name,
                prompt=prompt.id,
                category=prompt.category,
                text=prompt.text,
                seed=record.seed,
                why=_why(record),
                baseline_audio=other.files["audio"],
                audio=record.files["audio"],
                baseline_contour=Contour(step_s=STEP_S, f0_hz=other.detail["f0_hz"]),
                contour=Contour(step_s=STEP_S, f0_hz=record.detail["f0_hz"]),
                metrics=record.values,
            )
        )
    return clips


def _why(record: Record) -> str:
    if record.values["new_failures"]:
        return f"fails where the baseline does not: {', '.join(record.detail['failures'])}"
    if "mcd" in record.values:
        return f"mel-cepstral distortion {record.values['mcd']:.1f} dB"
    return "nothing is heard"


def distributions(plan: Plan, by_level: Mapping[str, Sequence[Record]]) -> list[Distribution]:
    """The clips' own scalars at each level."""
    named = (("duration", "s", "duration_s"), ("mean pause", "s", "pause_mean_s"), ("F0 median", "Hz", "f0_median_hz"))
    found = []
    for contender in plan.contenders:
        scalars: list[dict[str, Any]] = [
            record.detail["scalars"] for record in by_level[contender.name] if record.layer == FREE
        ]
        for name, unit, key in named:
            values = [float(each[key]) for each in scalars if key in each]
            if values:
                found.append(Distribution(level=contender.name, name=name, unit=unit, values=values))
    return found
