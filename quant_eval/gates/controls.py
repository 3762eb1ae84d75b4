"""Comparisons whose outcome is known beforehand: what shows that an evaluation can tell good from bad.

The reference must equal itself. Each gate must fail a damage of about twice its own margin, at every level's margin:
a gate that was never seen to fail proves nothing by passing. Along a ladder of damages every metric must rise. Nothing
is damaged here, and nothing measured.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..metric import FREE, Metric
from ..metrics.table import METRICS
from ..results import Control, Estimate, Rung
from ..stats.bootstrap import Bootstrap
from ..stats.estimates import FEWEST_PROMPTS, SIGNIFICANCE, estimate
from ..stats.observations import Observations, paired
from .config import Gate, Gates, margin_for
from .judge import judge, span

TIMES = 2.0
"""How far beyond its margin, as a multiple of what the margin tolerates, a gate must be able to see."""
_DECODER = "decoder"


@dataclass(frozen=True)
class Hurt:
    """A model that was damaged, and how far off it then was. Attributes as `results.Rung`; `measured` by metric."""

    half: str
    strength: float
    measured: Mapping[str, Observations]

    @property
    def name(self) -> str:
        """For people."""
        where = "all scales" if self.half == "both" else f"scales of the {_said(self.half)}"
        return f"{where} off by {100 * self.strength:g} %"


@dataclass(frozen=True)
class DamagedClips:
    """Clips that were damaged for one gate at one level's margin.

    Attributes:
        name: What was done to them, for people.
        level: Whose margin.
        metric: Of the gate.
        measured: By metric.
        unseen: What of the damage was not recognised for what it is, for people; "" if all was.
    """

    name: str
    level: str
    metric: str
    measured: Mapping[str, Observations]
    unseen: str = ""


def self_control(name: str, measured: Mapping[str, Observations]) -> Control:
    """The reference, run a second time: no metric of any clip may show a difference."""
    off = [
        METRICS[key].label
        for key, found in measured.items()
        if key in METRICS and METRICS[key].ideal is not None and (found.values != METRICS[key].ideal).any()
    ]
    found = "equal in every clip" if not off else f"differs: {', '.join(off)}"
    if not measured:
        found = "not measured"
    return Control(
        name=f"{name} against itself",
        expected="equal in every clip",
        found=found,
        behaved=bool(measured) and not off,
    )


def gate_controls(
    levels: Sequence[str], gates: Gates, models: Sequence[Hurt], clips: Sequence[DamagedClips]
) -> list[Control]:
    """One control for each gate and level, and for each way in which clips fail.

    A gate on logits or one step is shown the weakest of the damaged models that is beyond its margin `TIMES` times, and
    surely beyond it; if there is none, the one that is the furthest off. A gate on free runs is shown the clips that
    were damaged for it. Without any such damage a gate has no control.

    Args:
        levels: Keys of levels that are judged.
        gates: By which they are.
        models: From the weakest damage on; only those of both halves count.
        clips: All.
    """
    found = []
    for level in levels:
        for gate, margin in _margins(gates, level):
            if METRICS[gate.metric].stage == FREE:
                mine = [each for each in clips if (each.level, each.metric) == (level, gate.metric)]
                found += [_control(each.name, gate, level, margin, each.measured, each.unseen) for each in mine]
            elif shown := _weakest(models, gate, margin):
                found.append(_control(shown.name, gate, level, margin, shown.measured))
    return found


def _margins(gates: Gates, level: str) -> Iterator[tuple[Gate, float]]:
    for gate in gates.gates:
        margin = margin_for(gate, level)
        if margin is not None:
            yield gate, margin


def _weakest(models: Sequence[Hurt], gate: Gate, margin: float) -> Hurt | None:
    """That is surely beyond the margin, and `TIMES` times; the furthest one, where none is; None where none is at all.

    By its estimate, and not by the verdict: that is what is on trial.
    """
    both = [model for model in models if model.half == "both" and gate.metric in model.measured]
    # What is damaged most may have no voice left in most of the clips, and then there is nothing to judge by.
    measured = [model for model in both if model.measured[gate.metric].prompt_count >= FEWEST_PROMPTS]
    for model in measured:
        if is_surely_beyond(estimate(model.measured[gate.metric]), gate, margin):
            return model
    return max(measured, key=lambda model: times_margin(gate, margin, model.measured[gate.metric].mean), default=None)


def is_surely_beyond(found: Estimate, gate: Gate, margin: float) -> bool:
    """Whether a value is `TIMES` times what is tolerated away, and its nearer bound beyond the margin."""
    nearest = min((found.low, found.high), key=lambda bound: times_margin(gate, margin, bound))
    return times_margin(gate, margin, found.value) >= TIMES and times_margin(gate, margin, nearest) > 1


def times_margin(gate: Gate, margin: float, value: float) -> float:
    """How many times what is tolerated a value is off, on the side that counts: 1 on the margin; 0 is none at all."""
    ideal = METRICS[gate.metric].ideal or 0.0
    off, tolerated = value - ideal, abs(margin - ideal)
    if gate.kind == "at_least":
        off = -off
    elif gate.kind == "within":
        off = abs(off)
    if tolerated == 0:
        return math.inf if off > 0 else 0.0
    return off / tolerated


def _control(
    name: str, gate: Gate, level: str, margin: float, measured: Mapping[str, Observations], unseen: str = ""
) -> Control:
    metric = METRICS[gate.metric]
    (result,) = judge(name, measured, Gates((gate,), {}), margins_of=level)
    if result.estimate is None:
        said = "not measured"
    else:
        times = times_margin(gate, margin, result.estimate.value)
        said = f"{result.verdict}: {span(metric, result.estimate)}" + (
            f", {times:.1f} times what is tolerated" if math.isfinite(times) else ""
        )
    return Control(
        name=name,
        level=level,
        metric=gate.metric,
        expected=f"FAIL of {metric.label} at {level.upper()}",
        found=f"{said}; {unseen}" if unseen else said,
        behaved=result.verdict == "FAIL" and not unseen,
    )


def rungs_of(models: Sequence[Hurt]) -> list[Rung]:
    """The ladder as results have it."""
    return [
        Rung(
            half=model.half,  # type: ignore[arg-type]
            strength=model.strength,
            values={
                key: estimate(seen, limits=METRICS[key].range) for key, seen in model.measured.items() if key in METRICS
            },
        )
        for model in models
    ]


def ladder_controls(models: Sequence[Hurt], gates: Gates) -> list[Control]:
    """One for each half that was damaged in growing strength: each gated metric gets worse, and nowhere better.

    Both by the same clips, one-sided at 5 %. What the depth decoder does not touch may stay ideal there.

    Args:
        models: Those of both halves take no part.
        gates: Of which metrics.
    """
    found = []
    for half in dict.fromkeys(model.half for model in models if model.half != "both"):
        rungs = sorted((model for model in models if model.half == half), key=lambda model: model.strength)
        metrics = [gate.metric for gate in gates.gates if all(gate.metric in rung.measured for rung in rungs)]
        faults = []
        for key in metrics:
            seen = [_badness(METRICS[key], rung.measured[key]) for rung in rungs]
            if half == _DECODER and all((each.values == 0).all() for each in seen):
                continue
            faults += [f"{METRICS[key].label} {fault}" for fault in _faults(seen, rungs)]
        strengths = f"{100 * rungs[0].strength:g} to {100 * rungs[-1].strength:g} %"
        found.append(
            Control(
                name=f"scales of the {_said(half)} off by {strengths}, in {len(rungs)} steps",
                expected="every gated metric gets worse with the damage",
                found="; ".join(faults) or ("so it is" if metrics else "not measured"),
                behaved=bool(metrics) and not faults,
            )
        )
    return found


def _badness(metric: Metric, seen: Observations) -> Observations:
    """How far off each clip is: 0 is ideal, and more is worse."""
    off = seen.values - (metric.ideal or 0.0)
    worse = {"lower": off, "higher": -off, "zero": np.abs(off)}[metric.direction]
    return Observations(seen.prompts, seen.seeds, worse, seen.weights)


def _faults(seen: Sequence[Observations], rungs: Sequence[Hurt]) -> Iterator[str]:
    if not _is_more(seen[-1], seen[0]):
        yield "does not rise"
    for below, above, rung in zip(seen, seen[1:], rungs[1:], strict=False):
        if _is_more(below, above):
            yield f"falls at {100 * rung.strength:g} %"


def _is_more(new: Observations, old: Observations) -> bool:
    """Whether one is surely above the other, clip by clip."""
    pair = paired(new, old)
    if pair is None:
        return False
    change = Bootstrap(*pair)
    return change.value > 0 and change.p_above(0.0) <= SIGNIFICANCE


def _said(half: str) -> str:
    return "depth decoder" if half == _DECODER else half
