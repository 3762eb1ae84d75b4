"""Closing the batcher, lending its sequences, an interrupt, and a fork: everything can be stopped at any time."""

import signal
import sys
import threading
import time

import pytest
from elsewhere import Elsewhere, soon
from forking import run_script
from scripted_models import Script, ScriptedModels, block, scripted, taken

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.lm.batcher import Batcher

PROMPT = [block(7, 5)]
posix = pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a thread, or forks")


def lent_once(batcher: Batcher) -> int:
    with batcher.lend(PROMPT) as sequence:
        return sequence


# Closing.


def test_closing_ends_every_ticket() -> None:
    """One is spoken, one is full, one comes in, one waits."""
    with scripted(3) as (models, batcher):
        full, spoken = models.script(200), models.script(200)
        tickets = [batcher.admit(full.utterance, buffer=1)]
        assert soon(lambda: len(full.said) == 1)
        tickets.append(batcher.admit(spoken.utterance))
        assert taken(tickets[1], 5) == spoken.alone[:5]
        tickets += [batcher.admit(models.script(200, rows=300).utterance) for _ in range(2)]
        batcher.close()
        for ticket in tickets:
            with pytest.raises(MisoError, match="closed"):
                taken(ticket)
            with pytest.raises(MisoError, match="closed"):
                next(ticket)
            ticket.cancel()


def test_whoever_waits_for_a_frame_is_woken_by_closing() -> None:
    with scripted(1) as (models, batcher):
        models.gate.shut()
        tickets = [batcher.admit(models.script(200).utterance) for _ in range(3)]
        readers = [Elsewhere(taken, ticket) for ticket in tickets]
        models.gate.wait_for_call()
        assert not any(reader.is_done_after(0.01) for reader in readers)
        closing = Elsewhere(batcher.close)
        for reader in readers:
            with pytest.raises(MisoError, match="closed"):
                reader.result()
        assert not closing.is_done_after(0.02), "a call of the models still runs"
        models.gate.open()
        closing.result()
        assert len(models.events) <= 1, "and was the last one"


def test_after_closing_every_call_says_so() -> None:
    with scripted(1) as (models, batcher):
        script = models.script(5)
        assert taken(batcher.admit(script.utterance)) == script.alone
        for _ in range(2):
            batcher.close()
            with pytest.raises(MisoError, match="closed"):
                batcher.admit(models.script(5).utterance)
            with pytest.raises(MisoError, match="closed"):
                lent_once(batcher)
        Elsewhere(batcher.close).result()


def test_a_batcher_that_was_never_used_is_closed() -> None:
    threads = threading.active_count()
    batcher = Batcher(ScriptedModels())
    assert threading.active_count() == threads, "its thread is started when there is something to do"
    batcher.close()
    with pytest.raises(MisoError, match="closed"):
        batcher.admit(ScriptedModels().script(5).utterance)


def test_several_threads_close_at_once() -> None:
    with scripted(2) as (models, batcher):
        ticket = batcher.admit(models.script(200).utterance)
        taken(ticket, 2)
        for closing in [Elsewhere(batcher.close) for _ in range(4)]:
            closing.result()
        with pytest.raises(MisoError, match="closed"):
            taken(ticket)


def test_an_error_of_the_callers_own_comes_through() -> None:
    models = ScriptedModels()
    script = models.script(200)
    with pytest.raises(ZeroDivisionError), Batcher(models) as batcher:  # noqa: PT012
        ticket = batcher.admit(script.utterance)
        taken(ticket, 3)
        raise ZeroDivisionError
    with pytest.raises(MisoError, match="closed"):
        taken(ticket)
    assert models.complaints == []


def test_closing_while_all_threads_are_at_it() -> None:
    """Whatever they are at, they get what they asked for or `MisoError`, and none of them stays."""
    for delay_ms in range(8):
        with scripted(2) as (models, batcher):
            scripts = [[models.script(3 + turn % 4, rows=9) for turn in range(400)] for _ in range(4)]

            def speak(batcher: Batcher, mine: list[Script]) -> bool:
                return all(taken(batcher.admit(script.utterance, buffer=2)) == script.alone for script in mine)

            speakers = [Elsewhere(speak, batcher, mine) for mine in scripts]
            time.sleep(delay_ms / 1000)
            batcher.close()
            for speaker in speakers:
                with pytest.raises(MisoError, match="closed"):
                    speaker.result()


# Lending.


def test_a_sequence_that_is_lent_is_nobody_elses() -> None:
    with scripted(1) as (models, batcher):
        script = models.script(5)
        with batcher.lend(PROMPT) as sequence:
            assert sequence == 0
            ticket = batcher.admit(script.utterance)
            assert not Elsewhere(taken, ticket).is_done_after(0.02)
            assert models.events == []
        assert soon(lambda: len(script.said) == 5)


def test_lending_waits_its_turn() -> None:
    with scripted(1) as (models, batcher):
        first, second = models.script(5), models.script(5)
        models.gate.shut()
        ticket = batcher.admit(first.utterance, buffer=100)
        models.gate.wait_for_call()
        borrower = Elsewhere(lambda: (lent_once(batcher), len(first.said)))
        assert not borrower.is_done_after(0.02)
        later = batcher.admit(second.utterance, buffer=100)
        models.gate.open()
        sequence, before = borrower.result()
        assert (sequence, before) == (0, 5)
        assert taken(ticket) == first.alone
        assert taken(later) == second.alone


