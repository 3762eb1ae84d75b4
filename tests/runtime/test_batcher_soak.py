"""A soak: many come and go, read slowly, cancel, forget and meet errors. Nothing is kept, and nobody is left out."""

import gc
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elsewhere import Elsewhere, soon
from numpy.random import Generator
from own_memory import settled_anonymous_bytes
from speaking import load_tts, prompt_blocks, segments

from miso_gguf import Busy, MisoError, MisoTTS, SpeechOptions
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.utterance import Utterance

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SEQUENCES, BATCHER_USERS, STREAM_USERS = 4, 5, 2
MOST_WAITING = 2
"""Fewer than come: some are told that it is busy."""
TEXTS = ("One thing.", "Say this, and say it slowly.", "Another thing, quite different from the first one.", "Yes.")
ONE_IN = 400
"""Calls of the models of each kind that go wrong."""
ALLOWED_BYTES = 8 << 20


class BrokenError(Exception):
    """What is made to go wrong."""


def break_now_and_then(tts: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls raise, and hidden states are no numbers."""
    engine, draw = tts.engine, np.random.default_rng(0)
    step, sample, prefill_chunks = engine.step, engine.sample, engine.prefill_chunks

    def broken_step(*arguments: Any) -> Any:
        hidden, logits = step(*arguments)
        chance = draw.integers(ONE_IN)
        if chance == 0:
            raise BrokenError
        if chance == 1:
            hidden[draw.integers(len(hidden))] = np.nan
        return hidden, logits

    def broken_sample(*arguments: Any) -> Any:
        if draw.integers(ONE_IN) == 0:
            raise BrokenError
        return sample(*arguments)

    def broken_chunks(*arguments: Any) -> Iterator[Any]:
        for result in prefill_chunks(*arguments):
            if draw.integers(ONE_IN // 4) == 0:
                raise BrokenError
            yield result

    for name, broken in (("step", broken_step), ("sample", broken_sample), ("prefill_chunks", broken_chunks)):
        monkeypatch.setattr(engine, name, broken)


class Soak:
    """Its users, and what they have met."""

    def __init__(self, tts: MisoTTS) -> None:
        self._tts = tts
        self._lock = threading.Lock()
        self.met: Counter[str] = Counter()
        self.longest_wait_turns = 0
        self.over = threading.Event()

    @property
    def tickets(self) -> int:
        """That were admitted by now."""
        return sum(count for what, count in self.met.items() if what != "busy")

    def use_batcher(self, seed: int) -> None:
        """Admit one utterance after the other, and treat each otherwise."""
        draw = np.random.default_rng(seed)
        while not self.over.is_set():
            try:
                met, turns = self._ticket(draw)
            except Busy:
                met, turns = "busy", 0
                time.sleep(0.01)
            with self._lock:
                self.met[met] += 1
                self.longest_wait_turns = max(self.longest_wait_turns, turns)

    def _ticket(self, draw: Generator) -> tuple[str, int]:
        blocks = prompt_blocks(self._tts.engine.prompts, str(draw.choice(TEXTS)), segments(int(draw.integers(3))))
        utterance = Utterance(blocks, int(draw.integers(1, 16)), seed=int(draw.integers(1 << 63)), top_k=50)
        ticket = self._tts.engine.batcher.admit(utterance, buffer=int(draw.integers(1, 16)))
        how = str(draw.choice(["read", "read", "read", "slow", "cancelled", "dropped"]))
        enough = int(draw.integers(0, 9)) if how in {"cancelled", "dropped"} else utterance.max_frames + 1
        count = 0
        try:
            while count < enough:
                next(ticket)
                count += 1
                if how == "slow":
                    time.sleep(draw.exponential(0.02))
        except StopIteration:
            assert ticket.ended in {"eos", "cap"}
            assert (ticket.ended == "cap") == (count == utterance.max_frames)
        except (BrokenError, MisoError):
            how = "failed"
        assert (how == "failed") == (ticket.ended == "error" and count < enough)
        if how == "cancelled":
            canceller = Elsewhere(ticket.cancel) if draw.random() < 0.5 else None
            ticket.cancel()
            assert ticket.ended == "error" or list(ticket) == []
            if canceller is not None:
                canceller.result()
        return how, ticket.times.turns_waited

    def use_streams(self, seed: int) -> None:
        """Speak one text after the other, some of which are left half way."""
        draw = np.random.default_rng(seed)
        while not self.over.is_set():
            options = SpeechOptions(max_seconds=float(draw.uniform(0.1, 0.9)), seed=seed, retry=False)
            stream = self._tts.stream(" ".join(draw.choice(TEXTS, 2)), options=options)
            enough = int(draw.integers(1, 12)) if draw.random() < 0.5 else None
            met = "stream"
            try:
                for number, chunk in enumerate(stream):
                    assert np.isfinite(chunk.samples).all()
                    if number == enough:
                        met = "stream left"
                        break
            except Busy:
                met = "busy"
                time.sleep(0.01)
            except (BrokenError, MisoError):
                met = "stream failed"
            if draw.random() < 0.5:
                stream.close()
            with self._lock:
                self.met[met] += 1


@pytest.mark.parametrize(
    ("tickets", "seconds"),
    [pytest.param(100, 60, marks=pytest.mark.long), pytest.param(10_000, 1800, marks=pytest.mark.slow)],
)
def test_soak(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tickets: int,
    seconds: float,
) -> None:
    """So many tickets, or for so long, whichever is later."""
    caplog.set_level(logging.ERROR, "miso_gguf")  # or pytest would keep thousands of warnings: 4 MB in half an hour
    with load_tts(bundle, "q4_k_m", sequences=SEQUENCES) as tts:
        tts.engine.batcher = Batcher(tts.engine, waiting=MOST_WAITING)
        break_now_and_then(tts, monkeypatch)
        soak, begin = Soak(tts), time.monotonic()
        users = [Elsewhere(soak.use_batcher, seed) for seed in range(BATCHER_USERS)]
        users += [Elsewhere(soak.use_streams, seed) for seed in range(STREAM_USERS)]
        warm = None
        while soak.tickets < tickets or time.monotonic() < begin + seconds:
            finished = [user for user in users if user.is_done_after(0.1)]
            for user in finished:
                user.result()
            assert not finished
            if warm is None and soak.tickets >= tickets / 3 and time.monotonic() > begin + seconds / 6:
                warm = settled_anonymous_bytes()
        soak.over.set()
        for user in users:
            user.result()
        took_s = time.monotonic() - begin
        batcher = tts.engine.batcher
        gc.collect()
        assert soon(lambda: (batcher.running, batcher.waiting) == (0, 0))
        with ExitStack() as stack:
            lent = [stack.enter_context(batcher.lend([])) for _ in range(SEQUENCES)]
        assert sorted(lent) == list(range(SEQUENCES)), "all sequences are back"
        assert warm is not None
        grown = settled_anonymous_bytes() - warm
    with capsys.disabled():
        print(
            f"\n{soak.tickets} tickets in {took_s:.0f} s ({dict(sorted(soak.met.items()))}): longest wait "
            f"{soak.longest_wait_turns} turns, anonymous memory {warm / 1e6:.1f} MB, {grown / 1e6:+.1f} MB since"
        )
    assert grown < ALLOWED_BYTES
    assert {"read", "slow", "cancelled", "dropped", "failed", "stream", "stream left", "busy"} <= set(soak.met)
    # A ticket that waits has so many before it and beside it, each of at most 16 frames and a prompt.
    assert soak.longest_wait_turns < 200 * MOST_WAITING
