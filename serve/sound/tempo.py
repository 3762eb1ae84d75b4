"""Speech faster or slower at the same pitch, chunk by chunk: FFmpeg's `atempo`, through PyAV. Knows no encoder."""

import math
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from ...models.mimi import SAMPLE_RATE_HZ
from ...runtime.audio.samples import Samples, cut_off

SLOWEST, FASTEST = 0.25, 4.0
"""Source: OpenAI's schema."""

_BLOCK = 480
"""Samples that the filter gets at once, always: how many it is given decides what it can do, and one may be too few."""

_ONE_FILTER = (0.5, 2.0)
"""What one `atempo` does well; it takes more, but leaves sound out then. Source: FFmpeg's manual of its filters."""

_PAD = 20 * _BLOCK
"""Samples of silence behind the end, 400 ms: without it up to 140 ms of the end did not come out."""


class Tempo:
    """A change of tempo for sound that comes in chunks; passes it through, bit for bit, at speed 1.

    What comes out does not depend on the chunks, and is as long as the sound over `speed`, rounded to a sample. It is
    no louder: the filter blends pieces of the sound.
    The filter holds back: the first sample leaves when 60 ms are in (0.5 to 2 times as fast: 60 to 80 ms; slower than
    that 80 to 100 ms; faster 140 to 200 ms). It takes 1 to 5 ms of CPU time a second of sound.

    Args:
        speed: How many times as fast.

    Raises:
        ValueError: It is not within 0.25 to 4.
    """

    def __init__(self, speed: float) -> None:
        if not SLOWEST <= speed <= FASTEST:
            raise ValueError(f"a speed of {speed} is not within {SLOWEST} to {FASTEST}")
        self._speed = speed
        self._graph = None if speed == 1 else _graph(speed)
        self._waiting = np.zeros(0, np.float32)
        self._taken = self._pushed = self._given = 0

    def __call__(self, samples: Samples) -> Samples:
        """What can be computed by now of samples float32 `[n]` at 24 kHz, n >= 0."""
        if self._graph is None:
            return samples
        self._taken += len(samples)
        return self._run(self._graph, samples)

    def rest(self) -> Samples:
        """What the filter held back; call it once, at the end."""
        graph, due = self._graph, round(self._taken / self._speed) - self._given
        if graph is None or due == 0:
            return np.zeros(0, np.float32)
        padded = self._run(graph, np.zeros(_PAD, np.float32))
        graph.push(None)
        self._graph = None
        # The filter lags: beyond what is due lie up to 20 ms more, and to end before them would click.
        return cut_off(np.concatenate([padded, _pulled(graph)])[:due])

    def _run(self, graph: Graph, samples: Samples) -> Samples:
        waiting = np.concatenate([self._waiting, samples])
        count = len(waiting) // _BLOCK * _BLOCK
        self._waiting = waiting[count:]
        out = []
        for block in waiting[:count].reshape(-1, _BLOCK):
            frame = av.AudioFrame.from_ndarray(block[np.newaxis], "flt", "mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
            frame.pts = self._pushed
            self._pushed += _BLOCK
            graph.push(frame)
            out.append(_pulled(graph))
        result = np.concatenate([np.zeros(0, np.float32), *out])
        self._given += len(result)
        return result


def _graph(speed: float) -> Graph:
    """Where the sound enters, one or two filters, and where it leaves."""
    slowest, fastest = _ONE_FILTER
    speeds = [speed] if slowest <= speed <= fastest else [math.sqrt(speed)] * 2
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE_HZ, format="flt", layout="mono", time_base=Fraction(1, SAMPLE_RATE_HZ)
    )
    filters = [graph.add("atempo", str(each)) for each in speeds]
    graph.link_nodes(source, *filters, graph.add("abuffersink")).configure()
    return graph


def _pulled(graph: Graph) -> Samples:
    """All that the graph has ready."""
    ready = [np.zeros(0, np.float32)]
    while True:
        try:
            ready.append(np.asarray(graph.pull().to_ndarray()[0], np.float32))
        except (BlockingIOError, EOFError):
            return np.concatenate(ready)
