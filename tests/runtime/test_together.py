"""Several streams of one model at a time: steps are shared, any thread advances or closes any stream, all can end."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elsewhere import PATIENCE_S, Elsewhere, soon
from forking import run_script
from numpy.typing import NDArray
from speaking import load_engine, load_tts, prompt_blocks

from miso_gguf import Busy, MisoError, MisoTTS, SpeechOptions
from miso_gguf.core.process import OwnProcess
from miso_gguf.runtime.synthesis.stream import SpeechStream

TEXT = "First, something is said here. Then something else is said."
SHORT = SpeechOptions(max_seconds=0.8, seed=2)
LONG = SpeechOptions(max_seconds=3.2, seed=2, split_sentences=False)


@pytest.fixture(scope="module")
def wide(bundle: Path) -> Iterator[MisoTTS]:
    with load_tts(bundle, exact=True, sequences=4) as tts:
        yield tts


def rest_of(stream: SpeechStream) -> int:
    return sum(len(chunk.samples) for chunk in stream)


# Steps are shared.


@pytest.fixture
def widths(wide: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step of the backbone."""
    widths: list[int] = []
    step = wide.engine.step

    def counting(sequences: list[int], codes: Any) -> Any:
        widths.append(len(sequences))
        return step(sequences, codes)

    monkeypatch.setattr(wide.engine, "step", counting)
    return widths


def test_four_threads_share_their_steps(wide: MisoTTS, widths: list[int]) -> None:
    """One after the other they would take 4 x 39."""
    options = [replace(LONG, seed=seed) for seed in range(4)]
    speakers = [Elsewhere(wide.generate_codes, TEXT, options=each) for each in options]
    codes = [speaker.result() for speaker in speakers]
    assert [len(each) for each in codes] == [40] * 4
    assert max(widths) == 4
    assert len(widths) < 2 * 39


def test_a_batch_does_not_run_in_waves(wide: MisoTTS, widths: list[int]) -> None:
    """Eight over four sequences: in waves 2 x 39 steps, where those that are short leave room at once."""
    frames = [40, 10, 10, 10, 40, 10, 10, 10]
    options = [replace(SHORT, seed=index, max_seconds=count * 0.08 + 0.01) for index, count in enumerate(frames)]
    options = [replace(each, split_sentences=False) for each in options]
    batch = wide.generate_batch([TEXT] * 8, options=options)
    assert [len(speech.codes) for speech in batch] == frames
    assert len(widths) < 66


# Any thread.


def test_a_stream_is_begun_by_one_thread_and_ended_by_another(tts: MisoTTS) -> None:
    """It is nobody's: whoever began it may speak again, and waits for the stream to end like anybody else."""
    expected = tts.generate(TEXT, options=SHORT).codes
    stream = tts.stream(TEXT, options=SHORT)
    handed_over = threading.Event()
    found: list[NDArray[np.int64]] = []

    def begin() -> None:
        next(stream)
        handed_over.set()
        found.append(tts.generate_codes("Something else.", options=SHORT))

    beginner = Elsewhere(begin)
    assert handed_over.wait(PATIENCE_S)
    assert rest_of(stream) > 0
    np.testing.assert_array_equal(stream.speech.codes, expected)
    beginner.result()
    np.testing.assert_array_equal(tts.generate_codes("Something else.", options=SHORT), found[0])


def test_a_stream_that_a_thread_left_behind_is_waited_for_only_so_long(bundle: Path) -> None:
    with load_tts(bundle, patience_s=0.1) as tts:
        stream = tts.stream(TEXT, options=LONG)
        Elsewhere(next, stream).result()
        with pytest.raises(MisoError, match="finish or close those streams, or load with sequences=2"):
            tts.generate(TEXT, options=SHORT)
        assert rest_of(stream) > 0


def test_a_stream_is_closed_by_another_thread(tts: MisoTTS) -> None:
    """Whether it rests or somebody waits for its next chunk, who then gets the end."""
    for advance in (False, True):
        stream = tts.stream(TEXT, options=LONG)
        next(stream)
        reader = Elsewhere(rest_of, stream) if advance else None
        Elsewhere(stream.close).result()
        if reader is not None:
            assert reader.result() < 39 * 1920
        assert list(stream) == []
        assert soon(lambda: tts.engine.batcher.running == 0)
        stream.close()
    assert len(tts.generate(TEXT, options=SHORT).codes) == 20


