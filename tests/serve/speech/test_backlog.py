"""The backlog: what the thread puts is what the loop takes, in order; it is bounded; either side may end it."""

import asyncio
import threading

import pytest

from miso_gguf.serve.speech.backlog import Backlog, Shelf


async def all_of(backlog: Backlog) -> bytes:
    whole = b""
    while pieces := await backlog.take():
        whole += b"".join(pieces)
    return whole


def test_everything_arrives_in_order_whoever_is_faster() -> None:
    async def scene() -> tuple[bytes, float]:
        backlog = Backlog(asyncio.get_running_loop(), Shelf(10))

        def put() -> None:
            for number in range(2000):
                backlog.put(number.to_bytes(2, "big"))
            backlog.end()

        thread = threading.Thread(target=put)
        thread.start()
        whole = await all_of(backlog)
        await asyncio.to_thread(thread.join)
        return whole, backlog.blocked_s

    whole, blocked_s = asyncio.run(scene())
    assert whole == b"".join(number.to_bytes(2, "big") for number in range(2000))
    assert blocked_s > 0


def test_a_full_one_holds_up_its_thread_until_it_is_taken_or_closed() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        for free in ("take", "close", "end"):
            backlog = Backlog(loop, Shelf(4))
            backlog.put(b"1234")
            putting = asyncio.create_task(asyncio.to_thread(backlog.put, b"5"))
            done, _ = await asyncio.wait([putting], timeout=0.05)
            assert not done
            if free == "take":
                assert await backlog.take() == [b"1234"]
            elif free == "close":
                backlog.close()
            else:
                backlog.end()
            await asyncio.wait_for(putting, 10)
            if free == "take":
                assert await backlog.take() == [b"5"]

    asyncio.run(scene())


def test_an_error_comes_after_all_that_was_put() -> None:
    async def scene() -> None:
        backlog = Backlog(asyncio.get_running_loop(), Shelf(100))
        backlog.put(b"heard")
        backlog.put(b"")
        backlog.end(ValueError("it broke"))
        backlog.end()  # the first end counts
        assert await backlog.take() == [b"heard"]
        for _ in range(2):
            with pytest.raises(ValueError, match="it broke"):
                await backlog.take()

    asyncio.run(scene())


def test_what_is_put_when_nobody_takes_goes_nowhere() -> None:
    async def begun() -> Backlog:
        return Backlog(asyncio.get_running_loop(), Shelf(1))

    backlog = asyncio.run(begun())
    backlog.put(b"the loop is closed")
    backlog.put(b"and this does not wait")
    assert not backlog._pieces


def test_a_shelf_that_others_have_filled_holds_up_nobody_who_takes_his_own() -> None:
    async def scene() -> None:
        shelf, loop = Shelf(10), asyncio.get_running_loop()
        slow, fast = Backlog(loop, shelf), Backlog(loop, shelf)
        slow.put(bytes(10))
        for number in range(3):
            fast.put(bytes([number]))  # waits for nobody
            assert await fast.take() == [bytes([number])]
        fast.put(b"a")
        putting = asyncio.create_task(asyncio.to_thread(fast.put, b"b"))
        done, _ = await asyncio.wait([putting], timeout=0.05)
        assert not done
        slow.close()
        await asyncio.wait_for(putting, 10)
        assert await fast.take() == [b"a", b"b"]
        assert shelf.held_bytes == 0

    asyncio.run(scene())
