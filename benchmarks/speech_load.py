"""The figures of a load of requests: how fast, how soon, whether it is heard without a gap and as it should be.

Beside our words those of vLLM's benchmark: audio_ttfp is the time to first audio, audio_rtf the time until all is there
by the length of it, audio_underrun by how much a piece came too late for who plays from the first on, and continuity
the share of streams that never ran dry.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from arrivals import Heard, frames_per_s
from numpy.typing import NDArray
from paced import CHUNK, PacedCall

SOUND_CARD_S = 0.02
"""A player has so much in its own buffer: what comes later by less makes no gap."""
_ROUNDING = 1
"""Steps of 16 bit by which sound may differ from that of a request alone: the codec rounds by how many it decodes."""


class Turns(NamedTuple):
    """What a request waited for, by the engine's own record."""

    ahead_s: float
    """Of the calls that began between its arrival and its first chunk. The one under way is not one of them."""
    chunks: int
    """Of its own prompt."""
    begin: float
    """Of the first of them."""


def turns(calls: Sequence[PacedCall], sent: float, prompt: int) -> Turns:
    """Of the one request with this prompt, sent then. `calls` in the order in which they were made."""
    own = [number for number, call in enumerate(calls) if call.kind == CHUNK and call.prompt == prompt]
    ahead = calls[bisect_right([call.begin for call in calls], sent) : own[0]]
    return Turns(sum(call.end - call.begin for call in ahead), len(own), calls[own[0]].begin)


def beyond_frames(
    heard: Sequence[Heard], calls: Sequence[PacedCall], prompts: Mapping[int, int], frame_s: float
) -> list[float]:
    """Of each answer, how many frames its first audio took but for the turns ahead, and its chunks, a frame each."""
    waits = [(each, turns(calls, each.sent, prompts[each.asked.number])) for each in heard]
    return [(each.ttfa_s - wait.ahead_s) / frame_s - wait.chunks for each, wait in waits]


def own_frames(
    heard: Sequence[Heard], calls: Sequence[PacedCall], prompts: Mapping[int, int], frame_s: float
) -> list[float]:
    """As `beyond_frames`, but the turns ahead took as long as they took: an engine that lost time lost it before."""
    waits = [(each, turns(calls, each.sent, prompts[each.asked.number])) for each in heard]
    return [(each.sent + each.ttfa_s - wait.begin) / frame_s - wait.chunks for each, wait in waits]


def lost_ms_a_call(calls: Sequence[PacedCall], frame_s: float) -> float:
    """By how much calls began later than the engine was free, on average; after more than a frame it was at rest."""
    gaps = [later.begin - call.end for call, later in pairwise(calls)]
    return round(1e3 * float(np.mean([gap for gap in gaps if gap < frame_s] or [0.0])), 2)


def is_right(sound: bytes, alone: bytes) -> bool:
    """Whether it is what the request gives alone, but for rounding."""
    return len(sound) == len(alone) and bool((np.abs(_samples(sound) - _samples(alone)) <= _ROUNDING).all())


def figures(heard: Sequence[Heard], cpu_s: float) -> dict[str, Any]:
    """Of a load that took `cpu_s`. Raises `ValueError` if nothing was answered."""
    answered = [each for each in heard if each.is_answered]
    if not answered:
        raise ValueError(f"none of {len(heard)} requests was answered: the server's own lines say why")
    underruns = [each.underrun_s for each in answered]
    ttfa_ms = [1e3 * each.ttfa_s for each in answered]
    return {
        "requests": len(heard),
        "refused": sum(each.status == 429 for each in heard),
        "lost": sum(not each.is_answered and each.status != 429 for each in heard),
        "frames": sum(each.frames for each in answered),
        "frames_per_s": round(frames_per_s(heard), 2),
        "audio_ttfp_ms": {"p50": percentile(ttfa_ms, 50), "p95": percentile(ttfa_ms, 95)},
        "audio_rtf": round(float(np.median([each.rtf for each in answered])), 4),
        "audio_underrun_ms": round(1e3 * max(underruns), 2),
        "continuity": round(sum(late <= SOUND_CARD_S for late in underruns) / len(answered), 4),
        "continuity_without_buffer": round(sum(late <= 0 for late in underruns) / len(answered), 4),
        "cpu_ms_a_second_of_audio": round(1e3 * cpu_s / sum(each.audio_s for each in answered), 2),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated; two digits."""
    return round(float(np.percentile(values, percent)), 2)


def _samples(sound: bytes) -> NDArray[np.int32]:
    return np.frombuffer(sound, "<i2").astype(np.int32)