def test_a_stream_is_closed_while_somebody_waits_for_its_first_chunk(tts: MisoTTS) -> None:
    """Which does not come: another stream has the sequence."""
    with tts.stream(TEXT, options=LONG) as speaking:
        next(speaking)
        stream = tts.stream(TEXT, options=LONG)
        reader = Elsewhere(list, stream)
        assert soon(lambda: tts.engine.batcher.waiting == 1)
        Elsewhere(stream.close).result()
        assert reader.result() == []
        assert tts.engine.batcher.waiting == 0


def test_a_stream_that_has_begun_is_never_turned_away(bundle: Path) -> None:
    """Each sentence waits its turn anew; but its text is not torn by `Busy`, whoever came meanwhile."""
    with load_tts(bundle, waiting=1) as tts:
        batcher = tts.engine.batcher
        expected = tts.generate(TEXT, options=SHORT).codes
        stream = tts.stream(TEXT, options=SHORT)
        next(stream)
        others = [batcher.admit(tts.utterance(TEXT, options=LONG))]
        assert soon(lambda: batcher.waiting == 0)
        others.append(batcher.admit(tts.utterance(TEXT, options=LONG)))
        reader = Elsewhere(rest_of, stream)
        assert soon(lambda: batcher.waiting == 2)
        with pytest.raises(Busy, match=r"\(2\).*`waiting`"):
            next(tts.stream(TEXT, options=SHORT))
        for other in others:
            other.cancel()
        assert reader.result() > 0
        np.testing.assert_array_equal(stream.speech.codes, expected)


# Closing.


def test_closing_ends_the_streams_of_other_threads(bundle: Path) -> None:
    with load_tts(bundle, sequences=2) as tts:
        streams = [tts.stream(TEXT, options=LONG) for _ in range(3)]
        readers = [Elsewhere(rest_of, stream) for stream in streams]
        assert soon(lambda: streams[0].speech.audio_s > 0 or streams[1].speech.audio_s > 0)
        tts.close()
        for reader in readers:
            with pytest.raises(MisoError, match="closed"):
                reader.result()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_leaving_the_model_by_an_error_leaves_that_error(bundle: Path, error: type[BaseException]) -> None:
    """Though a stream was open, and stays referred to."""
    streams = []

    def interrupted() -> None:
        with load_tts(bundle) as tts:
            streams.append(tts.stream(TEXT, options=LONG))
            next(streams[0])
            raise error

    with pytest.raises(error) as caught:
        interrupted()
    assert caught.value.__context__ is None
    with pytest.raises(MisoError, match="closed"):
        list(streams[0])
    streams[0].close()


def test_after_closing_every_call_of_the_engine_says_so(bundle: Path) -> None:
    """Each of them used to end the process."""
    engine = load_engine(bundle)
    spec, blocks = engine.spec, prompt_blocks(engine.prompts, TEXT)
    hidden, logits = engine.prefill(0, blocks)
    noise = np.zeros((1, spec.codebooks, spec.audio_vocab), np.float32)
    codes = engine.sample(hidden, logits, noise, [50])
    engine.close()
    engine.close()
    rows = np.full((1, spec.codebooks + 1), -1, np.int64)
    rows[:, :-1] = codes
    calls: list[Callable[[], object]] = [
        lambda: engine.prefill(0, blocks),
        lambda: list(engine.prefill_chunks(0, blocks)),
        lambda: engine.step([0], [codes[0]]),
        lambda: engine.extend(0, rows),
        lambda: engine.depth_logits(hidden, codes),
        lambda: engine.sample(hidden, logits, noise, [50]),
        lambda: engine.warm_up(50),
        lambda: engine.batcher.lend(blocks).__enter__(),
        lambda: engine.prompts.text(TEXT, 0),
    ]
    for call in calls:
        with pytest.raises(MisoError, match="closed"):
            call()


