"""How a ticket ends before its utterance does: cancelled, dropped, by an error; and what that leaves to others."""

import atexit
import gc
import weakref
from collections.abc import Sequence

import pytest
from elsewhere import Elsewhere, soon
from python_calls import python_calls
from scripted_models import PlannedError, Script, ScriptedModels, scripted, taken

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.lm.ticket import Row

ROOMY = 1000


def assert_all_are_back(models: ScriptedModels, batcher: Batcher) -> None:
    """As many utterances as there are sequences are spoken at a time."""
    assert soon(lambda: (batcher.running, batcher.waiting) == (0, 0))
    models.gate.shut()
    scripts = [models.script(20) for _ in range(models.sequences)]
    tickets = [batcher.admit(script.utterance, buffer=ROOMY) for script in scripts]
    models.gate.open()
    for script, ticket in zip(scripts, tickets, strict=True):
        assert taken(ticket) == script.alone
    assert max(len(event.sequences) for event in models.calls("step")) == models.sequences


def calls_of(models: ScriptedModels, script: Script) -> int:
    return sum(script.number in event.numbers for event in list(models.events))


# Cancelled.


def test_cancelled_while_it_waits() -> None:
    with scripted(1) as (models, batcher):
        first, second, third = (models.script(10) for _ in range(3))
        models.gate.shut()
        tickets = [batcher.admit(script.utterance, buffer=ROOMY) for script in (first, second, third)]
        models.gate.wait_for_call()
        tickets[1].cancel()
        assert tickets[1].ended == "cancelled"
        assert taken(tickets[1]) == []
        models.gate.open()
        assert taken(tickets[0]) == first.alone
        assert taken(tickets[2]) == third.alone
        assert calls_of(models, second) == 0


def test_cancelled_while_its_prompt_comes_in() -> None:
    with scripted(1) as (models, batcher):
        script, after = models.script(10, rows=40), models.script(10, rows=40)
        models.gate.shut()
        ticket, other = (batcher.admit(each.utterance, buffer=ROOMY) for each in (script, after))
        models.gate.let(3)
        ticket.cancel()
        assert taken(ticket) == []
        models.gate.open()
        assert taken(other) == after.alone
        assert calls_of(models, script) <= 4, "the call that had begun, and no other"
        assert not script.said
        assert_all_are_back(models, batcher)


def test_cancelled_while_it_is_spoken() -> None:
    """What was not taken is dropped. The other row goes on."""
    with scripted(2) as (models, batcher):
        script, other = models.script(50), models.script(50)
        models.gate.shut()
        ticket, beside = (batcher.admit(each.utterance, buffer=ROOMY) for each in (script, other))
        models.gate.let(12)
        heard = taken(ticket, 2)
        calls = calls_of(models, script)
        ticket.cancel()
        assert taken(ticket) == []
        models.gate.open()
        assert taken(beside) == other.alone
        assert heard == script.alone[:2]
        assert calls_of(models, script) <= calls + 2, "the step that had begun, and its sample"
        assert ticket.ended == "cancelled"
        assert_all_are_back(models, batcher)


def test_what_was_not_taken_is_not_heard_after_closing() -> None:
    with scripted(1) as (models, batcher):
        script = models.script(200)
        ticket = batcher.admit(script.utterance, buffer=3)
        assert soon(lambda: len(script.said) == 3)
        batcher.close()
        with pytest.raises(MisoError, match="closed"):
            next(ticket)


def test_cancelled_while_its_frame_is_computed() -> None:
    """The frame that had begun is not heard either."""
    with scripted(1) as (models, batcher):
        models.gate.shut()
        ticket = batcher.admit(models.script(50).utterance)
        models.gate.let(1)
        ticket.cancel()
        models.gate.open()
        assert soon(lambda: ticket.times.frames == 1)
        assert taken(ticket) == []
        assert_all_are_back(models, batcher)


def test_cancelled_and_then_closed() -> None:
    """What ended it first is how it ended."""
    with scripted(1) as (models, batcher):
        models.gate.shut()
        ticket = batcher.admit(models.script(50).utterance)
        models.gate.wait_for_call()
        ticket.cancel()
        closing = Elsewhere(batcher.close)
        assert soon(lambda: batcher._closed)
        models.gate.open()
        closing.result()
        assert taken(ticket) == []
        assert ticket.ended == "cancelled"