def test_what_is_lent_is_the_sequence_that_holds_most() -> None:
    with scripted(3) as (models, batcher):
        voice = [block(1, 4), block(2, 4), block(3, 4)]
        models.hold(1, voice)
        models.hold(2, voice[:1])
        with batcher.lend(voice) as first, batcher.lend(voice) as second, batcher.lend(voice) as third:
            assert (first, second, third) == (1, 2, 0)


def test_what_was_lent_comes_back_after_an_error_too() -> None:
    with scripted(1) as (models, batcher):
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), batcher.lend(PROMPT):
                raise ZeroDivisionError
        script = models.script(5)
        assert taken(batcher.admit(script.utterance)) == script.alone


def test_closing_while_sequences_are_lent_or_waited_for() -> None:
    with scripted(1) as (_models, batcher):
        with batcher.lend(PROMPT):
            borrower = Elsewhere(lent_once, batcher)
            assert not borrower.is_done_after(0.02)
            Elsewhere(batcher.close).result()
            with pytest.raises(MisoError, match="closed"):
                borrower.result()
        with pytest.raises(MisoError, match="closed"):
            lent_once(batcher)


# Ctrl-C and fork.


@posix
@pytest.mark.parametrize("closes", [False, True])
def test_an_interrupt_while_a_call_is_waited_for(closes: bool) -> None:
    """Nobody wants it any more: it is not made, and does not stand in the way of closing."""
    main = threading.main_thread().ident
    if threading.get_ident() != main:
        pytest.skip("tests do not run on the main thread here")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    made: list[str] = []
    try:
        with scripted(1) as (models, batcher):
            models.gate.shut()
            script = models.script(5)
            ticket = batcher.admit(script.utterance)
            models.gate.wait_for_call()
            threading.Timer(0.03, signal.pthread_kill, [main, signal.SIGINT]).start()
            with pytest.raises(KeyboardInterrupt):
                batcher.run(lambda: made.append("a call"))
            closing = Elsewhere(batcher.close) if closes else None
            assert soon(lambda: batcher._closed == closes)
            models.gate.open()
            if closing is not None:
                closing.result()
            else:
                assert taken(ticket) == script.alone
                assert batcher.run(lambda: "another") == "another"
    finally:
        signal.signal(signal.SIGINT, handler)
    assert made == []


@posix
def test_an_interrupt_while_a_frame_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main thread, blocked: it gets out at once, and all goes on as if it had not been."""
    main = threading.main_thread().ident
    if threading.get_ident() != main:
        pytest.skip("tests do not run on the main thread here")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with scripted(1) as (models, batcher):
            script, after = models.script(20), models.script(5)
            models.gate.shut()
            ticket = batcher.admit(script.utterance)
            for _ in range(3):
                threading.Timer(0.03, signal.pthread_kill, [main, signal.SIGINT]).start()
                with pytest.raises(KeyboardInterrupt):
                    next(ticket)
            models.gate.open()
            assert taken(ticket) == script.alone
            with batcher.lend(PROMPT):
                threading.Timer(0.03, signal.pthread_kill, [main, signal.SIGINT]).start()
                with pytest.raises(KeyboardInterrupt):
                    lent_once(batcher)
            assert taken(batcher.admit(after.utterance)) == after.alone
    finally:
        signal.signal(signal.SIGINT, handler)


FORK = """
import os, signal, sys, threading
from forking import refused
from scripted_models import ScriptedModels, block, scripted, taken
from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.lm.batcher import Batcher

PROMPT = [block(7, 5)]

def lent():
    with batcher.lend(PROMPT):
        pass

def ended(child):
    _, status = os.waitpid(child, 0)
    assert status == 0, status

class Slow(ScriptedModels):
    def shared(self, sequence, blocks):
        inside.set()
        go_on.wait()
        return super().shared(sequence, blocks)

with scripted(2) as (models, batcher):
    for number in range(8):
        script, other = models.script(40), models.script(5)
        ticket, beside = batcher.admit(script.utterance, buffer=100), batcher.admit(other.utterance)
        heard = taken(ticket, number)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            refused(lambda: batcher.admit(models.script(3).utterance))
            refused(lambda: next(ticket))
            refused(lambda: next(beside))
            refused(lent)
            ticket.cancel()
            beside.close()
            batcher.close()
            del ticket, beside
            refused(lambda: batcher.admit(models.script(3).utterance))
            os._exit(0)
        ended(child)
        assert heard + taken(ticket) == script.alone
        assert taken(beside) == other.alone

# Its thread is in the middle of something, whatever it holds there: nobody gives that back in the child.
inside, go_on = threading.Event(), threading.Event()
go_on.set()
models = Slow(3)
with Batcher(models) as batcher:
    one, two = (batcher.admit(models.script(300).utterance, buffer=2) for _ in range(2))
    taken(one, 2)
    taken(two, 2)
    with batcher.lend(PROMPT):
        one.cancel()
        inside.clear()
        go_on.clear()
        late = models.script(3)
        three = batcher.admit(late.utterance)
        assert inside.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
        else:
            go_on.set()
    if child == 0:
        refused(lambda: batcher.admit(models.script(3).utterance))
        refused(lambda: next(two))
        refused(lent)
        two.cancel()
        assert one.ended == "cancelled"
        assert batcher.running + batcher.waiting >= 0
        batcher.close()
        del one, two, three
        os._exit(0)
    ended(child)
    assert taken(three) == late.alone
assert models.complaints == []
print("done")
"""


@posix
def test_a_forked_child_is_told_and_the_parent_goes_on() -> None:
    """Whatever the batcher's thread was at: it is not there in the child, and what it held nobody gives back."""
    done = run_script(FORK)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
