"""Streams of asyncio: awaited chunks and awaited text; whatever ends them frees the sequence and the thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elsewhere import PATIENCE_S, Elsewhere, soon
from speaking import load_tts

from miso_gguf import MisoError, MisoTTS, SpeechOptions
from miso_gguf.core.process import OwnProcess
from miso_gguf.runtime.speech import Chunk
from miso_gguf.runtime.synthesis import asynchronous
from miso_gguf.runtime.synthesis.asynchronous import AsyncSpeechStream

SENTENCES = ("First, something is said here.", "Then something else is said.")
TEXT = " ".join(SENTENCES)
SHORT = SpeechOptions(max_seconds=0.4, seed=2)
LONG = SpeechOptions(max_seconds=8, split_sentences=False)


@pytest.fixture(scope="module")
def wide(bundle: Path) -> Iterator[MisoTTS]:
    with load_tts(bundle, exact=True, sequences=2) as tts:
        yield tts


@pytest.fixture(autouse=True)
def nothing_is_left(wide: MisoTTS) -> Iterator[None]:
    """After each test all sequences are free, and there is no thread of a stream."""
    yield
    assert soon(lambda: not wide.engine.batcher.running and not wide.engine.batcher.waiting)
    assert soon(no_thread)


def no_thread() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "miso-astream"]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def within() -> Any:
        return await asyncio.wait_for(work, PATIENCE_S)

    return asyncio.run(within())


async def chunks_of(stream: AsyncSpeechStream) -> list[Chunk]:
    return [chunk async for chunk in stream]


async def pieces(*said: str, then: Callable[[], Any] | None = None) -> AsyncIterator[str]:
    for piece in said:
        await asyncio.sleep(0)
        yield piece
    if then is not None:
        await then()


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


# What is heard.


@pytest.mark.parametrize("kind", ["text", "iterable", "async iterable"])
def test_it_is_the_stream(wide: MisoTTS, kind: str) -> None:
    letters = [TEXT[start : start + 3] for start in range(0, len(TEXT), 3)]
    given: Any = {"text": TEXT, "iterable": letters, "async iterable": pieces(*letters)}[kind]
    expected = list(wide.stream(TEXT, options=SHORT))

    async def main() -> AsyncSpeechStream:
        async with wide.astream(given, options=SHORT) as stream:
            chunks = await chunks_of(stream)
            assert [chunk.sentence for chunk in chunks] == [chunk.sentence for chunk in expected]
            for found, wanted in zip(chunks, expected, strict=True):
                np.testing.assert_array_equal(found.samples, wanted.samples)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        await stream.aclose()
        return stream

    stream = run(main())
    assert [sentence.text for sentence in stream.speech.sentences] == list(SENTENCES)


def test_whole_sentences_and_errors_of_the_arguments(wide: MisoTTS) -> None:
    speech = wide.generate(TEXT, options=SHORT)

    async def main() -> None:
        async with wide.astream(TEXT, options=SHORT, live=False) as stream:
            assert [chunk.sentence for chunk in await chunks_of(stream)] == [0, 1]
        np.testing.assert_array_equal(stream.speech.codes, speech.codes)

    run(main())
    with pytest.raises(ValueError, match="nothing to say"):
        wide.astream("...")
    with pytest.raises(TypeError, match="text must be str"):
        wide.astream(5)  # type: ignore[arg-type]
    for piece in (None, 5):
        with pytest.raises(TypeError, match=f"each piece of text must be str, not {piece}"):
            run(chunks_of(wide.astream(pieces(piece), options=SHORT)))  # type: ignore[arg-type]


def test_a_sentence_is_spoken_before_the_next_piece_is_there(wide: MisoTTS) -> None:
    async def main() -> None:
        heard = asyncio.Event()
        text = pieces(f"{SENTENCES[0]} And ", then=heard.wait)
        async with wide.astream(text, options=SHORT) as stream:
            first = await anext(stream)
            assert first.sentence == 0
            heard.set()
            assert {chunk.sentence for chunk in await chunks_of(stream)} == {0, 1}

    run(main())


def test_twenty_at_once_with_two_sequences(wide: MisoTTS) -> None:
    """None waits for a thread, and they speak together."""
    options = [replace(SHORT, seed=seed) for seed in range(20)]
    expected = [wide.generate(TEXT, options=option).codes for option in options]
    widths: list[int] = []
    step = wide.engine.step

    def counting(sequences: Any, codes: Any) -> Any:
        widths.append(len(sequences))
        return step(sequences, codes)

    async def main() -> list[AsyncSpeechStream]:
        streams = [wide.astream(pieces(TEXT), options=option) for option in options]
        await asyncio.gather(*map(chunks_of, streams))
        return streams

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide.engine, "step", counting)
        streams = run(main())
    for stream, codes in zip(streams, expected, strict=True):
        np.testing.assert_array_equal(stream.speech.codes, codes)
    assert 2 in widths


def test_what_nobody_asks_for_is_not_spoken(wide: MisoTTS) -> None:
    """And whoever awaits something else is not held up."""

    async def main() -> None:
        async with wide.astream(TEXT, options=LONG) as stream:
            await anext(stream)
            await asyncio.sleep(0.1)
            assert stream.speech.audio_s == pytest.approx(0.08)

    run(main())


# What goes wrong.


def test_an_error_of_the_text_comes_after_what_was_spoken(wide: MisoTTS) -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    def also_broken() -> Iterator[str]:
        yield f"{SENTENCES[0]} And "
        raise ZeroDivisionError

    async def main(text: Any) -> None:
        heard: list[Chunk] = []
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with wide.astream(text, options=SHORT) as stream:
                async for chunk in stream:
                    heard.append(chunk)
        assert sum(len(chunk.samples) for chunk in heard) >= 5 * 1920
        assert [sentence.text for sentence in stream.speech.sentences] == [SENTENCES[0]]
        assert await chunks_of(stream) == []

    run(main(pieces(f"{SENTENCES[0]} And ", then=broken)))
    run(main(also_broken()))


@pytest.mark.parametrize("how", ["aclose", "cancelled", "timed out"])
def test_a_text_that_never_comes_holds_up_nobody(wide: MisoTTS, how: str) -> None:
    awaited: list[bool] = []
    cancelled: list[bool] = []

    async def for_ever_or_cancelled() -> None:
        awaited.append(True)
        try:
            await for_ever()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        stream = wide.astream(pieces(f"{SENTENCES[0]} And ", then=for_ever_or_cancelled), options=SHORT)
        reading = asyncio.create_task(chunks_of(stream))
        while not awaited:
            await asyncio.sleep(0.001)
        if how == "aclose":
            await stream.aclose()
            assert len(await reading) >= 5
        elif how == "cancelled":
            reading.cancel()
        else:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(reading, 0.01)
        while not cancelled:
            await asyncio.sleep(0.001)
        assert await chunks_of(stream) == []

    run(main())


def test_a_text_that_blocks_is_not_waited_for(wide: MisoTTS) -> None:
    blocks, go_on = threading.Event(), threading.Event()

    def blocking() -> Iterator[str]:
        yield f"{SENTENCES[0]} And "
        blocks.set()
        go_on.wait(PATIENCE_S)
        yield SENTENCES[1]

    async def main() -> None:
        stream = wide.astream(blocking(), options=SHORT)
        reading = asyncio.create_task(chunks_of(stream))
        while not blocks.is_set():
            await asyncio.sleep(0.001)
        await stream.aclose()
        assert not reading.done()
        go_on.set()
        assert len(await reading) >= 5
        assert len(stream.speech.sentences) == 1

    run(main())


@pytest.mark.parametrize("chunks", [0, 3])
def test_cancelled_it_stops_at_the_frame(wide: MisoTTS, chunks: int) -> None:
    """In its first frame, too; what was heard is on record."""

    async def main() -> None:
        begun = asyncio.Event()
        async with wide.astream(TEXT, options=LONG) as stream:

            async def read() -> None:
                for _ in range(chunks):
                    await anext(stream)
                begun.set()
                await chunks_of(stream)

            reading = asyncio.create_task(read())
            await begun.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        heard = stream.speech.audio_s
        assert chunks * 0.079 <= heard < 0.08 * (chunks + 3)
        await asyncio.sleep(0.02)
        assert stream.speech.audio_s == heard

    run(main())


@pytest.mark.parametrize("how", ["kept", "dropped", "loop closed"])
def test_the_end_of_the_loop_is_the_end_of_it(wide: MisoTTS, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(asynchronous, "_LOOK_S", 0.02)
    kept: list[AsyncSpeechStream] = []

    async def main() -> None:
        stream = wide.astream(pieces(TEXT + " ", then=for_ever), options=SHORT)
        await anext(stream)
        if how != "dropped":
            kept.append(stream)

    if how == "loop closed":
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    else:
        asyncio.run(main())
    assert soon(no_thread)
    for stream in kept:
        with pytest.raises(MisoError, match="another event loop"):
            run(chunks_of(stream))
        run(stream.aclose())


def test_dropped_in_a_loop_that_goes_on(wide: MisoTTS) -> None:
    async def main() -> None:
        async for _ in wide.astream(TEXT, options=LONG):
            break
        while not no_thread():
            await asyncio.sleep(0.001)

    run(main())


def test_the_model_is_closed_meanwhile(bundle: Path) -> None:
    tts = load_tts(bundle)

    async def main() -> None:
        async with tts.astream(TEXT, options=LONG) as stream:
            await anext(stream)
            await asyncio.to_thread(tts.close)
            with pytest.raises(MisoError, match="closed"):
                await chunks_of(stream)
        with pytest.raises(MisoError, match="closed"):
            tts.astream(TEXT)

    run(main())


def test_closed_by_one_task_while_another_reads(wide: MisoTTS) -> None:
    async def main() -> None:
        stream = wide.astream(TEXT, options=LONG)
        readers = [asyncio.create_task(chunks_of(stream)) for _ in range(2)]
        while not stream.speech.audio_s:
            await asyncio.sleep(0.001)
        await asyncio.gather(stream.aclose(), stream.aclose())
        assert [sentence.ended for sentence in stream.speech.sentences] == ["closed"]
        assert soon(no_thread)
        heard = [len(chunks) for chunks in await asyncio.gather(*readers)]
        assert 0 < sum(heard) < 100

    run(main())


def test_never_begun(wide: MisoTTS) -> None:
    async def main() -> None:
        async with wide.astream(TEXT) as stream:
            pass
        assert await chunks_of(stream) == []
        assert stream.speech.sentences == []

    run(main())


def test_a_forked_child_is_told(wide: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with wide.astream(TEXT, options=SHORT) as stream:
            await anext(stream)
            with monkeypatch.context() as child:
                child.setattr(OwnProcess, "is_here", False)
                with pytest.raises(MisoError, match="load a model after the fork"):
                    await anext(stream)
                await stream.aclose()

    Elsewhere(run, main()).result()