def test_closing_while_calls_are_made_beside_the_batcher(bundle: Path) -> None:
    """As an evaluation makes them: what has begun is ended first, what comes later is refused."""
    for _ in range(3):
        engine = load_engine(bundle)
        blocks = prompt_blocks(engine.prompts, TEXT)
        begun = threading.Event()

        def replay(engine: Any = engine, blocks: Any = blocks, begun: threading.Event = begun) -> None:
            with engine.batcher.lend(blocks) as sequence:
                while True:
                    engine.prefill(sequence, blocks)
                    begun.set()

        replaying = Elsewhere(replay)
        assert begun.wait(PATIENCE_S)
        engine.close()
        with pytest.raises(MisoError, match="closed"):
            replaying.result()


# What goes wrong.


def test_hidden_states_that_are_no_numbers_name_the_frame(wide: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row beside it is not harmed."""
    expected = wide.generate_codes(TEXT, options=LONG)
    step, steps = wide.engine.step, [0]

    def broken(sequences: list[int], codes: Any) -> Any:
        hidden, logits = step(sequences, codes)
        steps[0] += 1
        if steps[0] == 30:
            hidden[-1, 3] = np.nan
        return hidden, logits

    monkeypatch.setattr(wide.engine, "step", broken)
    speakers = [Elsewhere(wide.generate_codes, TEXT, options=LONG) for _ in range(2)]
    outcomes: list[object] = []
    for speaker in speakers:
        try:
            outcomes.append(speaker.result())
        except MisoError as error:
            outcomes.append(error)
    (harmed,) = (outcome for outcome in outcomes if isinstance(outcome, MisoError))
    (well,) = (outcome for outcome in outcomes if not isinstance(outcome, MisoError))
    assert re.search(r"frame \d+: the backbone gave what is no number", str(harmed))
    np.testing.assert_array_equal(well, expected)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a thread")
def test_an_interrupt_leaves_a_model_that_speaks(tts: MisoTTS) -> None:
    main = threading.main_thread().ident
    if threading.get_ident() != main:
        pytest.skip("tests do not run on the main thread here")
    expected = tts.generate(TEXT, options=SHORT).codes
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for delay_s in (0.005, 0.02, 0.05, 0.1):
            threading.Timer(delay_s, signal.pthread_kill, [main, signal.SIGINT]).start()
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                while True:
                    tts.generate(TEXT, options=LONG)
            assert soon(lambda: tts.engine.batcher.running == 0)
            np.testing.assert_array_equal(tts.generate(TEXT, options=SHORT).codes, expected)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_in_a_forked_child_nobody_waits_for_who_reads_a_stream(tts: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that did is not there."""
    with tts.stream(TEXT, options=SHORT) as stream, stream._turn, monkeypatch.context() as child:
        child.setattr(OwnProcess, "is_here", False)
        Elsewhere(stream.close).result()
        with pytest.raises(MisoError, match="load a model after the fork"):
            Elsewhere(next, stream).result()


FORK = """
import os, signal, sys
from pathlib import Path
import numpy as np
from forking import refused
from miso_gguf import MisoTTS, SpeechOptions

TEXT = "First, something is said here. Then something else is said."

with MisoTTS.load(Path(sys.argv[1]), "f32", threads=1, gpu_layers=0, sequences=2) as tts:
    engine, options = tts.engine, SpeechOptions(max_seconds=1.6, split_sentences=False)
    blocks = [engine.prompts.text(TEXT, 0)]
    for turn in range(3):
        stream, other = (tts.stream(TEXT, options=options) for _ in range(2))
        for _ in range(turn):
            next(stream)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            refused(lambda: next(stream))
            refused(lambda: next(other))
            refused(lambda: tts.generate(TEXT))
            refused(lambda: tts.generate_codes(TEXT))
            refused(lambda: tts.generate_batch([TEXT]))
            refused(lambda: engine.prefill(0, blocks))
            refused(lambda: engine.step([0], [np.zeros(8, np.int64)]))
            refused(lambda: engine.warm_up(50))
            stream.close()
            tts.close()
            del stream, other
            refused(lambda: tts.generate(TEXT))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert list(stream)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_is_told_and_the_parent_goes_on(bundle: Path) -> None:
    done = run_script(FORK, str(bundle))
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
