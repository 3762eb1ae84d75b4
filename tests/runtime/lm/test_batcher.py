"""The batcher's turns: who is computed when, with what, and how far ahead; on models that check what they hear."""

import time
from collections import Counter

import pytest
from elsewhere import Elsewhere, soon
from scripted_models import SPEC, Script, ScriptedModels, block, scripted, taken

from miso_gguf.core.errors import Busy, MisoError
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.ticket import Ticket

ROOMY = 1000
"""A buffer that is never full here."""


def admitted(models: ScriptedModels, batcher: Batcher, scripts: list[Script]) -> list[Ticket]:
    """Tickets of all of them, before the first of them is computed."""
    models.gate.shut()
    tickets = [batcher.admit(script.utterance, buffer=ROOMY) for script in scripts]
    models.gate.open()
    return tickets


# One utterance.


def test_one_utterance_ends_by_itself_at_its_longest_or_at_once() -> None:
    with scripted(1) as (models, batcher):
        by_itself = models.script(7)
        at_its_longest = models.script(7, max_frames=3)
        at_once = models.script(0)
        one_frame = models.script(7, max_frames=1)
        for script, frames, ended in (
            (by_itself, 7, "eos"),
            (at_its_longest, 3, "cap"),
            (at_once, 0, "eos"),
            (one_frame, 1, "cap"),
        ):
            ticket = batcher.admit(script.utterance)
            assert len(script.alone) == frames
            assert taken(ticket) == script.alone
            assert ticket.ended == ended
            with pytest.raises(StopIteration):
                next(ticket)
            assert ticket.times.frames == frames + (ended == "eos")


def test_the_eos_frame_is_fed_nowhere_and_the_last_one_neither() -> None:
    with scripted(1) as (models, batcher):
        taken(batcher.admit(models.script(3).utterance))
        assert [event.call for event in models.events] == ["chunk", "sample"] + 3 * ["step", "sample"]
        models.events.clear()
        taken(batcher.admit(models.script(3, max_frames=3).utterance))
        assert [event.call for event in models.events] == ["chunk", "sample"] + 2 * ["step", "sample"]


def test_all_positions_can_be_used_and_no_more_be_asked_for() -> None:
    with scripted(1) as (models, batcher):
        script = models.script(9, rows=SPEC.max_positions - 2, max_frames=2)
        assert taken(batcher.admit(script.utterance)) == script.alone
        too_long = models.script(9, rows=SPEC.max_positions - 2, max_frames=3)
        with pytest.raises(ValueError, match="max_frames must be 1 to 2 after this prompt, not 3"):
            batcher.admit(too_long.utterance)
        no_room = models.script(9, rows=SPEC.max_positions, max_frames=1)
        with pytest.raises(ValueError, match="max_frames"):
            batcher.admit(no_room.utterance)
        again = models.script(4)
        assert taken(batcher.admit(again.utterance)) == again.alone, "a refusal takes no sequence with it"


def test_what_goes_on_with_what_is_heard_comes_before_who_waits_and_is_not_turned_away() -> None:
    with scripted(1, waiting=1) as (models, batcher):
        scripts = [models.script(5) for _ in range(3)]
        models.gate.shut()
        tickets = [batcher.admit(scripts[0].utterance)]
        models.gate.wait_for_call()
        tickets.append(batcher.admit(scripts[1].utterance))
        with pytest.raises(Busy):
            batcher.admit(scripts[2].utterance)
        tickets.append(batcher.admit(scripts[2].utterance, queue="first"))
        models.gate.open()
        for script, ticket in zip(scripts, tickets, strict=True):
            assert taken(ticket) == script.alone
        order = [event.numbers[0] for event in models.calls("chunk")]
        assert list(dict.fromkeys(order)) == [0, 2, 1]


# Turns.


