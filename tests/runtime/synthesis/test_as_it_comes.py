"""Text that comes in pieces, and speech that its listener stops: what is said, and what is known of it afterwards."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from speaking import Scripted, load_tts, random_codes

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Chunk, Segment
from miso_gguf.runtime.synthesis import speaker
from miso_gguf.runtime.synthesis.sentences import SentenceSplitter
from miso_gguf.runtime.synthesis.stopping import KEPT_FRAMES, LOOP_FRAMES
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.runtime.voice import Voice

FRAME = 1920
SENTENCES = ("First, something is said here.", "Then something else is said.", "And that is all there is to say.")
TEXT = " ".join(SENTENCES)
BRIEF = SpeechOptions(max_seconds=0.4)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[MisoTTS]:
    with load_tts(bundle, exact=True, sequences=2) as tts:
        yield tts


# Text as it comes.


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=len(TEXT)), st.booleans())
def test_pieces_give_the_codes_of_the_whole(model: MisoTTS, sizes: list[int], live: bool) -> None:
    pieces, begin = [], 0
    for size in sizes:
        pieces.append(TEXT[begin : begin + size])
        begin += size
    pieces.append(TEXT[begin:])
    whole = model.generate(TEXT, options=BRIEF)
    if live:
        with model.stream(iter(pieces), options=BRIEF) as stream:
            list(stream)
        speech = stream.speech
    else:
        speech = model.generate(pieces, options=BRIEF)
    assert [sentence.text for sentence in speech.sentences] == list(SENTENCES)
    np.testing.assert_array_equal(speech.codes, whole.codes)


def test_a_sentence_is_spoken_before_the_next_one_is_there(model: MisoTTS) -> None:
    taken = []

    def pieces() -> Iterator[str]:
        for piece in (f"{SENTENCES[0]}\n", *(f"{word} " for word in SENTENCES[1].split())):
            taken.append(piece)
            yield piece

    with model.stream(pieces(), options=BRIEF) as stream:
        assert not taken, "nothing is read before it is wanted"
        next(stream)
        assert len(taken) == 1
        list(stream)
    assert [sentence.text for sentence in stream.speech.sentences] == list(SENTENCES[:2])


def test_waiting_for_the_text_is_no_time_of_speaking(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer takes 100 s for each sentence, on a clock that otherwise stands."""
    now_s = 0.0

    def written() -> Iterator[str]:
        nonlocal now_s
        for sentence in SENTENCES[:2]:
            now_s += 100
            yield sentence + "\n"

    monkeypatch.setattr(speaker, "time", SimpleNamespace(perf_counter=lambda: now_s))
    stream = model.stream(written(), options=BRIEF)
    elapsed_s = {chunk.sentence: chunk.elapsed_s for chunk in stream}
    assert elapsed_s == {0: 100, 1: 200}
    assert (stream.speech.timing.wall_s, stream.speech.timing.first_audio_s) == (0, 100)


def test_what_was_said_stays_when_the_text_fails(model: MisoTTS) -> None:
    def pieces() -> Iterator[str]:
        yield f"{SENTENCES[0]} And th"
        raise ConnectionError("the language model is gone")

    stream = model.stream(pieces(), options=BRIEF)
    heard = list[Chunk]()
    with pytest.raises(ConnectionError, match="is gone"):
        heard.extend(stream)
    assert sum(len(chunk.samples) for chunk in heard) == 5 * FRAME
    assert [sentence.text for sentence in stream.speech.sentences] == [SENTENCES[0]]
    assert list(stream) == []


@pytest.mark.parametrize("pieces", [[], [""], ["...", " - "], ["\n\n"]])
def test_pieces_with_nothing_to_say(model: MisoTTS, pieces: list[str]) -> None:
    with pytest.raises(ValueError, match="nothing to say"):
        model.generate(pieces)


def test_pieces_that_are_no_text(model: MisoTTS) -> None:
    with pytest.raises(TypeError, match="each piece of text must be str, not 5"):
        model.generate(["Hello there.", 5])  # type: ignore[list-item]


