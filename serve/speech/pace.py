"""How much of a speech is made before the first of it leaves: one frame, or more where streams would run dry.

A listener plays from the first chunk on. A stream that is slower than real time for a while, because prompts of others
are read between its frames or sentences, runs dry unless it had begun later. How much later would have been enough is
measured of every stream, and what those before needed the next one gets.
"""

import math
import threading
import time

from ...models.mimi import FRAME_RATE_HZ

MOST_FRAMES = 8
"""Of a first chunk, 0.64 s. Whoever needs more is slower than real time, and would run dry all the same."""
_MOST_S = MOST_FRAMES / FRAME_RATE_HZ
_FADING = 0.8
"""A lead that was not needed any more shrinks to this with every stream."""
_TOLERANCE_S = 0.02
"""Of a sound card's own buffer: less does not make a gap."""


class Pace:
    """What streams needed, by how many spoke at a time. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._needed_s: dict[int, float] = {}
        self.underruns = 0
        """Streams that would have run dry, played from their first byte on."""

    def first_frames(self, speaking: int, speed: float = 1.0) -> int:
        """Frames of a first chunk that is heard `speed` times as fast, when so many speak, the newcomer among them."""
        with self._lock:
            needed_s = max((s for count, s in self._needed_s.items() if count <= speaking), default=0.0)
        return min(MOST_FRAMES, 1 + math.ceil(max(0.0, needed_s - _TOLERANCE_S) * speed * FRAME_RATE_HZ))

    def note(self, lead: "Lead", speaking: int) -> None:
        """What a stream needed that is over."""
        with self._lock:
            for count, before_s in self._needed_s.items():
                if count <= speaking:  # what so many do not need fewer do not either
                    self._needed_s[count] = _FADING * before_s
            needed_s = min(lead.needed_s, _MOST_S)  # beyond it there is nothing to fade
            self._needed_s[speaking] = max(needed_s, self._needed_s.get(speaking, 0.0))
            self.underruns += lead.is_dry


class Lead:
    """What one stream would have needed: by how much its sound came later than it is played."""

    def __init__(self) -> None:
        self.needed_s = 0.0
        """Between its first frame and its first chunk, so that it never runs dry at a speed of 1."""
        self._first: float | None = None
        self._left: float | None = None
        self._made_s = self._heard_s = 0.0
        self.is_dry = False

    def made(self, seconds: float, blocked_s: float = 0.0) -> None:
        """So much more speech is there. `blocked_s` of the time until now went by because nobody took it."""
        now = time.perf_counter() - blocked_s
        if self._first is None:
            self._first = now
        self.needed_s = max(self.needed_s, now - self._first - self._made_s)
        self._made_s += seconds

    def left(self, seconds: float, blocked_s: float = 0.0) -> None:
        """So much more sound leaves, at the speed at which it is heard."""
        now = time.perf_counter() - blocked_s
        if self._left is None:
            self._left = now
        self.is_dry = self.is_dry or now - self._left > self._heard_s + _TOLERANCE_S
        self._heard_s += seconds