def test_a_prompt_comes_in_chunk_by_chunk_while_others_are_spoken() -> None:
    with scripted(2) as (models, batcher):
        scripts = [models.script(100), models.script(100, rows=12)]
        for script, ticket in zip(scripts, admitted(models, batcher, scripts), strict=True):
            assert taken(ticket) == script.alone
        turns = [(event.call, sorted(event.numbers)) for event in models.events[:16]]
        assert turns[:2] == [("chunk", [0]), ("sample", [0])]
        assert turns[2:11] == 2 * [("chunk", [1]), ("step", [0]), ("sample", [0])] + [
            ("chunk", [1]),
            ("step", [0]),
            ("sample", [0, 1]),
        ]
        assert turns[11:15] == 2 * [("step", [0, 1]), ("sample", [0, 1])]


def test_while_any_is_spoken_no_two_chunks_are_computed_in_a_row() -> None:
    """Whatever waits. And prompts come in one after the other, not by turns."""
    with scripted(4) as (models, batcher):
        scripts = [models.script(60 + index, rows=3 + 9 * index) for index in range(8)]
        for script, ticket in zip(scripts, admitted(models, batcher, scripts), strict=True):
            assert taken(ticket) == script.alone
        calls = [event.call for event in models.events]
        first = calls.index("sample")
        assert not any(pair == ("chunk", "chunk") for pair in zip(calls[first:], calls[first + 1 :], strict=False))
        order = [event.numbers[0] for event in models.calls("chunk")]
        assert order == sorted(order)


def test_a_sequence_is_taken_by_the_next_in_line_as_soon_as_it_is_free() -> None:
    """In waves of four these would take 80 steps."""
    with scripted(4) as (models, batcher):
        scripts = [models.script(40 if index % 4 == 0 else 10) for index in range(8)]
        for script, ticket in zip(scripts, admitted(models, batcher, scripts), strict=True):
            assert taken(ticket) == script.alone
        # The second long one waits for a short one, and for the prompts before its own.
        assert 50 <= len(models.calls("step")) <= 40 + 10 + 8


def test_whoever_came_first_is_served_first() -> None:
    with scripted(2) as (models, batcher):
        scripts = [models.script(3 + 5 * (index % 3), rows=2 + 4 * (index % 4)) for index in range(20)]
        tickets = admitted(models, batcher, scripts)
        for script, ticket in zip(scripts, tickets, strict=True):
            assert taken(ticket) == script.alone
        chunks = [event.numbers[0] for event in models.calls("chunk")]
        assert chunks == sorted(chunks)
        waits = [ticket.times.turns_waited for ticket in tickets]
        assert waits == sorted(waits)
        assert waits[0] == 0 < waits[2]
        assert waits[-1] <= len(models.calls("sample")) + len(chunks)


def test_no_more_than_so_many_wait() -> None:
    with scripted(1, waiting=2) as (models, batcher):
        scripts = [models.script(5) for _ in range(4)]
        models.gate.shut()
        tickets = [batcher.admit(scripts[0].utterance)]
        models.gate.wait_for_call()
        assert (batcher.running, batcher.waiting) == (1, 0)
        tickets += [batcher.admit(script.utterance) for script in scripts[1:3]]
        assert (batcher.running, batcher.waiting) == (1, 2)
        with pytest.raises(Busy, match=r"\b2\b") as caught:
            batcher.admit(scripts[3].utterance)
        assert caught.value.ahead == 2
        tickets[1].cancel()
        tickets[1] = batcher.admit(scripts[3].utterance)
        models.gate.open()
        for ticket, script in zip(tickets, [scripts[0], scripts[3], scripts[2]], strict=True):
            assert taken(ticket) == script.alone
        assert soon(lambda: (batcher.running, batcher.waiting) == (0, 0))


def test_where_none_may_wait_a_free_sequence_is_taken() -> None:
    with scripted(2, waiting=0) as (models, batcher):
        scripts = [models.script(5) for _ in range(3)]
        models.gate.shut()
        tickets = [batcher.admit(script.utterance) for script in scripts[:2]]
        with pytest.raises(Busy):
            batcher.admit(scripts[2].utterance)
        models.gate.open()
        for ticket, script in zip(tickets, scripts, strict=False):
            assert taken(ticket) == script.alone


