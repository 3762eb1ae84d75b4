"""The model that a server holds: loaded once when it is wanted, unloaded when nobody wants it."""

import asyncio
import threading

import pytest
from scripted_speech import ScriptedTTS

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.serve.model import HeldModel

PATIENCE_S = 20


class Loader:
    """Gives a model each time, when it may."""

    def __init__(self) -> None:
        self.made: list[ScriptedTTS] = []
        self.may = threading.Event()
        self.failure: ValueError | None = None
        self.may.set()

    def __call__(self) -> MisoTTS:
        assert self.may.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        self.made.append(ScriptedTTS())
        return self.made[-1].as_tts


async def until_unloaded(load: Loader) -> None:
    async with asyncio_timeout():
        while not (load.made and load.made[-1].closed):
            await asyncio.sleep(0.005)


class asyncio_timeout:
    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, task.cancel)

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()


def test_many_who_want_it_at_once_load_it_once() -> None:
    load = Loader()

    async def scene() -> None:
        model = HeldModel("m", load)

        async def want() -> MisoTTS:
            async with model.use() as tts:
                await asyncio.sleep(0)
                return tts

        assert len(set(map(id, await asyncio.gather(*(want() for _ in range(20)))))) == 1
        assert model.loads == 1
        await model.close()
        await model.close()
        with pytest.raises(MisoError, match="closed"):
            await want()

    asyncio.run(scene())
    assert [tts.closed for tts in load.made] == [1]


def test_it_is_unloaded_when_nobody_has_used_it_for_a_while_and_loaded_again_on_demand() -> None:
    load = Loader()

    async def scene() -> None:
        model = HeldModel("m", load, idle_s=0.05)
        async with model.use():
            async with model.use():
                pass
            await model._unload_if_idle()  # as when its time was over just before somebody came
            await asyncio.sleep(0.2)
            assert not load.made[0].closed, "it is unloaded under who uses it"
        await until_unloaded(load)
        assert not model.is_loaded
        async with model.use() as tts:
            assert tts is load.made[1].as_tts
        assert model.loads == 2
        await model.close()

    asyncio.run(scene())
    assert [tts.closed for tts in load.made] == [1, 1]


def test_who_leaves_while_it_is_loaded_takes_it_from_nobody_and_leaves_none_behind() -> None:
    load = Loader()
    load.may.clear()

    async def scene() -> None:
        model = HeldModel("m", load, idle_s=0.05)

        async def want() -> None:
            async with model.use():
                pass

        leaves, stays = asyncio.create_task(want()), asyncio.create_task(want())
        await asyncio.sleep(0.02)
        assert model.is_loading
        leaves.cancel()
        await asyncio.sleep(0.02)
        load.may.set()
        await stays
        assert model.loads == 1
        await until_unloaded(load)
        load.may.clear()
        alone = asyncio.create_task(want())
        await asyncio.sleep(0.02)
        alone.cancel()
        load.may.set()
        async with asyncio_timeout():
            while model.loads < 2:
                await asyncio.sleep(0.005)
        await until_unloaded(load)  # though nobody was left when it was there

    asyncio.run(scene())
    assert [tts.closed for tts in load.made] == [1, 1]


def test_what_cannot_be_loaded_is_said_and_tried_again() -> None:
    load = Loader()
    load.failure = ValueError("no such level")

    async def scene() -> None:
        model = HeldModel("m", load)
        with pytest.raises(MisoError, match="m cannot be loaded: no such level"):
            async with model.use():
                pass
        assert not model.is_loading
        load.failure = None
        async with model.use():
            pass

    asyncio.run(scene())
