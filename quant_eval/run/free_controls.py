"""The controls of the gates on free runs: the reference's own clips, read back, and damaged by each level's margins."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import soundfile

from ..gates.config import Gate, Gates, margin_for
from ..gates.controls import TIMES, DamagedClips
from ..metric import FREE
from ..metrics.failures import FAILURES, NEW_FAILURES
from .clip_damage import BREAKS, RecordedClip, Renditions, broken, flattened, stretched
from .plan import Plan
from .record import Record

_KINDS = {"runaway": "made endless", "truncated_tail": "cut off", "silent": "with a silence", "looping": "with a loop"}
assert _KINDS.keys() == set(FAILURES) == BREAKS.keys()
DURATION, RANGE = "dur_ratio", "f0_range"
"""The metrics for which clips are stretched and flattened."""
LEAST = 0.02
"""In ln: what tolerates nothing is shown this."""


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


def damaged_clips(clips: Sequence[RecordedClip], levels: Sequence[str], gates: Gates) -> list[DamagedClips]:
    """For each of these levels what its margins ask for, twice over; nothing without clips, or for other gates."""
    if not clips:
        return []
    made = []
    renditions = Renditions(clips)
    for gate in gates.gates:
        for level in levels:
            margin = margin_for(gate, level)
            if margin is None:
                continue
            if gate.metric == NEW_FAILURES.key:
                made += _failing(clips, level, margin)
            elif gate.metric in (DURATION, RANGE):
                made.append(_changed(renditions, gate, level, margin))
    return made


def _changed(renditions: Renditions, gate: Gate, level: str, margin: float) -> DamagedClips:
    """On the side that the gate guards; where it guards both, slower or flatter."""
    amount = max(TIMES * abs(margin), LEAST)
    if gate.metric == DURATION:
        log_ratio = -amount if gate.kind == "at_least" else amount
        name, change = f"{math.exp(log_ratio):.2f} times as long", partial(stretched, log_ratio=log_ratio)
    else:
        log_ratio = amount if gate.kind == "at_most" else -amount
        name, change = f"with {math.exp(log_ratio):.2f} times the F0 range", partial(flattened, log_ratio=log_ratio)
    return DamagedClips(f"clips {name}", level, gate.metric, renditions.after(change))


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
