"""How large a first chunk is: what streams before needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.serve.speech.pace import MOST_FRAMES, Lead, Pace

FRAME_S = 0.08


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("miso_gguf.serve.speech.pace.time.perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def spoken(clock: Clock, gaps_s: list[float], first_frames: int = 1, speed: float = 1.0) -> Lead:
    """A stream whose frames come after such gaps."""
    lead, waiting_s = Lead(), 0.0
    for number, gap_s in enumerate([0.0, *gaps_s], 1):
        clock.now += gap_s
        lead.made(FRAME_S)
        waiting_s += FRAME_S / speed
        if number >= first_frames:
            lead.left(waiting_s)
            waiting_s = 0.0
    return lead


def test_a_stream_that_is_faster_than_real_time_needs_no_lead(clock: Clock) -> None:
    lead = spoken(clock, [0.04] * 50)
    assert lead.needed_s == 0
    assert not lead.is_dry
    pace = Pace()
    pace.note(lead, 1)
    assert pace.first_frames(1) == 1
    assert pace.underruns == 0


def test_one_slow_step_makes_the_next_first_chunk_so_much_larger(clock: Clock) -> None:
    pace = Pace()
    lead = spoken(clock, [0.24, *[0.06] * 20])  # the second frame comes 160 ms after it should
    assert lead.needed_s == pytest.approx(0.16)
    assert lead.is_dry
    pace.note(lead, 3)
    assert pace.underruns == 1
    assert pace.first_frames(3) == 3
    assert pace.first_frames(8) == 3  # with more of them it is no faster
    assert pace.first_frames(2) == 1  # with fewer it was never seen
    assert not spoken(clock, [0.24, *[0.06] * 20], first_frames=3).is_dry


def test_what_is_not_needed_any_more_fades(clock: Clock) -> None:
    pace = Pace()
    pace.note(spoken(clock, [0.5]), 2)
    sizes = [pace.first_frames(2)]
    while sizes[-1] > 1:
        pace.note(spoken(clock, [0.04]), 2)
        sizes.append(pace.first_frames(2))
        assert len(sizes) < 30
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 6


def test_a_stall_of_minutes_fades_as_fast_as_the_largest_first_chunk(clock: Clock) -> None:
    pace = Pace()
    pace.note(spoken(clock, [300.0]), 1)
    assert pace.first_frames(1) == MOST_FRAMES
    for _ in range(20):
        pace.note(spoken(clock, [0.04]), 1)
    assert pace.first_frames(1) == 1


def test_what_one_alone_once_needed_fades_while_nobody_is_alone(clock: Clock) -> None:
    pace = Pace()
    pace.note(spoken(clock, [0.5]), 1)
    assert pace.first_frames(3) == 6
    for _ in range(20):
        pace.note(spoken(clock, [0.04]), 3)
    assert pace.first_frames(3) == pace.first_frames(1) == 1
    pace.note(spoken(clock, [0.5]), 3)
    for _ in range(20):
        pace.note(spoken(clock, [0.04]), 1)
    assert (pace.first_frames(1), pace.first_frames(3)) == (1, 6)  # one alone says nothing about three


def test_who_speaks_faster_needs_more_and_runs_dry_earlier(clock: Clock) -> None:
    pace = Pace()
    pace.note(spoken(clock, [0.24]), 1)
    assert [pace.first_frames(1, speed) for speed in (0.25, 1.0, 2.0, 4.0)] == [2, 3, 5, 8]
    assert spoken(clock, [0.06] * 9, speed=2.0).is_dry
    assert not spoken(clock, [0.06] * 9).is_dry
    assert not spoken(clock, [0.24] * 9, speed=0.25).is_dry


def test_a_first_chunk_has_a_most(clock: Clock) -> None:
    pace = Pace()
    pace.note(spoken(clock, [0.3] * 100), 1)
    assert pace.first_frames(1) == MOST_FRAMES


def test_time_in_which_nobody_took_anything_does_not_count(clock: Clock) -> None:
    lead = Lead()
    lead.made(FRAME_S)
    lead.left(FRAME_S)
    clock.now += 9.0
    lead.made(FRAME_S, blocked_s=8.96)
    lead.left(FRAME_S, blocked_s=8.96)
    assert lead.needed_s == 0
    assert not lead.is_dry


@given(st.lists(st.floats(0, 0.5), max_size=40))
def test_who_waits_as_long_as_was_needed_never_runs_dry(gaps_s: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        needed_s = spoken(clock, gaps_s).needed_s
        playing_since, made_s, now = needed_s, 0.0, 0.0
        for gap_s in [0.0, *gaps_s]:
            now += gap_s
            assert now - playing_since <= made_s + 1e-9
            made_s += FRAME_S