def test_closing_does_not_wait_for_the_text(model: MisoTTS) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def pieces() -> Iterator[str]:
        yield f"{SENTENCES[0]}\n"
        asked.set()
        goes_on.wait(30)
        yield SENTENCES[1]

    stream = model.stream(pieces(), options=BRIEF)
    heard: list[int] = []
    reader = threading.Thread(target=lambda: heard.extend(len(chunk.samples) for chunk in stream))
    reader.start()
    assert asked.wait(30)
    stream.close()
    assert reader.is_alive()
    assert [sentence.text for sentence in stream.speech.sentences] == [SENTENCES[0]]
    goes_on.set()
    reader.join(30)
    assert not reader.is_alive()
    assert len(stream.speech.sentences) == 1, "what came after it was closed is not spoken"
    assert sum(heard) == 5 * FRAME


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("ends", ["with text", "without any", "with an error"])
def test_of_a_text_that_nobody_wants_no_more_is_read(model: MisoTTS, split: bool, ends: str) -> None:
    """Not to the end of the sentence: whoever writes it may never come to that."""
    read: list[str] = []

    def pieces() -> Iterator[str]:
        yield ""
        stream.close()
        if ends == "with an error":
            raise BrokenPipeError
        for piece in ["and ", "so ", "on "] if ends == "with text" else []:
            read.append(piece)
            yield piece

    stream = model.stream(pieces(), options=SpeechOptions(split_sentences=split))
    assert list(stream) == []
    assert read == ["and "] * (ends == "with text")
    assert stream.speech.sentences == []


