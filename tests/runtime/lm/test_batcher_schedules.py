"""Any order of admitting, taking, cancelling, dropping and failing: whoever is heard says what he says alone."""

import gc
from dataclasses import dataclass, field

from elsewhere import Elsewhere, soon
from examples import examples
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scripted_models import PlannedError, Script, ScriptedModels, block, taken

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.ticket import Ticket

SEQUENCES = 3
VOICES = [block(1, 3), block(2, 9), block(3, 1)]

counts = st.integers(0, 99)
faults = st.tuples(st.sampled_from(["prefill", "step", "sample", "hidden", "logits"]), st.integers(0, 30))


@dataclass
class Open:
    """A ticket that goes on as far as its holder knows."""

    script: Script
    ticket: Ticket
    heard: list[list[int]] = field(default_factory=list)


class Schedules(RuleBasedStateMachine):
    """Rules that have nothing to do do nothing: what is open may depend on whom an error has met."""

    def __init__(self) -> None:
        super().__init__()
        self._begin()

    def _begin(self) -> None:
        self.models = ScriptedModels(SEQUENCES)
        self.batcher = Batcher(self.models)
        self.open: list[Open] = []
        self.shut = False

    @rule(
        length=st.integers(0, 200),
        rows=st.integers(1, 20),
        voice=st.integers(0, 3),
        cap=st.none() | st.integers(1, 200),
        buffer=st.integers(1, 20),
        fault=st.none() | st.none() | faults,
        seed=st.integers(0, 2**64 - 1),
        temperature=st.sampled_from([0.0, 0.5, 0.9]),
        top_k=st.integers(1, 9),
    )
    def admit(
        self,
        length: int,
        rows: int,
        voice: int,
        cap: int | None,
        buffer: int,
        fault: tuple[str, int] | None,
        seed: int,
        temperature: float,
        top_k: int,
    ) -> None:
        script = self.models.script(
            length,
            rows=rows,
            voice=VOICES[:voice],
            max_frames=cap,
            fault=fault,
            seed=seed,
            stream=len(self.models.scripts),
            temperature=temperature,
            top_k=top_k,
        )
        self.open.append(Open(script, self.batcher.admit(script.utterance, buffer=buffer)))

    @rule(which=counts, count=st.integers(1, 60))
    def take(self, which: int, count: int) -> None:
        """Of those who have a sequence or get one without anybody's doing: whoever came first."""
        if self.open and not self.shut:
            self._take(self.open[which % min(len(self.open), SEQUENCES)], count)

    @rule(which=counts)
    def cancel(self, which: int) -> None:
        if self.open:
            cancelled = self.open.pop(which % len(self.open))
            cancelled.ticket.cancel()
            if cancelled.ticket.ended != "error":
                assert Elsewhere(taken, cancelled.ticket).result() == []
                assert cancelled.ticket.ended in {"cancelled", "eos", "cap"}

    @rule(which=counts)
    def drop(self, which: int) -> None:
        if self.open:
            self.open.pop(which % len(self.open))
            gc.collect(0)

    @rule()
    def shut_the_gate(self) -> None:
        self.models.gate.shut()
        self.shut = True

    @rule(calls=st.integers(1, 30))
    def let_some_calls_through(self, calls: int) -> None:
        self.models.gate.allow(calls)

    @rule()
    def open_the_gate(self) -> None:
        self.models.gate.open()
        self.shut = False

    @rule()
    def lend(self) -> None:
        if len(self.open) < SEQUENCES and not self.shut:
            Elsewhere(self._borrow).result()

    @rule()
    def close(self) -> None:
        closing = Elsewhere(self.batcher.close)
        self.models.gate.open()
        closing.result()
        for each in self.open:
            try:
                each.heard += Elsewhere(taken, each.ticket).result()
            except (MisoError, PlannedError):
                assert each.ticket.ended == "error"
            else:
                assert each.heard == each.script.alone
        assert self.models.complaints == []
        self._begin()

    @invariant()
    def nobody_complains(self) -> None:
        assert self.models.complaints == []

    @invariant()
    def who_comes_first_is_served_first(self) -> None:
        chunks = [event.numbers[0] for event in self.models.calls("chunk")]
        assert chunks == sorted(chunks)

    def teardown(self) -> None:
        self.open_the_gate()
        while self.open:
            self._take(self.open[0], 1000)
        assert soon(lambda: (self.batcher.running, self.batcher.waiting) == (0, 0))
        self.models.gate.shut()
        last = [self.models.script(9) for _ in range(SEQUENCES)]
        tickets = [self.batcher.admit(script.utterance) for script in last]
        self.models.gate.open()
        assert [taken(ticket) for ticket in tickets] == [script.alone for script in last]
        assert len(self.models.calls("step")[-1].sequences) <= SEQUENCES
        assert max(len(event.sequences) for event in self.models.calls("step")[-12:]) == SEQUENCES, "all are back"
        self.batcher.close()
        assert self.models.complaints == []
        self.who_comes_first_is_served_first()

    def _take(self, each: Open, count: int) -> None:
        wanted = each.script.alone
        try:
            frames = Elsewhere(taken, each.ticket, count).result()
        except (MisoError, PlannedError):
            assert each.script.failed
            assert each.ticket.ended == "error"
            self.open.remove(each)
            return
        each.heard += frames
        assert each.heard == wanted[: len(each.heard)]
        if len(frames) < count:
            assert each.heard == wanted
            assert each.ticket.ended == ("cap" if len(wanted) == each.script.utterance.max_frames else "eos")
            self.open.remove(each)

    def _borrow(self) -> None:
        with self.batcher.lend([VOICES[0], block(9, 2)]) as sequence:
            assert 0 <= sequence < SEQUENCES


TestSchedules = Schedules.TestCase
# What fails depends on when the batcher's thread runs: a smaller example would not be one.
TestSchedules.settings = settings(
    max_examples=examples(20), stateful_step_count=40, deadline=None, phases=[Phase.generate]
)
