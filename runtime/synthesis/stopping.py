"""When to stop an utterance that goes wrong while it is generated: a loop, silence, or no end in sight.

Pure bookkeeping, fed frame by frame, the same answer for the same frames. It does not know what is done about it: see
`stream.py`.
"""

import math
from enum import Enum

import numpy as np
import numpy.typing as npt

from ...models.mimi import FRAME_SAMPLES

LOOP_FRAMES = 30
"""2.4 s in which half of all codebooks repeat exactly. Sampled acoustic codes differ even over a held vowel."""
SEMANTIC_LOOP_FRAMES = 75
"""6 s in which the semantic code alone repeats: over a stuck sound the acoustic codes may go on changing."""
MAX_PERIOD = 50
"""Longest pattern that is looked for, in frames: 4 s, a short sentence said again and again (greedy decoding does)."""
LOOP_PASSES = 3
"""A long pattern must have been heard this often. A sentence said twice may be meant."""

SILENT_FRAME_DBFS = -55.0
"""RMS of a frame below which nothing is said. Frames of speech at a normal level are at -15 to -45."""
LONGEST_PAUSE_FRAMES = 32
"""2.56 s. Pauses between sentences take about 1 s, dramatic ones 2 s."""
LEAD_IN_FRAMES = 50
"""4 s without any speech: it is not going to start."""
KEPT_FRAMES = 3
"""0.24 s of a silence or stuck sound stay, so that the last word may ring out."""


class Verdict(str, Enum):
    """Why an utterance should stop."""

    LOOP = "loop"
    SILENCE = "silence"
    CAP = "cap"


class StoppingCriteria:
    """Of one utterance. Codes and sound are fed separately, because sound comes later: it is decoded behind.

    A verdict stays, unless sound that comes late shows a silence that was complete before: how far the sound lags
    behind must not make a difference.
    """

    def __init__(self, codebooks: int, cap_frames: int) -> None:
        """`cap_frames`: see `reading.speech_cap_frames`. Raises `ValueError` unless both are positive."""
        if codebooks < 1 or cap_frames < 1:
            raise ValueError(f"codebooks and cap_frames must be positive, not {codebooks} and {cap_frames}")
        self.verdict: Verdict | None = None
        self._cap_frames = cap_frames
        self._frames = 0
        self._good_frames: int | None = None
        self._decided_at = 0
        self._past = np.full((MAX_PERIOD, codebooks), -1, np.int64)
        self._runs = np.zeros((MAX_PERIOD, codebooks), np.int64)
        """[period - 1, codebook]: for how many frames the code has been the one that was there a period ago."""
        self._half = codebooks - math.ceil(codebooks / 2)
        self._heard_frames = 0
        self._quiet_frames = 0
        self._has_spoken = False

    def observe(self, codes: npt.NDArray[np.int64]) -> Verdict | None:
        """Take the codes [codebooks] of the next frame (not the EOS frame). Costs some 40 microseconds."""
        if codes.shape != self._past.shape[1:]:
            raise ValueError(f"a frame has {self._past.shape[1]} codes, got shape {codes.shape}")
        now = self._frames
        self._runs = (self._runs + 1) * (self._past[(now - _PERIODS) % MAX_PERIOD] == codes)
        self._past[now % MAX_PERIOD] = codes
        self._frames += 1
        if self.verdict is None:
            semantic = self._runs[:, 0]
            most = np.minimum(semantic, np.sort(self._runs, axis=1)[:, self._half])
            for runs, needed in ((most, _LOOP_RUNS), (semantic, _SEMANTIC_LOOP_RUNS)):
                if (looping := np.flatnonzero(runs >= needed)).size and self.verdict is None:
                    period = int(looping[0]) + 1
                    first_pass = self._frames - int(runs[looping[0]]) - period
                    self._stop(Verdict.LOOP, first_pass + max(period, KEPT_FRAMES))
        if self.verdict is None and self._frames >= self._cap_frames:
            self._stop(Verdict.CAP, self._frames)
        return self.verdict

    def hear(self, samples: npt.NDArray[np.float32]) -> Verdict | None:
        """Take the sound [n * 1920] of the next n frames. Raises `ValueError` if it is not whole frames."""
        if samples.ndim != 1 or samples.size % FRAME_SAMPLES:
            raise ValueError(f"sound must come in whole frames of {FRAME_SAMPLES} samples, got shape {samples.shape}")
        for level in frame_levels_dbfs(samples):
            self._heard_frames += 1
            self._quiet_frames = self._quiet_frames + 1 if level < SILENT_FRAME_DBFS else 0
            self._has_spoken = self._has_spoken or not self._quiet_frames
            is_first = self.verdict is None or self._heard_frames < self._decided_at
            if is_first and self._quiet_frames >= (LONGEST_PAUSE_FRAMES if self._has_spoken else LEAD_IN_FRAMES):
                spoken = self._heard_frames - self._quiet_frames
                self._stop(Verdict.SILENCE, spoken + KEPT_FRAMES if self._has_spoken else 0)
                self._decided_at = self._heard_frames
        return self.verdict

    @property
    def good_frames(self) -> int:
        """How many frames from the start are worth keeping: all so far, or those before what the verdict is about."""
        return self._frames if self._good_frames is None else min(self._good_frames, self._frames)

    def _stop(self, verdict: Verdict, good_frames: int) -> None:
        self.verdict, self._good_frames, self._decided_at = verdict, good_frames, self._frames


def frame_levels_dbfs(samples: npt.NDArray[np.float32]) -> list[float]:
    """RMS of each whole frame of 1920 samples, in dB relative to full scale; -inf where all is zero."""
    frames = samples[: samples.size // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    with np.errstate(divide="ignore"):
        return [float(level) for level in 10 * np.log10(power)]


_PERIODS = np.arange(1, MAX_PERIOD + 1)
_LOOP_RUNS = np.maximum(LOOP_FRAMES, LOOP_PASSES * _PERIODS) - _PERIODS
"""By period, for how many frames a repetition must last: the loop less its first pass, which repeats nothing."""
_SEMANTIC_LOOP_RUNS = np.maximum(SEMANTIC_LOOP_FRAMES, LOOP_PASSES * _PERIODS) - _PERIODS
