"""Clips that no one would ship: silent, looping, without end, or cut off; and those that are new at a level.

Loops and silences are those that the runtime stops at, so the evaluation counts what a user would meet.
"""

from collections.abc import Collection
from typing import Literal

import numpy as np

from ...core.arrays import I64Array
from ...models.mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples, checked
from ...runtime.synthesis.stopping import SILENT_FRAME_DBFS, StoppingCriteria, Verdict
from ..metric import FREE, Family
from ..prosody.rhythm import peak_level_db, step_levels_db
from ..prosody.sound import centred

Ended = Literal["eos", "cap"]

TAIL_S = 0.04
"""The end of a clip that must be quieter than its speech."""
TAIL_BELOW_PEAK_DB = 20.0
"""Speech that ends by itself has died away this far."""

FAILURES: tuple[str, ...] = ("runaway", "truncated_tail", "silent", "looping")
"""Kinds of clips that no one would ship."""
ANEW = Family(FREE)
"""Of the failures of two clips."""


def failures(samples: Samples, codes: I64Array, ended: Ended) -> tuple[str, ...]:
    """What is wrong with a clip, of `FAILURES` and in that order; empty if nothing is.

    - runaway: it was stopped at its longest possible length.
    - truncated_tail: it ended by itself while its last 40 ms were less than 20 dB below its peak level.
    - silent: there is no speech, or a silence so long that the runtime gives up.
    - looping: the codes repeat as no speech does.

    Args:
        samples: Float32 `[n]`, mono, 24 kHz.
        codes: The clip's, int64 `[frames, codebooks]`, without the EOS frame.
        ended: "eos" by itself, "cap" at its longest.

    Raises:
        ValueError: `ended` is neither, or samples or codes are malformed.
    """
    if ended not in {"eos", "cap"}:
        raise ValueError(f'a clip has ended by "eos" or "cap", not {ended!r}')
    samples = checked(samples)
    silent = is_silent(samples)
    found = {
        "runaway": ended == "cap",
        "truncated_tail": ended == "eos" and not silent and is_tail_truncated(samples),
        "silent": silent,
        "looping": is_looping(codes),
    }
    return tuple(kind for kind in FAILURES if found[kind])


def is_looping(codes: I64Array) -> bool:
    """Whether the runtime would stop at a loop in the codes `[frames, codebooks]`."""
    if codes.ndim != 2:
        raise ValueError(f"codes must be [frames, codebooks], not {list(codes.shape)}")
    if not codes.size:
        return False
    criteria = StoppingCriteria(codes.shape[1], cap_frames=len(codes) + 1)
    return any(criteria.observe(frame) is Verdict.LOOP for frame in codes)


def is_silent(samples: Samples) -> bool:
    """Whether nothing is said in float32 samples `[n]`, or the runtime would stop at a silence without end."""
    whole = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
    criteria = StoppingCriteria(codebooks=1, cap_frames=1)
    return peak_level_db(step_levels_db(samples)) < SILENT_FRAME_DBFS or criteria.hear(whole) is Verdict.SILENCE


def is_tail_truncated(samples: Samples) -> bool:
    """Whether the last 40 ms of float32 samples `[n]` are less than 20 dB below their peak level."""
    # An offset is no sound, and the peak level is without it as well.
    tail = centred(samples)[-round(TAIL_S * SAMPLE_RATE_HZ) :]
    power = float(np.square(tail).mean()) if len(tail) else 0.0
    return power > 10 ** ((peak_level_db(step_levels_db(samples)) - TAIL_BELOW_PEAK_DB) / 10)


@ANEW.metric(
    "New failures",
    "%",
    "lower",
    (-100.0, 100.0),
    "Clips that fail (runaway, truncated, silent, looping) where the reference's does not, less those of which only "
    "the reference's does.",
    kinds=("failures",),
    digits=1,
)
def new_failures(reference: Collection[str], test: Collection[str]) -> float:
    """100 if only the test's clip fails, -100 if only the reference's does, else 0: the mean is net of its failures.

    Free runs part, so each is a fresh draw: a level that is as good fails anew as often as it cures.
    """
    return 100.0 * (bool(test) - bool(reference))


NEW_FAILURES = ANEW["new_failures"]
"""Clips that have it are the worst."""
