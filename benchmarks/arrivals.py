"""Who asks for what and when, what came of it and when, and how somebody fares who listens to that.

The same requests at the same times for whatever speaks them. A client has one request at a time: who is not done when
the next one is due asks for it later.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from miso_gguf.models.mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.utterance import Utterance

WORDS = (
    "the rain kept me awake for most of that night while an old clock said it was time to go home again and nobody "
    "knew why our river had risen so far over its banks or when they would let us take another road"
)
FEWEST_WORDS, MOST_WORDS = 4, 16
"""Of a request: one sentence, so that it is one utterance."""
HEAD_START_S = 0.05
"""Before the first request is due, so that all clients are there."""


@dataclass(frozen=True)
class Asked:
    """A request."""

    number: int
    text: str
    seed: int


@dataclass(frozen=True)
class Arrival:
    """A request that is due, in seconds after the first one."""

    asked: Asked
    at_s: float


@dataclass
class Heard:
    """What came of a request."""

    asked: Asked
    sent: float
    """When, as all times by `time.perf_counter`."""
    times: list[float] = field(default_factory=list)
    """When each piece of sound was there."""
    samples: list[int] = field(default_factory=list)
    """Of each piece."""
    sound: bytes = b""
    """All of it, s16."""
    status: int = 200
    is_cut: bool = False
    """The connection broke before the end."""

    def came(self, samples: int) -> None:
        """A piece of so many samples is there."""
        self.times.append(time.perf_counter())
        self.samples.append(samples)

    @property
    def is_answered(self) -> bool:
        """Whether it was spoken to its end."""
        return self.status == 200 and not self.is_cut and bool(self.times)

    @property
    def frames(self) -> int:
        """Of speech. What is shorter than a frame is the last sample, faded."""
        return sum(self.samples) // FRAME_SAMPLES

    @property
    def audio_s(self) -> float:
        """Of sound."""
        return sum(self.samples) / SAMPLE_RATE_HZ

    @property
    def ttfa_s(self) -> float:
        """Time to first audio."""
        return self.times[0] - self.sent

    @property
    def rtf(self) -> float:
        """Until all of it was there, by how long it sounds."""
        return (self.times[-1] - self.sent) / self.audio_s

    @property
    def underrun_s(self) -> float:
        """By how much a piece came too late, at worst, for who plays from the first piece on without a rest."""
        before = np.cumsum([0, *self.samples[:-1]]) / SAMPLE_RATE_HZ
        return float(np.max(np.array(self.times) - self.times[0] - before))


def asked_for(count: int, seed: int = 0) -> list[Asked]:
    """Requests of random lengths, no two alike."""
    rng = np.random.default_rng(seed)
    found: dict[str, Asked] = {}
    while len(found) < count:
        words = rng.choice(WORDS.split(), rng.integers(FEWEST_WORDS, MOST_WORDS, endpoint=True))
        text = f"{' '.join(words).capitalize()}."
        found.setdefault(text, Asked(len(found), text, len(found)))
    return list(found.values())


def spread(asked: Sequence[Asked], clients: int, each_s: float, seed: int = 0) -> list[list[Arrival]]:
    """For each client its arrivals: at random times, one in `each_s` on average, dealt out in turn."""
    gaps = np.random.default_rng(seed).exponential(each_s, len(asked))
    arrivals = [Arrival(*pair) for pair in zip(asked, np.cumsum(gaps) - gaps[:1], strict=True)]
    return [arrivals[client::clients] for client in range(clients)]


async def over_network(
    speak: Callable[[int, Asked], Awaitable[Heard]], schedule: Sequence[Sequence[Arrival]]
) -> list[Heard]:
    """All that `speak` gives, which takes the number of a client and a request."""
    begin = time.perf_counter() + HEAD_START_S

    async def ask(client: int) -> list[Heard]:
        heard = []
        for arrival in schedule[client]:
            await asyncio.sleep(max(0.0, begin + arrival.at_s - time.perf_counter()))
            heard.append(await speak(client, arrival.asked))
        return heard

    each = await asyncio.gather(*map(ask, range(len(schedule))))
    return [heard for of_client in each for heard in of_client]


def through_batcher(
    batcher: Batcher, utterances: Mapping[int, Utterance], schedule: Sequence[Sequence[Arrival]]
) -> list[Heard]:
    """The same, admitted to a batcher alone: a thread a client takes the frames, and nothing is made of them."""
    begin = time.perf_counter() + HEAD_START_S
    found: list[Heard] = []

    def ask(arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            time.sleep(max(0.0, begin + arrival.at_s - time.perf_counter()))
            heard = Heard(arrival.asked, time.perf_counter())
            with batcher.admit(utterances[arrival.asked.number], queue="unlimited") as ticket:
                for _ in ticket:
                    heard.came(FRAME_SAMPLES)
            found.append(heard)

    threads = [threading.Thread(target=ask, args=(arrivals,)) for arrivals in schedule]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def frames_per_s(heard: Sequence[Heard]) -> float:
    """Of all together, from the first request to the last piece of sound."""
    answered = [each for each in heard if each.is_answered]
    wall_s = max(each.times[-1] for each in answered) - min(each.sent for each in answered)
    return sum(each.frames for each in answered) / wall_s
