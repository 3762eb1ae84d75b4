"""The history gates: is a level worse than in the evaluation that was accepted last, or first?

Held against each other are evaluations of one kind of machine, clip by clip: see `paired.py`. From the last accepted
one ("history") one step is tolerated, from the first one ("anchor") a few, so that many small steps cannot drift. What
was accepted and is not there now is MISSING. It reads no files.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from ..metrics.table import METRICS
from ..results import GateResult, Results, Verdict
from ..stats.bootstrap import RESAMPLES, SEED, Bootstrap
from ..stats.estimates import FEWEST_PROMPTS
from ..stats.observations import Observations, paired
from .accepted import Accepted, Entry, kind_text
from .config import Gates
from .judge import worst
from .observed import Observed, check_comparable
from .paired import Change, judge_changes, tolerated

_NO_ENTRY = "history: no evaluation of this kind of machine"
NOT_RUN = "was not run, and is in the accepted evaluation"
"""Of a level, for people."""
_LAST, _FIRST = "in the accepted evaluation", "in the first accepted evaluation"


def judge_history(
    observed: Observed,
    accepted: Accepted,
    gates: Gates,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[GateResult]:
    """The verdict on every level and metric of the accepted evaluation; a level that is new has no history.

    What was accepted last without something that the first one has (by force) does not end the anchor's hold on it.

    Args:
        observed: What was found now.
        accepted: The file. It must have an evaluation of this kind of machine, or nothing is judged.
        gates: Which metrics, and what is tolerated. Levels without margins are not judged.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        AcceptedError: If the two are not comparable.
    """
    entry = accepted.of(observed.kind)
    if entry is None:
        return []
    for each in (entry.accepted, entry.anchor):
        check_comparable(observed.subject, each.subject)
    results = []
    for level in dict.fromkeys([*entry.accepted.levels, *entry.anchor.levels]):
        if gates.why_not_judged(level) is None:
            last = list(_changes(level, observed, entry.accepted, accepted, gates, 1.0, _LAST))
            results += judge_changes(last, "history", resamples=resamples, seed=seed)
            first = _from_anchor(level, observed, entry, accepted, gates)
            results += judge_changes(first, "anchor", resamples=resamples, seed=seed)
    return results


def _from_anchor(level: str, observed: Observed, entry: Entry, accepted: Accepted, gates: Gates) -> list[Change]:
    """Of what is there: that something is missing is said once. Nothing while the anchor is the accepted one."""
    if entry.anchor == entry.accepted:
        return []
    changes = _changes(level, observed, entry.anchor, accepted, gates, gates.anchor, _FIRST)
    return [change for change in changes if change.new is not None]


def _changes(
    level: str, now: Observed, before: Observed, accepted: Accepted, gates: Gates, steps: float, what: str
) -> Iterator[Change]:
    why_not = f"{level} was not run" if level not in now.levels else "it was not measured"
    for metric, step in gates.history.items():
        old = before.metric(level, metric)
        if old is not None:
            new, why = now.metric(level, metric), why_not
            if new is not None and (other := _other_instrument(now, before, metric)) is not None:
                new, why = None, other
            change = Change(level, METRICS[metric], new, old, step.times(steps), before=what, why_not=why)
            # More than this is no rounding, but another rendition; it would hide everything.
            most = tolerated(change) * gates.anchor / steps
            yield replace(change, noise=min(noise_between_machines(accepted, level, metric), most))


def _other_instrument(now: Observed, before: Observed, metric: str) -> str | None:
    """That something else scored then, for people: the two are no measurements of one thing."""
    mine, theirs = now.instruments.get(metric), before.instruments.get(metric)
    return None if mine == theirs else f"it is scored by {mine}, not by {theirs},"


def noise_between_machines(accepted: Accepted, level: str, metric: str) -> float:
    """How far two kinds of machine are apart with one build, at most, in the metric's unit; 0 if there are no two.

    Over clips that the reference said alike on both, as far as their lengths tell: where it said something else, that
    is no rounding. The change of the mean with its one-sided bound of 95 %.
    """
    found = [0.0]
    known = [each for entry in accepted.entries for each in (entry.anchor, entry.accepted)]
    for one, other in combinations(known, 2):
        if one.kind != other.kind and _build(one) == _build(other):
            pair = _alike(one, other, level, metric)
            if pair is not None and not np.array_equal(pair[0].values, pair[1].values):
                bounds = Bootstrap(*pair).interval()
                found.append(max(map(abs, bounds)))
    return max(found)


def _build(observed: Observed) -> tuple[str, dict[str, str]]:
    return observed.manifest_sha256, observed.versions


def _alike(one: Observed, other: Observed, level: str, metric: str) -> tuple[Observations, Observations] | None:
    """What both found in the clips of which the reference said as many frames."""
    sides = one.metric(level, metric), other.metric(level, metric)
    pair = paired(sides[0], sides[1]) if sides[0] is not None and sides[1] is not None else None
    if pair is None:
        return None
    frames = [_frames(each, level) for each in (one, other)]
    clips = [clip for clip in pair[0].clips if clip in frames[0] and frames[0][clip] == frames[1].get(clip)]
    chosen = tuple(side.take(clips) for side in pair) if clips else ()
    return (chosen[0], chosen[1]) if chosen and chosen[0].prompt_count >= FEWEST_PROMPTS else None


def _frames(observed: Observed, level: str) -> dict[tuple[str, int], float]:
    """How many frames the reference said in each clip: what metrics of frames are weighted by."""
    frames: dict[tuple[str, int], float] = {}
    for metric in observed.levels.get(level, {}):
        is_per_frame = metric in METRICS and METRICS[metric].is_per_frame
        if is_per_frame and (found := observed.metric(level, metric)) is not None:
            frames |= zip(found.clips, found.weights.tolist(), strict=True)
    return frames


def with_history(results: Results, observed: Observed, accepted: Accepted, gates: Gates) -> Results:
    """The results with the history's gates and notes; what is missing if there is nothing to hold them against.

    What follows of that for the verdicts is said in `outcome.py`. Arguments and errors as `judge_history`.
    """
    forced = accepted.forced()
    missing = [] if accepted.of(observed.kind) is not None else [no_entry(observed, accepted)]
    return results.model_copy(
        update={
            "gates": [*results.gates, *judge_history(observed, accepted, gates)],
            "missing": [*results.missing, *missing],
            "notes": [*results.notes, *([f"history: {forced}"] if forced is not None else [])],
        }
    )


def no_entry(observed: Observed, accepted: Accepted) -> str:
    """That nothing of this kind of machine was accepted, what was, and what to do, in one sentence."""
    return (
        f"{_NO_ENTRY} was accepted: {kind_text(observed.kind)}. There are: {accepted.kinds()}. Accept one of this kind "
        "too with `miso-eval accept`, or evaluate on such a machine"
    )


def alone(results: Results) -> tuple[Verdict | None, list[str]]:
    """The verdict of an evaluation without any history, and what it misses: it may have been held against another."""
    past = [gate for gate in results.gates if gate.kind in ("history", "anchor")]
    said = {f"{gate.level}: {why}" for gate in past for why in (gate.reason, NOT_RUN)}
    missing = [each for each in results.missing if each not in said and not each.startswith(_NO_ENTRY)]
    outcomes: list[Verdict] = [gate.outcome for gate in results.gates if gate not in past]
    outcomes += ["FAIL" for control in results.controls if not control.behaved]
    if missing:
        outcomes.append("MISSING")
    return worst(outcomes), missing


def verdict_to_accept(results: Results, observed: Observed, accepted: Accepted | None, gates: Gates) -> Verdict | None:
    """The verdict of an evaluation that is to be accepted: with the history, whatever it was held against before.

    That nothing of its kind of machine was accepted yet is no obstacle to accepting it.
    """
    verdict = results.verdict
    if verdict == "MISSING" and all(each.startswith(_NO_ENTRY) for each in results.missing):
        verdict = worst(gate.outcome for gate in results.gates)
    if accepted is None or verdict is None:
        return verdict
    return worst([verdict, *(gate.outcome for gate in judge_history(observed, accepted, gates))])