def test_cancelled_when_it_has_ended_or_twice() -> None:
    with scripted(1) as (models, batcher):
        ticket = batcher.admit(models.script(3).utterance)
        taken(ticket)
        ticket.cancel()
        assert ticket.ended == "eos"
        ticket = batcher.admit(models.script(50).utterance)
        for _ in range(2):
            ticket.cancel()
            ticket.close()
            assert taken(ticket) == []
            assert ticket.ended == "cancelled"
        assert_all_are_back(models, batcher)


def test_cancelled_by_another_thread_than_the_one_that_waits() -> None:
    with scripted(1) as (models, batcher):
        models.gate.shut()
        ticket = batcher.admit(models.script(50).utterance)
        reader = Elsewhere(taken, ticket)
        models.gate.wait_for_call()
        assert not reader.is_done_after(0.02)
        Elsewhere(ticket.cancel).result()
        assert reader.result() == [], "though the models still compute"
        models.gate.open()
        assert_all_are_back(models, batcher)


def test_leaving_the_with_block_cancels() -> None:
    with scripted(1) as (models, batcher):
        with batcher.admit(models.script(50).utterance) as ticket:
            taken(ticket, 3)
        assert ticket.ended == "cancelled"
        with pytest.raises(ZeroDivisionError), batcher.admit(models.script(50).utterance) as ticket:
            raise ZeroDivisionError
        assert_all_are_back(models, batcher)


def test_cancelled_while_its_buffer_is_full() -> None:
    with scripted(1) as (models, batcher):
        script, after = models.script(50), models.script(5)
        ticket = batcher.admit(script.utterance, buffer=2)
        assert soon(lambda: len(script.said) == 2)
        other = batcher.admit(after.utterance)
        ticket.cancel()
        assert taken(other) == after.alone
        assert len(script.said) == 2


# Dropped.


@pytest.mark.parametrize("frames", [0, 1, 5])
def test_a_ticket_that_nobody_holds_gives_its_sequence_back(frames: int) -> None:
    with scripted(1) as (models, batcher):
        script, after = models.script(200), models.script(5)
        ticket = batcher.admit(script.utterance, buffer=2)
        taken(ticket, frames)
        del ticket
        gc.collect()
        assert taken(batcher.admit(after.utterance)) == after.alone
        assert len(script.said) <= frames + 3
        assert_all_are_back(models, batcher)


def test_a_ticket_is_dropped_while_it_waits() -> None:
    with scripted(1) as (models, batcher):
        first, second = models.script(10), models.script(10)
        models.gate.shut()
        ticket = batcher.admit(first.utterance)
        models.gate.wait_for_call()
        batcher.admit(second.utterance)
        gc.collect()
        models.gate.open()
        assert taken(ticket) == first.alone
        assert_all_are_back(models, batcher)
        assert calls_of(models, second) == 0


def test_a_ticket_that_was_closed_is_dropped_in_silence() -> None:
    """Nothing runs then: of an interrupt that came there Python would say that it ignores it."""
    with scripted(1) as (models, batcher):
        with batcher.admit(models.script(3).utterance) as ticket:
            taken(ticket)
        with python_calls() as called:
            del ticket
        assert not [code for code in called if code in {weakref.finalize.__call__.__code__, Row.cancel.__code__}]


# Errors.


@pytest.mark.parametrize(("where", "at"), [("step", 5), ("sample", 0), ("sample", 5)])
def test_an_error_ends_the_tickets_of_that_call_and_no_others(where: str, at: int) -> None:
    with scripted(3) as (models, batcher):
        guilty = models.script(50, fault=(where, at))
        beside, full, late = models.script(50), models.script(50), models.script(50, rows=40)
        slow = batcher.admit(full.utterance, buffer=1)
        assert soon(lambda: len(full.said) == 1)
        models.gate.shut()
        one, two, three = (batcher.admit(each.utterance, buffer=ROOMY) for each in (beside, guilty, late))
        models.gate.open()
        heard: dict[int, list[list[int]]] = {}
        for script, ticket in ((beside, one), (guilty, two)):
            heard[script.number] = []
            with pytest.raises(PlannedError, match=f"{where} of utterance {guilty.number}"):
                heard[script.number] += [next(ticket).tolist() for _ in range(len(script.alone) + 1)]
            assert ticket.ended == "error"
            with pytest.raises(PlannedError):
                next(ticket)
        assert taken(slow) == full.alone
        assert taken(three) == late.alone
        assert [script.failed for script in (beside, guilty, full, late)] == [True, True, False, False]
        assert_all_are_back(models, batcher)


