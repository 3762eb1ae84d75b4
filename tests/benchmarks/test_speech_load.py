"""What is said of a load: arrivals, turns, gaps, right and wrong sound."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from arrivals import Arrival, Asked, Heard, asked_for, frames_per_s, over_network, spread
from paced import CHUNK, FRAME, PacedCall
from speech_load import beyond_frames, figures, is_right, lost_ms_a_call, own_frames, turns

FRAME_SAMPLES = 1920
CALLS = [
    PacedCall(FRAME, 10.0, 10.04),
    PacedCall(CHUNK, 10.04, 10.05, prompt=7),
    PacedCall(FRAME, 10.05, 10.09),
    PacedCall(CHUNK, 10.09, 10.10, prompt=8),
    PacedCall(FRAME, 10.10, 10.14),
    PacedCall(CHUNK, 10.14, 10.15, prompt=8),
    PacedCall(FRAME, 10.15, 10.19),
]


def heard(sent: float, times: Sequence[float], frames: Sequence[int] | None = None, **fields: object) -> Heard:
    samples = [FRAME_SAMPLES * count for count in frames or [1] * len(times)]
    answer = Heard(Asked(0, "a", 0), sent, list(times), samples)
    for name, value in fields.items():
        setattr(answer, name, value)
    return answer


def test_requests_are_the_same_every_time_and_no_two_alike() -> None:
    asked = asked_for(200)
    assert asked == asked_for(300)[:200]
    assert len({each.text for each in asked}) == 200
    assert [each.number for each in asked] == [each.seed for each in asked] == list(range(200))


def test_arrivals_are_dealt_out_in_turn() -> None:
    asked = asked_for(100)
    by_client = spread(asked, 3, each_s=0.5)
    assert [arrival.asked for arrival in by_client[1]] == asked[1::3]
    arrivals = sorted((arrival for of_client in by_client for arrival in of_client), key=lambda each: each.at_s)
    assert [arrival.asked for arrival in arrivals] == asked
    assert arrivals[0].at_s == 0
    assert arrivals[-1].at_s == pytest.approx(50, rel=0.3)


def test_a_client_has_one_request_at_a_time() -> None:
    open_now, most = [0, 0], [0, 0]

    async def speak(client: int, asked: Asked) -> Heard:
        open_now[client] += 1
        most[client] = max(most[client], open_now[client])
        await asyncio.sleep(0.001)
        open_now[client] -= 1
        return Heard(asked, 0.0)

    schedule = [[Arrival(asked, 0.0) for asked in asked_for(6)[client::2]] for client in range(2)]
    found = asyncio.run(over_network(speak, schedule))
    assert sorted(each.asked.number for each in found) == list(range(6))
    assert most == [1, 1]


def test_turns_ahead_are_those_after_the_one_under_way() -> None:
    during_first = turns(CALLS, sent=10.01, prompt=8)
    assert during_first.ahead_s == pytest.approx(0.01 + 0.04)
    assert during_first.chunks == 2
    assert turns(CALLS, sent=10.01, prompt=7)[:2] == (0, 1)
    answer = heard(10.01, [10.20])
    assert beyond_frames([answer], CALLS, {0: 8}, 0.04) == [pytest.approx((0.19 - 0.05) / 0.04 - 2)]
    assert own_frames([answer], CALLS, {0: 8}, 0.04) == [pytest.approx((10.20 - during_first.begin) / 0.04 - 2)]
    assert during_first.begin == next(call.begin for call in CALLS if call.prompt == 8)


def test_time_that_an_engine_loses_between_its_calls() -> None:
    calls = [PacedCall(FRAME, *times) for times in ((0, 0.04), (0.046, 0.086), (0.086, 0.126), (5.0, 5.04))]
    assert lost_ms_a_call(calls, 0.04) == 3.0
    assert lost_ms_a_call(calls[:1], 0.04) == 0.0


def test_a_listener_runs_dry_when_a_piece_comes_after_the_sound_before_it() -> None:
    assert heard(0, [1.0, 1.08, 1.1]).underrun_s == pytest.approx(0, abs=1e-9)
    late = heard(0, [1.0, 1.06, 1.25, 1.26], [1, 1, 2, 1])
    assert late.underrun_s == pytest.approx(0.25 - 0.16)
    assert late.ttfa_s == 1.0
    assert late.rtf == pytest.approx(1.26 / 0.4)
    assert late.frames == 5
    assert late.audio_s == pytest.approx(0.4)


def test_figures_count_what_was_not_answered() -> None:
    well, dry = heard(0, [1.0, 1.05]), heard(1.0, [2.0, 2.09], [1, 2])
    barely, refused = heard(0.5, [1.0, 1.09]), heard(0, [], status=429)
    found = figures([well, dry, barely, refused, heard(0, [1.0], is_cut=True), heard(0, [])], cpu_s=0.056)
    assert (found["requests"], found["refused"], found["lost"]) == (6, 1, 2)
    assert found["frames"] == 7
    assert found["frames_per_s"] == round(7 / 2.09, 2) == round(frames_per_s([well, dry, barely]), 2)
    assert found["audio_underrun_ms"] == 10.0
    assert (found["continuity"], found["continuity_without_buffer"]) == (1.0, 0.3333)
    assert found["cpu_ms_a_second_of_audio"] == 100.0
    assert found["audio_ttfp_ms"] == {"p50": 1000.0, "p95": 1000.0}
    assert figures([well, heard(0, [1.0, 1.11])], 0)["continuity"] == 0.5


def test_sound_may_be_rounded_otherwise_and_no_more() -> None:
    alone = np.array([0, 5, -32768, 32767], "<i2")
    assert is_right((alone + np.array([1, -1, 0, 0], "<i2")).tobytes(), alone.tobytes())
    assert not is_right((alone + np.array([2, 0, 0, 0], "<i2")).tobytes(), alone.tobytes())
    assert not is_right(alone[:-1].tobytes(), alone.tobytes())
    assert not is_right(np.array([0, 5, 32767, -32768], "<i2").tobytes(), alone.tobytes())
