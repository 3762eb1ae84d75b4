"""Several streams in one call: each gives what it gives alone, whoever joins and leaves; and the end of a codec."""

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codec_graphs import SPEC, Codes, random_codes
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.runtime.codec.codec import Codec, CodecStream
from miso_gguf.runtime.codec.onnx import OnnxStream, State
from miso_gguf.runtime.codec.thread import CodecThread

ROUNDING = 1e-6
"""Of another number of rows, as of another number of threads. The loudest sample is near 1."""


@settings(max_examples=examples(10), deadline=None)
@given(data=st.data())
def test_streams_together_give_what_each_gives_alone(data: st.DataObject, codec: Codec) -> None:
    streams, alone = [codec.stream() for _ in range(5)], [codec.stream() for _ in range(5)]
    turn = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)
    for number, turns in enumerate(data.draw(st.lists(turn, min_size=1, max_size=12))):
        frames = data.draw(st.sampled_from([0, 1, 1, 1, 2, 12]))
        codes = [random_codes(frames, 10 * number + index) for index in turns]
        found = codec.decode_together([streams[index] for index in turns], codes)
        for index, each, samples in zip(turns, codes, found, strict=True):
            expected = alone[index].decode(each)
            assert samples.dtype == np.float32
            np.testing.assert_allclose(samples, expected, rtol=0, atol=ROUNDING)
        if data.draw(st.booleans()):  # one leaves, another joins
            gone = data.draw(st.integers(0, 4))
            streams[gone], alone[gone] = codec.stream(), codec.stream()


def test_a_stream_alone_gives_the_bits_of_the_graph(codec: Codec, graphs: tuple[Path, Path]) -> None:
    graph = OnnxStream(graphs[0], "mimi-decoder", 1, "cpu")
    stream, state = codec.stream(), graph.start()
    for frame in random_codes(12):
        expected, state = graph.step(frame[None, :, None], state)
        assert np.array_equal(stream.decode(frame[None]), expected[0, 0])


def test_a_stream_that_was_in_company_goes_on_alone(codec: Codec) -> None:
    codes = [random_codes(8, seed) for seed in range(4)]
    streams = [codec.stream() for _ in codes]
    together = codec.decode_together(streams, [each[:4] for each in codes])
    apart = [stream.decode(each[4:]) for stream, each in zip(streams, codes, strict=True)]
    for each, first, second in zip(codes, together, apart, strict=True):
        np.testing.assert_allclose(np.concatenate([first, second]), codec.decode(each), rtol=0, atol=ROUNDING)


def test_samples_of_one_stream_do_not_keep_those_of_others(codec: Codec) -> None:
    for samples in codec.decode_together([codec.stream() for _ in range(3)], [random_codes(1)] * 3):
        assert samples.base is None or samples.base.size == samples.size


def test_one_wrong_code_is_named_and_nobody_goes_on(codec: Codec) -> None:
    streams, codes = [codec.stream(), codec.stream()], [random_codes(2, 1), random_codes(2, 2)]
    codec.decode_together(streams, codes)
    wrong = codes[1].copy()
    wrong[1, 3] = -1
    before = [stream.row for stream in streams]
    with pytest.raises(ValueError, match="code -1 of codebook 3 in frame 1"):
        codec.decode_together(streams, [codes[0], wrong])
    assert [stream.row for stream in streams] == before