def test_frames_before_an_error_are_heard() -> None:
    with scripted(1) as (models, batcher):
        script = models.script(50, fault=("step", 5))
        ticket = batcher.admit(script.utterance, buffer=ROOMY)
        assert soon(lambda: script.failed)
        assert taken(ticket, 5) == script.alone[:5]
        with pytest.raises(PlannedError):
            next(ticket)


@pytest.mark.parametrize("chunk", [0, 1, 9])
def test_an_error_in_a_prompt_ends_that_ticket_alone(chunk: int) -> None:
    with scripted(2) as (models, batcher):
        beside, guilty, after = (
            models.script(50),
            models.script(50, rows=40, fault=("prefill", chunk)),
            models.script(9),
        )
        models.gate.shut()
        one, two, three = (batcher.admit(each.utterance, buffer=ROOMY) for each in (beside, guilty, after))
        models.gate.open()
        with pytest.raises(PlannedError, match=f"prefill of utterance {guilty.number}"):
            next(two)
        assert taken(one) == beside.alone
        assert taken(three) == after.alone
        assert_all_are_back(models, batcher)


def test_an_error_in_the_choice_of_a_sequence_ends_that_ticket_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(2) as (models, batcher):
        beside, guilty, after = (models.script(9) for _ in range(3))
        shared = models.shared

        def failing(sequence: int, blocks: Sequence[Block]) -> int:
            if blocks is guilty.utterance.blocks:
                raise PlannedError("shared")
            return shared(sequence, blocks)

        monkeypatch.setattr(models, "shared", failing)
        one, two, three = (batcher.admit(each.utterance, buffer=ROOMY) for each in (beside, guilty, after))
        with pytest.raises(PlannedError, match="shared"):
            next(two)
        assert taken(one) == beside.alone
        assert taken(three) == after.alone
        assert_all_are_back(models, batcher)


@pytest.mark.parametrize("where", ["hidden", "logits"])
@pytest.mark.parametrize("frame", [0, 6])
def test_what_is_not_finite_names_the_frame_and_ends_that_ticket_alone(where: str, frame: int) -> None:
    with scripted(2) as (models, batcher):
        beside, guilty = models.script(50), models.script(50, fault=(where, frame))
        models.gate.shut()
        one, two = (batcher.admit(each.utterance, buffer=ROOMY) for each in (beside, guilty))
        models.gate.open()
        assert taken(two, frame) == guilty.alone[:frame]
        with pytest.raises(MisoError, match=rf"frame {frame}\b"):
            next(two)
        assert two.ended == "error"
        assert taken(one) == beside.alone
        assert_all_are_back(models, batcher)


def test_an_error_while_somebody_waits_for_a_frame() -> None:
    with scripted(1) as (models, batcher):
        script, after = models.script(50, fault=("step", 1)), models.script(5)
        models.gate.shut()
        ticket = batcher.admit(script.utterance)
        reader = Elsewhere(taken, ticket)
        models.gate.open()
        with pytest.raises(PlannedError):
            reader.result()
        assert taken(batcher.admit(after.utterance)) == after.alone


def test_errors_one_after_the_other_keep_nothing() -> None:
    with scripted(2) as (models, batcher):
        for number in range(40):
            where = ("prefill", "step", "sample", "hidden", "logits")[number % 5]
            script = models.script(9, fault=(where, 0 if where == "prefill" else 2))
            with pytest.raises((PlannedError, MisoError)):
                taken(batcher.admit(script.utterance))
        assert_all_are_back(models, batcher)


def test_a_program_does_not_end_under_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not closed is, as the interpreter ends; and what was is not kept until then."""
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    with scripted(1) as (models, batcher):
        ticket = batcher.admit(models.script(50).utterance)
        assert at_exit == [batcher.close]
        ticket.cancel()
    assert at_exit == []


def test_a_ticket_that_failed_is_gone_when_its_holder_forgets_it() -> None:
    """An error that was raised remembers the ticket; nothing that stays may remember the error."""
    with scripted(1) as (models, batcher):
        ticket = batcher.admit(models.script(9, fault=("step", 3)).utterance)
        there = weakref.ref(ticket)
        with pytest.raises(PlannedError):
            taken(ticket)
        del ticket
        gc.collect()
        assert there() is None