def test_who_knows_of_the_many_is_not_turned_away_and_waits_in_turn() -> None:
    with scripted(1, waiting=0) as (models, batcher):
        scripts = [models.script(5) for _ in range(6)]
        models.gate.shut()
        tickets = [batcher.admit(script.utterance, queue="unlimited") for script in scripts]
        with pytest.raises(Busy) as caught:
            batcher.admit(models.script(5).utterance)
        assert caught.value.ahead >= 5
        models.gate.open()
        for script, ticket in zip(scripts, tickets, strict=True):
            assert taken(ticket) == script.alone
        order = [event.numbers[0] for event in models.calls("chunk")]
        assert list(dict.fromkeys(order)) == list(range(6))


def test_the_many_do_not_wait_for_ever_behind_what_nobody_reads() -> None:
    with scripted(1, waiting=0, patience_s=0.05) as (models, batcher):
        unread = models.script(30)
        reluctant = batcher.admit(unread.utterance, buffer=1)
        tickets = [batcher.admit(models.script(5).utterance, queue="unlimited") for _ in range(3)]
        for ticket in tickets:
            with pytest.raises(MisoError, match="nobody has read"):
                next(ticket)
        assert taken(reluctant) == unread.alone


@pytest.mark.parametrize("draws_ahead", [False, True])
def test_each_row_has_options_of_its_own(draws_ahead: bool) -> None:
    """The models compare every row's noise and `top_k` with its utterance's."""
    with scripted(4, draws_ahead=draws_ahead) as (models, batcher):
        scripts = [
            models.script(30, seed=2**64 - 1, temperature=0.5, top_k=1),
            models.script(30, seed=3, stream=1, temperature=0.0, top_k=7, max_frames=12),
            models.script(20, seed=3, stream=2, temperature=10.0, top_k=8),
            models.script(10, seed=3, stream=2**32, top_k=1 << 31, max_frames=9),
            models.script(15, top_k=2),
        ]
        for script, ticket in zip(scripts, admitted(models, batcher, scripts), strict=True):
            assert taken(ticket) == script.alone
        assert max(len(event.numbers) for event in models.calls("sample")) == 4


def test_a_prompt_goes_where_its_beginning_is_held_already() -> None:
    voice, other = [block(1, 8), block(2, 6)], [block(3, 8)]
    with scripted(4) as (models, batcher):
        models.hold(1, voice[:1])
        models.hold(2, voice)
        models.hold(3, other)
        scripts = [models.script(50, voice=voice), models.script(50, voice=other), models.script(50, voice=voice)]
        tickets = admitted(models, batcher, scripts)
        for script, ticket in zip(scripts, tickets, strict=True):
            assert taken(ticket) == script.alone
        where = {event.numbers[0]: event.sequences[0] for event in models.calls("chunk")}
        assert where == {0: 2, 1: 3, 2: 1}
        assert Counter(event.numbers[0] for event in models.calls("chunk")) == {0: 1, 1: 1, 2: 3}


# Readers.


def test_a_slow_reader_holds_back_only_itself() -> None:
    with scripted(2) as (models, batcher):
        slow, fast = models.script(30), models.script(60)
        reluctant = batcher.admit(slow.utterance, buffer=2)
        eager = batcher.admit(fast.utterance)
        assert taken(eager) == fast.alone
        assert len(slow.said) == 2
        assert taken(reluctant, 1) == slow.alone[:1]
        assert soon(lambda: len(slow.said) == 3)
        another = models.script(40)
        assert taken(batcher.admit(another.utterance)) == another.alone
        assert len(slow.said) == 3
        assert reluctant.ended is None
        assert taken(reluctant) == slow.alone[1:]


