"""Turns: who may speak, who waits, who is sent away."""

import asyncio
from collections import deque
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.serve.errors import ApiError
from miso_gguf.serve.turns import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_comes_when_too_many_wait_is_told_when_to_come_again() -> None:
    async def scene() -> ApiError:
        turns = Turns(streams=1, queue=1)
        turns._turn_s = 3.5
        async with turns.turn():
            second = turns.turn()
            waiting = asyncio.ensure_future(second.__aenter__())
            await settle()
            with pytest.raises(ApiError) as caught:
                async with turns.turn():
                    pass
            waiting.cancel()
        return caught.value

    error = asyncio.run(scene())
    assert (error.status, error.code, error.type) == (429, "server_busy", "rate_limit_error")
    assert error.headers == {"Retry-After": "7"}  # the turn of who waits, and one's own place in the queue
    assert error.message == "too many requests: 1 under way, 1 waiting; try again later"


def test_who_gives_up_when_a_turn_ends_has_given_up() -> None:
    async def scene() -> None:
        turns = Turns(streams=1, queue=1)
        async with turns.turn():
            waiting = asyncio.create_task(turns.turn().__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (turns.speaking, turns.waiting) == (0, 0)

    asyncio.run(scene())


def test_the_estimate_follows_what_turns_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("miso_gguf.serve.turns.time.perf_counter", lambda: now)
    turns = Turns(streams=2, queue=9)

    async def scene(count: int, seconds: float) -> None:
        nonlocal now
        for _ in range(count):
            async with turns.turn():
                now += seconds

    asyncio.run(scene(1, 8))
    assert turns.retry_after_s == 4  # what was guessed counts no more
    asyncio.run(scene(1, 32))
    assert turns.retry_after_s == 10
    asyncio.run(scene(60, 40))
    assert turns.retry_after_s == 20


@given(st.lists(st.tuples(st.sampled_from(["come", "go", "give up"]), st.integers(0, 20)), max_size=60))
def test_any_coming_and_going_is_first_come_first_served(moves: list[tuple[str, int]]) -> None:
    async def scene() -> None:
        turns, number, refused = Turns(streams=2, queue=3), 0, 0
        speaking: dict[int, asyncio.Event] = {}
        expected_waiting: deque[int] = deque()
        expected_speaking: set[int] = set()
        tasks: dict[int, asyncio.Task[None]] = {}

        async def speak(me: int) -> None:
            async with turns.turn():
                speaking[me] = asyncio.Event()
                try:
                    await speaking[me].wait()
                finally:
                    del speaking[me]

        def hand_on(me: int) -> None:
            expected_speaking.discard(me)
            if expected_waiting:
                expected_speaking.add(expected_waiting.popleft())

        for move, choice in moves:
            if move == "come":
                number += 1
                tasks[number] = asyncio.create_task(speak(number))
                if len(expected_speaking) < 2:
                    expected_speaking.add(number)
                elif len(expected_waiting) < 3:
                    expected_waiting.append(number)
                else:
                    refused += 1
            elif move == "go" and expected_speaking:
                me = sorted(expected_speaking)[choice % len(expected_speaking)]
                speaking[me].set()
                hand_on(me)
            elif move == "give up" and (there := [*expected_waiting, *sorted(expected_speaking)]):
                me = there[choice % len(there)]
                tasks[me].cancel()
                if me in expected_speaking:
                    hand_on(me)
                else:
                    expected_waiting.remove(me)
            await settle()
            assert set(speaking) == expected_speaking
            assert (turns.speaking, turns.waiting) == (len(expected_speaking), len(expected_waiting))
        for task in tasks.values():
            task.cancel()
        outcomes = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert sum(isinstance(outcome, ApiError) for outcome in outcomes) == refused
        assert (turns.speaking, turns.waiting) == (0, 0)

    asyncio.run(scene())


@pytest.mark.parametrize("has_been_given", [False, True])
def test_a_turn_goes_on_to_the_next_if_its_own_gives_up_as_it_comes(has_been_given: bool) -> None:
    async def scene() -> None:
        turns = Turns(streams=1, queue=2)
        async with AsyncExitStack() as first:
            await first.enter_async_context(turns.turn())
            entered = [turns.turn(), turns.turn()]
            gives_up, stays = (asyncio.ensure_future(each.__aenter__()) for each in entered)
            await settle()
            if not has_been_given:
                gives_up.cancel()  # and has not heard of it yet
        if has_been_given:
            gives_up.cancel()  # in the same step of the loop in which it was handed the turn
        await settle()
        with pytest.raises(asyncio.CancelledError):
            await gives_up
        assert stays.done()
        assert (turns.speaking, turns.waiting) == (1, 0)

    asyncio.run(scene())