def test_a_long_piece_is_split_as_it_is_spoken(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = SentenceSplitter.feed

    def counted(self: SentenceSplitter, piece: str) -> list[str]:
        fed.append(len(piece))
        return feed(self, piece)

    monkeypatch.setattr(SentenceSplitter, "feed", counted)
    with model.stream([f"{TEXT} " * 1000], options=BRIEF) as stream:
        next(stream)
    assert sum(fed) < 5000


# What a listener stops.


@pytest.mark.parametrize("taken", [1, 3, 5])
def test_a_half_spoken_sentence_is_known(model: MisoTTS, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    codes = random_codes(40)
    Scripted(monkeypatch, model.engine, [codes])
    stream = model.stream(SENTENCES[0], options=SpeechOptions(chunk_frames=3))
    chunks = [next(stream) for _ in range(taken)]
    stream.close()
    heard = 1 + 3 * (taken - 1)
    assert sum(len(chunk.samples) for chunk in chunks) == heard * FRAME
    (sentence,) = stream.speech.sentences
    assert (sentence.text, sentence.ended, sentence.tries) == (SENTENCES[0], "closed", 1)
    np.testing.assert_array_equal(sentence.codes, codes[:heard])
    (segment,) = stream.speech.segments
    assert SENTENCES[0].startswith(segment.text)
    assert 0 < len(segment.text) < len(SENTENCES[0])
    monkeypatch.undo()
    assert len(model.generate("And now?", context=stream.speech.segments, options=BRIEF).codes)


def test_what_was_stopped_in_the_second_sentence(model: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [random_codes(6, 0), random_codes(30, 1)]
    Scripted(monkeypatch, model.engine, takes)
    stream = model.stream(TEXT)
    for chunk in stream:
        if chunk.sentence == 1 and chunk.start_s > 1:
            break
    stream.close()
    first, second = stream.speech.sentences
    assert (first.ended, second.ended) == ("eos", "closed")
    np.testing.assert_array_equal(second.codes, takes[1][: len(second.codes)])
    heard = round((stream.speech.audio_s - 6 * 0.08 - 0.105) / 0.08)
    assert len(second.codes) == heard > 3
    np.testing.assert_array_equal(stream.speech.codes, np.concatenate([first.codes, second.codes]))


def test_a_stream_that_nobody_heard_has_said_nothing(model: MisoTTS) -> None:
    stream = model.stream(TEXT)
    stream.close()
    assert stream.speech.sentences == []
    assert stream.speech.codes.shape == (0, 8)
    with model.stream(TEXT, live=False) as whole:
        pass
    assert whole.speech.codes.shape == (0, 8)


def test_closing_from_another_thread_keeps_what_was_heard(model: MisoTTS) -> None:
    stream = model.stream(SENTENCES[0])
    heard, enough = 0, threading.Event()

    def listen() -> None:
        nonlocal heard
        for chunk in stream:
            heard += len(chunk.samples) // FRAME
            if heard == 4:
                enough.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert enough.wait(30)
    stream.close()
    listener.join(30)
    (sentence,) = stream.speech.sentences
    assert sentence.ended == "closed"
    assert len(sentence.codes) == heard >= 4


@pytest.mark.parametrize(("chunk_frames", "heard"), [(1, 8), (3, 7), (5, 6)])
def test_an_error_half_way_keeps_what_was_heard(
    model: MisoTTS, monkeypatch: pytest.MonkeyPatch, chunk_frames: int, heard: int
) -> None:
    """And not the frames that wait for a chunk to be full."""
    codes = random_codes(40)
    Scripted(monkeypatch, model.engine, [codes])
    step, steps = model.engine.step, []

    def failing(sequences: list[int], frames: list[NDArray[np.int64]]) -> object:
        steps.append(1)
        if len(steps) == 8:
            raise MisoError("the device is gone")
        return step(sequences, frames)

    monkeypatch.setattr(model.engine, "step", failing)
    stream, chunks = model.stream(SENTENCES[0], options=SpeechOptions(chunk_frames=chunk_frames)), list[Chunk]()
    with pytest.raises(MisoError, match="the device is gone"):
        chunks.extend(stream)
    assert sum(len(chunk.samples) for chunk in chunks) == heard * FRAME
    (sentence,) = stream.speech.sentences
    assert sentence.ended == "error"
    np.testing.assert_array_equal(sentence.codes, codes[:heard])


# Live and whole.


def test_a_dialogue_is_the_same_live_and_whole(model: MisoTTS) -> None:
    """Five turns of two voices, each on those before it."""
    voices = [Voice(random_codes(20, index), f"Words of voice {index}.", index) for index in (0, 1)]
    codes = []
    for live in (True, False):
        history: list[Segment] = []
        for turn in range(5):
            text = " ".join(SENTENCES[: 1 + turn % 3])
            stream = model.stream(text, voice=voices, speaker=turn % 2, context=history, options=BRIEF, live=live)
            with stream:
                list(stream)
            speech = stream.speech
            history = history[speech.sentences[-1].dropped_segments :] + speech.segments
        codes.append(np.concatenate([segment.codes for segment in history]))
    np.testing.assert_array_equal(codes[0], codes[1])


@pytest.mark.parametrize("chunk_frames", [1, 4, 7])
def test_what_a_loop_leaves_is_the_same_live_and_whole(
    model: MisoTTS, monkeypatch: pytest.MonkeyPatch, chunk_frames: int
) -> None:
    """Whatever was computed or let out by the time that it was noticed: what follows goes on from the same."""
    loop = np.concatenate([random_codes(8, 5), np.repeat(random_codes(1, 6), LOOP_FRAMES + 30, axis=0)])
    prompts = []
    for live in (True, False):
        scripted = Scripted(monkeypatch, model.engine, [loop, random_codes(5, 1)])
        options = SpeechOptions(retry=False, chunk_frames=chunk_frames)
        with model.stream(" ".join(SENTENCES[:2]), options=options, live=live) as stream:
            list(stream)
        np.testing.assert_array_equal(stream.speech.sentences[0].codes, loop[: 8 + KEPT_FRAMES])
        prompts.append([block.key for block in scripted.prompts[1]])
        monkeypatch.undo()
    assert prompts[0] == prompts[1]