def test_a_failure_on_the_way_moves_nobody(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    streams, codes, calls = [codec.stream(), codec.stream()], [random_codes(12, 1), random_codes(12, 2)], []
    step = OnnxStream.step

    def fails_second(graph: OnnxStream, data: Codes, state: State) -> tuple[NDArray[np.float32], State]:
        calls.append(data.shape)
        if len(calls) == 2:
            raise BundleError("out of memory")
        return step(graph, data, state)

    monkeypatch.setattr(OnnxStream, "step", fails_second)
    with pytest.raises(BundleError, match="out of memory"):
        codec.decode_together(streams, codes)
    assert calls == [(2, SPEC.codebooks, 10), (2, SPEC.codebooks, 2)]
    for stream, each in zip(streams, codes, strict=True):
        assert np.array_equal(stream.decode(each), codec.decode(each))


def misuses(codec: Codec) -> list[tuple[list[CodecStream], list[Codes]]]:
    stream, other = codec.stream(), codec.stream()
    one, two = random_codes(1), random_codes(2)
    unequal = [([stream, stream], [one]), ([stream], [one, one]), ([stream, other], [one, two])]
    return [([], []), ([stream, stream], [one, one]), *unequal]


@pytest.mark.parametrize("index", range(5))
def test_what_does_not_fit_together_is_refused(index: int, codec: Codec) -> None:
    with pytest.raises(ValueError, match="different streams and as many frames of each"):
        codec.decode_together(*misuses(codec)[index])


def test_who_ended_leaves_nothing_behind(codec: Codec) -> None:
    streams = [codec.stream() for _ in range(4)]
    codec.decode_together(streams, [random_codes(1)] * 4)
    batch = weakref.ref(streams[0].row.place[0][0])
    codec.decode(random_codes(1))
    assert batch() is not None
    del streams[1:]
    codec.decode(random_codes(1))
    assert batch() is None, "also while the one that stays does nothing"
    assert len(streams[0].decode(random_codes(1))) == SPEC.frame_samples


def calls(codec: Codec) -> list[Callable[[], object]]:
    """All that a codec can be asked for that computes something."""
    stream, thread = codec.stream(), CodecThread(codec)
    return [
        codec.stream,
        lambda: thread.decode(stream, random_codes(1)),
        lambda: codec.decode(random_codes(1)),
        lambda: stream.decode(random_codes(1)),
        lambda: stream.decode(random_codes(0)),
        lambda: codec.decode_together([stream], [random_codes(1)]),
        lambda: codec.encode(np.zeros(1920, np.float32)),
        lambda: codec.encode(np.zeros(0, np.float32)),
    ]


@pytest.mark.parametrize("encoder_is_open", [True, False])
def test_a_closed_codec_says_so(encoder_is_open: bool, graphs: tuple[Path, Path]) -> None:
    codec = Codec(*graphs)
    every = calls(codec)
    if encoder_is_open:
        codec.encode(np.zeros(1920, np.float32))
    codec.close()
    codec.close()
    for call in every:
        with pytest.raises(MisoError, match="closed: open it or load its model again"):
            call()


def answers(every: list[Callable[[], object]]) -> str:
    """What each call says, one a line."""
    lines = []
    for call in every:
        try:
            lines.append(repr(call()))
        except BaseException as error:
            lines.append(f"{type(error).__name__}: {error}")
    return "\n".join(lines)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_a_forked_child_every_call_says_so_and_none_hangs(graphs: tuple[Path, Path]) -> None:
    with Codec(*graphs, threads=2) as codec, CodecThread(codec) as thread:
        stream = codec.stream()
        thread.decode(stream, random_codes(1))
        every = [*calls(codec), lambda: thread.decode(stream, random_codes(1)), thread.close, codec.close]
        reading, writing = os.pipe()
        held, forked = threading.Event(), threading.Event()

        def hold() -> None:
            with codec._lock, thread._lock:
                held.set()
                forked.wait(20)

        holder = threading.Thread(target=hold)  # which is not there in the child to let go
        holder.start()
        assert held.wait(20)
        child = os.fork()
        if child == 0:
            os.write(writing, answers(every).encode())
            os._exit(0)
        forked.set()
        holder.join()
        os.close(writing)
        killer = threading.Timer(20, os.kill, [child, 9])
        killer.start()
        with os.fdopen(reading) as pipe:
            lines = pipe.read().splitlines()
        assert os.waitpid(child, 0)[1] == 0
        killer.cancel()
        assert len(lines) == len(every)
        for line in lines[:-2]:
            assert line.startswith("MisoError: this model was loaded before the process was forked"), line
        assert lines[-2:] == ["None"] * 2


def test_closing_while_others_decode_ends_them(graphs: tuple[Path, Path]) -> None:
    codec, decoded, ended = Codec(*graphs, threads=2), threading.Semaphore(0), []

    def decode(stream: CodecStream) -> None:
        try:
            while True:
                stream.decode(random_codes(3))
                decoded.release()
        except MisoError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=decode, args=[codec.stream()]) for _ in range(3)]
    for each in threads:
        each.start()
    for _ in range(6):
        assert decoded.acquire(timeout=20)
    codec.close()
    for each in threads:
        each.join(20)
    assert ended == ["the codec is closed: open it or load its model again"] * 3
