"""The controls of the gates on free runs: the reference's own clips, read back, and damaged by each level's margins."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import soundfile

from ...runtime.audio.samples import Samples
from ..gates.config import Gate, Gates, margin_for
from ..gates.controls import TIMES, DamagedClips
from ..metric import FREE
from ..metrics.failures import FAILURES, NEW_FAILURES
from ..prosody.compare import DURATION, RANGE, compare_free
from ..prosody.recording import Prosody, measure, measure_both
from ..stats.observations import Observations
from .clip_damage import BREAKS, RecordedClip, broken, by_prompts, flattened, observed_once, stretched
from .plan import Plan
from .record import Record, RecordKey
from .record_store import Records

_KINDS = {"runaway": "made endless", "truncated_tail": "cut off", "silent": "with a silence", "looping": "with a loop"}
assert _KINDS.keys() == set(FAILURES) == BREAKS.keys()
CONTROL = "control"
"""The stage of these records."""
CLIPS = 8
"""That are stretched and flattened: all by the same amount, so that a few are as good as a hundred."""
RANGE_CLIPS = 20
"""That are flattened: with eight, one clip that Praat makes anew with an octave error leaves the gate undecided."""
TIMES_OF_RANGE = 3.0
"""In place of `TIMES`: a range of percentiles over a second of speech scatters by 0.05 when its sound is made anew."""
LEAST = 0.02
"""In ln: what tolerates nothing is shown this."""
_FAITHFUL = 0.05
"""In ln: by how much a clip's F0 range may change when its sound is made anew."""

Change = Callable[[Samples, Prosody, float], Samples]


def reference_clips(plan: Plan, records: Sequence[Record]) -> list[RecordedClip]:
    """What the reference said in its free run, as its records and files have it."""
    return [
        RecordedClip(
            record.prompt,
            record.seed,
            soundfile.read(plan.audio / record.files["audio"], dtype="float32")[0],
            np.array(record.detail["codes"], np.int64),
            "cap" if record.detail["ended"] == "cap" else "eos",
        )
        for record in records
        if record.stage == FREE and record.level == plan.reference.name and record.detail["codes"]
    ]


class Renditions:
    """Clips beside what becomes of them when each is changed in one way. What was measured once is kept."""

    def __init__(self, clips: Sequence[RecordedClip], records: Records, name: str) -> None:
        """Of `CLIPS` clips, as different prompts as there are; `name` is the reference's in records."""
        self._clips, self._records, self._name = by_prompts(clips), records, name
        self._measured: dict[tuple[str, int], Prosody] = {}

    def stretched(self, log_ratio: float) -> dict[str, Observations]:
        """By metric, of clips that are `stretched`."""
        return self._changed(self._clips[:CLIPS], stretched, log_ratio)

    def flattened(self, log_ratio: float) -> dict[str, Observations]:
        """By metric, of clips that are `flattened`: only those that Praat can make anew without changing their range.

        They are held against what Praat makes of them at 0.
        """
        chosen: list[RecordedClip] = []
        for clip in self._clips[: 2 * RANGE_CLIPS]:
            anew = self._record(clip, flattened, 0.0).values
            if abs(anew.get(RANGE.key, math.inf)) <= _FAITHFUL:
                chosen.append(clip)
            if len(chosen) == RANGE_CLIPS:
                break
        return self._changed(chosen, flattened, log_ratio, is_anew=True)

    def _changed(
        self, clips: Sequence[RecordedClip], change: Change, log_ratio: float, *, is_anew: bool = False
    ) -> dict[str, Observations]:
        rows: dict[str, list[tuple[str, int, float]]] = {}
        for clip in clips:
            for metric, value in self._record(clip, change, log_ratio, is_anew=is_anew).values.items():
                rows.setdefault(metric, []).append((clip.prompt, clip.seed, value))
        return {metric: observed_once(found) for metric, found in rows.items()}

    def _record(self, clip: RecordedClip, change: Change, log_ratio: float, *, is_anew: bool = False) -> Record:
        key = RecordKey(CONTROL, f"{self._name}-{change.__name__}{log_ratio:+.5f}", clip.prompt, clip.seed)
        if (known := self._records.get(key)) is None:
            heard = self._heard(clip)
            beside = flattened(clip.samples, heard, 0.0) if is_anew else clip.samples
            pair = measure_both(beside, change(clip.samples, heard, log_ratio))
            known = Record(*key, compare_free(*pair))
            self._records.append(known)
        return known

    def _heard(self, clip: RecordedClip) -> Prosody:
        key = clip.prompt, clip.seed
        if key not in self._measured:
            self._measured[key] = measure(clip.samples)
        return self._measured[key]


def damaged_clips(plan: Plan, records: Sequence[Record], levels: Sequence[str], gates: Gates) -> list[DamagedClips]:
    """For each of these levels what is well beyond its margins; nothing without clips, or for other gates."""
    if not levels or not (clips := reference_clips(plan, records)):
        return []
    with Records.open(plan.records, plan.fingerprint) as store:
        return _made(clips, Renditions(clips, store, plan.reference.key), levels, gates)


def _made(
    clips: Sequence[RecordedClip], renditions: Renditions, levels: Sequence[str], gates: Gates
) -> list[DamagedClips]:
    made = []
    for gate in gates.gates:
        for level in levels:
            margin = margin_for(gate, level)
            if margin is None:
                continue
            if gate.metric == NEW_FAILURES.key:
                made += _failing(clips, level, margin)
            elif gate.metric in (DURATION.key, RANGE.key):
                made.append(_changed(renditions, gate, level, margin))
    return made


def _changed(renditions: Renditions, gate: Gate, level: str, margin: float) -> DamagedClips:
    """On the side that the gate guards; where it guards both, slower or flatter."""
    if gate.metric == DURATION.key:
        amount = max(TIMES * abs(margin), LEAST)
        log_ratio = -amount if gate.kind == "at_least" else amount
        name, seen = f"{math.exp(log_ratio):.2f} times as long", renditions.stretched(log_ratio)
    else:
        amount = max(TIMES_OF_RANGE * abs(margin), LEAST)
        log_ratio = amount if gate.kind == "at_most" else -amount
        name, seen = f"with {math.exp(log_ratio):.2f} times the F0 range", renditions.flattened(log_ratio)
    return DamagedClips(f"clips {name}", level, gate.metric, seen)


def _failing(clips: Sequence[RecordedClip], level: str, margin: float) -> list[DamagedClips]:
    made = []
    for kind, said in _KINDS.items():
        some = broken(clips, kind, margin)
        if some is None:
            continue
        unseen = some.count - some.detected
        note = f"{unseen} of these not seen as {kind}" if unseen else ""
        name = f"{some.count} of {len(clips)} clips {said}"
        made.append(DamagedClips(name, level, NEW_FAILURES.key, some.measured, note))
    return made