def test_nobody_reads_and_nothing_is_lost() -> None:
    """All are full, the batcher sleeps; whoever reads first goes on first."""
    with scripted(3) as (models, batcher):
        scripts = [models.script(10) for _ in range(3)]
        tickets = [batcher.admit(script.utterance, buffer=1) for script in scripts]
        assert soon(lambda: all(len(script.said) == 1 for script in scripts))
        count = len(models.events)
        for script, ticket in zip(reversed(scripts), reversed(tickets), strict=True):
            assert taken(ticket) == script.alone
        assert len(models.events) > count


def test_behind_those_that_nobody_reads_one_waits_only_so_long() -> None:
    with scripted(1, patience_s=0.05) as (models, batcher):
        unread, waiting, after = models.script(30), models.script(5), models.script(5)
        reluctant = batcher.admit(unread.utterance, buffer=1)
        with pytest.raises(MisoError, match=r"for 0.05 s nobody has read what is open, and it holds all sequences"):
            taken(batcher.admit(waiting.utterance))
        assert taken(reluctant) == unread.alone
        assert taken(batcher.admit(after.utterance)) == after.alone


def test_whoever_comes_late_waits_as_long_as_the_others() -> None:
    patience_s = 0.3
    with scripted(1, patience_s=patience_s) as (models, batcher):
        unread = batcher.admit(models.script(30).utterance, buffer=1)
        assert soon(lambda: unread.times.frames == 1)
        time.sleep(0.7 * patience_s)
        begin = time.perf_counter()
        late = batcher.admit(models.script(5).utterance)
        with pytest.raises(MisoError, match="nobody has read"):
            taken(late)
        assert time.perf_counter() - begin > patience_s


def test_behind_a_sequence_that_is_lent_one_waits_as_long_as_it_takes() -> None:
    with scripted(1, patience_s=0.02) as (models, batcher):
        script = models.script(5)
        with batcher.lend([block(7, 5)]):
            reader = Elsewhere(lambda: taken(batcher.admit(script.utterance)))
            assert not reader.is_done_after(0.1)
        assert reader.result() == script.alone


def test_a_ticket_is_read_on_any_thread() -> None:
    with scripted(1) as (models, batcher):
        script = models.script(40)
        ticket = Elsewhere(lambda: batcher.admit(script.utterance)).result()
        found = taken(ticket, 5)
        for count in (1, 7, None):
            found += Elsewhere(taken, ticket, count).result()
        assert found == script.alone


def test_several_threads_share_a_ticket() -> None:
    """Each frame goes to one of them, and none hears them out of order."""
    with scripted(1) as (models, batcher):
        script = models.script(200)
        models.gate.shut()
        ticket = batcher.admit(script.utterance)
        readers = [Elsewhere(taken, ticket) for _ in range(4)]
        models.gate.open()
        parts = [reader.result() for reader in readers]
        together = sorted(map(tuple, (frame for part in parts for frame in part)))
        assert together == sorted(map(tuple, script.alone))
        for part in parts:
            rest = iter(script.alone)
            assert all(frame in rest for frame in part)


def test_many_threads_admit_at_once() -> None:
    with scripted(3) as (models, batcher):
        scripts = [models.script(5 + index % 7) for index in range(24)]

        def speak(mine: list[Script]) -> bool:
            return all(taken(batcher.admit(script.utterance, buffer=3)) == script.alone for script in mine)

        speakers = [Elsewhere(speak, scripts[start::6]) for start in range(6)]
        assert all(speaker.result() for speaker in speakers)


def test_a_ticket_knows_its_times() -> None:
    with scripted(1) as (models, batcher):
        first, second = admitted(models, batcher, [models.script(20) for _ in range(2)])
        taken(first)
        taken(second)
        for ticket in (first, second):
            times = ticket.times
            spent = (times.prefill_s, times.backbone_s, times.depth_s, times.host_s)
            assert min(spent) >= 0 < times.first_frame_s
            assert times.waited_s <= times.first_frame_s
            assert times.frames == 21
        assert first.times.turns_waited == 0
        assert 20 <= second.times.turns_waited <= 23
        assert second.times.waited_s > 0
