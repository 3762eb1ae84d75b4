"""Several speeches at once: each as alone, in order, a few at a time; and however it ends, nothing goes on."""

import linecache
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from elsewhere import Elsewhere, soon
from forking import run_script
from numpy.typing import NDArray
from python_calls import interrupted
from speaking import load_tts, random_codes

from miso_gguf import MisoError, MisoTTS, SpeechOptions, Voice
from miso_gguf.models.noise import gumbel_noise
from miso_gguf.runtime.speech import Speech
from miso_gguf.runtime.synthesis import in_order
from miso_gguf.runtime.synthesis.in_order import spoken_in_order

VOICE = Voice(random_codes(9, 7), "Words of the voice.", 4)
SHORT = SpeechOptions(max_seconds=0.8)
LONG = SpeechOptions(max_seconds=8, split_sentences=False)
TEXTS = [
    "First, something is said here. Then something else is said. And that is all there is to say.",
    "One thing.",
    "Another thing, quite different. With a second sentence, too.",
    "What is said in the end is said by whoever speaks last.",
]


@pytest.fixture(scope="module")
def wide(bundle: Path) -> Iterator[MisoTTS]:
    with load_tts(bundle, exact=True, sequences=3, waiting=0) as tts:
        yield tts


def nobody_speaks() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "miso-in-order"]


def all_is_back(tts: MisoTTS) -> bool:
    batcher = tts.engine.batcher
    return soon(lambda: not batcher.running and not batcher.waiting) and len(batcher._free) == tts.engine.sequences


# Each as alone.


def fail_first_tries(tts: MisoTTS, monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int]) -> None:
    """The first sentence of whoever has one of `seeds` ends before it has begun, but not when it is said again."""
    spec, sample = tts.engine.spec, tts.engine.sample
    noises = [gumbel_noise(seed, 0, spec.codebooks, spec.audio_vocab) * np.float32(0.9) for seed in seeds]

    def failing(hidden: Any, logits: Any, noise: NDArray[np.float32], top_k: Any) -> Any:
        codes = sample(hidden, logits, noise, top_k)
        for row, drawn in enumerate(noise):
            if any(np.array_equal(drawn, each) for each in noises):
                codes[row] = 0
        return codes

    monkeypatch.setattr(tts.engine, "sample", failing)


def assert_same(found: Sequence[Speech], expected: Sequence[Speech]) -> None:
    for speech, alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(speech.codes, alone.codes)
        np.testing.assert_allclose(speech.samples, alone.samples, rtol=0, atol=1e-5)
        for one, other in zip(speech.sentences, alone.sentences, strict=True):
            assert replace(one, codes=other.codes) == other


def test_each_is_what_it_is_alone(wide: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences, their prompts, second tries; though nobody may wait, and lengths differ."""
    fail_first_tries(wide, monkeypatch, seeds=(1, 4))
    texts = TEXTS * 2
    options = [replace(SHORT, seed=seed, max_seconds=0.3 + 0.2 * seed) for seed in range(len(texts))]
    batch = wide.generate_batch(texts, voice=VOICE, options=options)
    assert [speech.sentences[0].tries for speech in batch] == [1, 2, 1, 1, 2, 1, 1, 1]
    assert [len(speech.sentences) for speech in batch[:3]] == [3, 1, 2]
    alone = [wide.generate(text, voice=VOICE, options=option) for text, option in zip(texts, options, strict=True)]
    assert_same(batch, alone)
    assert soon(nobody_speaks)


def test_plans_of_different_speakers_and_loudness(wide: MisoTTS) -> None:
    asked: list[dict[str, Any]] = [
        {"text": TEXTS[2], "voice": VOICE},
        {"text": TEXTS[1], "speaker": 2, "options": replace(SHORT, seed=5, loudness_lufs=-30)},
        {"text": TEXTS[0], "context": wide.generate(TEXTS[1], options=SHORT).segments},
    ]
    for each in asked:
        each.setdefault("options", SHORT)
    assert_same(list(wide.generate_each(wide.plan(**each) for each in asked)), [wide.generate(**e) for e in asked])


def test_every_text_is_checked_before_the_first_is_spoken(wide: MisoTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide.engine.batcher, "admit", None)
    with pytest.raises(ValueError, match=r"^text 3: nothing to say: no letter or digit"):
        wide.generate_batch(["One.", "Two.", "...", "?"], options=SHORT)
    with pytest.raises(TypeError, match=r"^text 2: text must be str, not 5"):
        wide.generate_batch(["One.", 5], options=SHORT)  # type: ignore[list-item]


def test_what_is_no_plan_is_named(wide: MisoTTS) -> None:
    with pytest.raises(TypeError, match=r"^plan must be SpeechPlan, not 'Hello\.'"):
        list(wide.generate_each(["Hello."]))  # type: ignore[list-item]


def test_what_shows_only_when_it_is_spoken_has_the_texts_number_too(wide: MisoTTS) -> None:
    options = replace(SHORT, split_sentences=False)
    with pytest.raises(ValueError, match=r"^text 2: the prompt takes \d+ positions"):
        wide.generate_batch(["One.", "word " * 2000, "Three."], options=options)
    assert nobody_speaks()
    assert all_is_back(wide)


# In order, a few at a time. Streams here are pretended.


class Pretended:
    """A stream that says nothing, when it may; `plan` is its number, or an error."""

    def __init__(self, plan: Any, may_end: Callable[[int], bool] = lambda _: True) -> None:
        self.plan, self._may_end, self.stopped = plan, may_end, threading.Event()
        self.speech = Speech(plan if isinstance(plan, int) else 0)
        self.options = SpeechOptions()

    def __enter__(self) -> "Pretended":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[None]:
        if isinstance(self.plan, BaseException):
            raise self.plan
        while not self._may_end(self.plan) and not self.stopped.wait(0.001):
            yield None

    def stop(self) -> None:
        self.stopped.set()


class Plan:
    def __init__(self, content: Any) -> None:
        self.content, self.options = content, SpeechOptions()


class Stage:
    """Gives pretended streams, and notes which threads began them."""

    def __init__(self, may_end: Callable[[int], bool] = lambda _: True) -> None:
        self._may_end = may_end
        self.streams: list[Pretended] = []
        self.threads: set[int] = set()
        self.read = 0

    def begin(self, plan: Any) -> Any:
        self.threads.add(threading.get_ident())
        stream = Pretended(plan.content, self._may_end)
        self.streams.append(stream)
        return stream

    def plans(self, contents: Any) -> Iterator[Any]:
        for content in contents:
            self.read += 1
            yield Plan(content)

    def spoken(self, contents: Any, at_once: int = 3) -> Any:
        return spoken_in_order(self.plans(contents), self.begin, at_once)


def test_thousands_are_read_as_they_are_taken() -> None:
    stage, taken = Stage(), 0
    for number, speech in enumerate(stage.spoken(range(3_000))):
        assert speech.speaker == number
        taken += 1
        assert stage.read - taken <= 6
        stage.streams.clear()
    assert taken == stage.read == 3_000
    assert soon(nobody_speaks)


def test_behind_a_long_one_the_others_go_on_but_not_all() -> None:
    may_end = threading.Event()
    stage = Stage(lambda number: number > 0 or may_end.is_set())
    spoken = stage.spoken(count())
    first = Elsewhere(next, spoken)
    assert soon(lambda: len(stage.streams) == 7)
    assert not first.is_done_after(0.05)
    assert (len(stage.streams), stage.read) == (7, 7)
    may_end.set()
    assert first.result().speaker == 0
    assert [speech.speaker for speech in islice(spoken, 5)] == [1, 2, 3, 4, 5]
    spoken.close()


def test_a_reader_that_is_slow_gets_what_is_ready() -> None:
    """Whatever comes next, and when: a first result does not wait for a window of plans."""
    stage = Stage()

    def slowly() -> Iterator[int]:
        for number in range(4):
            yield number
            assert soon(lambda: len(stage.streams) == stage.read and nobody_speaks())

    spoken = stage.spoken(slowly())
    assert next(spoken).speaker == 0
    assert stage.read <= 2
    assert [speech.speaker for speech in spoken] == [1, 2, 3]


@pytest.mark.parametrize("where", ["speech", "plans"])
def test_an_error_comes_after_what_was_before_it_and_ends_the_rest(where: str) -> None:
    def contents() -> Iterator[Any]:
        yield from range(4)
        if where == "plans":
            raise ZeroDivisionError
        yield ZeroDivisionError()
        yield from count(5)

    stage = Stage(lambda number: number < 4)
    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(speech.speaker for speech in stage.spoken(contents()))
    assert found == [0, 1, 2, 3]
    assert nobody_speaks()
    assert all(stream.stopped.is_set() for stream in stage.streams[5:])


def test_an_interrupt_while_plans_are_awaited_comes_after_what_is_done() -> None:
    """Their source may have fallen silent long ago. Behind what is not done nothing comes: it would leave a gap."""
    stage = Stage(lambda number: stage.read == 4 and number != 2)

    def contents() -> Iterator[int]:
        yield from range(4)
        assert soon(lambda: [thread.name for thread in threading.enumerate()].count("miso-in-order") == 1)
        raise KeyboardInterrupt

    found: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(speech.speaker for speech in stage.spoken(contents(), at_once=4))
    assert found == [0, 1]
    assert nobody_speaks()


# However it ends.


def begun() -> tuple[Stage, Any]:
    """The first was taken, and three speak."""
    stage = Stage(lambda number: number == 0 and stage.read > 3)
    spoken = stage.spoken(count())
    assert next(spoken).speaker == 0
    assert soon(lambda: len(stage.streams) == 4)
    return stage, spoken


@pytest.mark.parametrize("how", ["close", "drop", "close elsewhere", "throw"])
def test_whoever_wants_no_more_ends_it(how: str) -> None:
    stage, spoken = begun()
    if how == "close":
        spoken.close()
        assert nobody_speaks()
    elif how == "close elsewhere":
        Elsewhere(spoken.close).result()
    elif how == "throw":
        with pytest.raises(KeyboardInterrupt):
            spoken.throw(KeyboardInterrupt)
    else:
        del spoken
    assert soon(nobody_speaks)
    assert all(stream.stopped.is_set() for stream in stage.streams[1:])


def test_closed_by_one_of_its_own_threads_it_does_not_wait_for_itself() -> None:
    """As the garbage collector may, which comes by anywhere."""
    held: list[Any] = []

    def may_end(number: int) -> bool:
        if number == 2 and held:
            held.pop().close()
        return number == 0 and stage.read > 3

    stage = Stage(may_end)
    spoken = stage.spoken(count())
    next(spoken)
    held.append(spoken)
    del spoken
    assert soon(nobody_speaks)
    assert not held


def is_traced(frame: FrameType) -> bool:
    return frame.f_code.co_filename == in_order.__file__ and frame.f_code.co_name != "stop"


def counts(frame: FrameType) -> bool:
    # Python hears no signal between a block that has ended and its lock, though it says that there is a line;
    # and what is raised in a generator that is being dropped goes to a hook: see `interruptible`.
    line = linecache.getline(in_order.__file__, frame.f_lineno)
    return not any(part in line for part in ("with self._lock", "except Exception"))


def test_an_interrupt_at_any_line_ends_it() -> None:
    """Also in what is done in the end: then by being dropped."""
    line = 0
    while True:
        stage = Stage(lambda number: number < 5)

        def some(stage: Stage = stage) -> None:
            spoken = stage.spoken(range(9), at_once=2)
            assert [speech.speaker for speech in islice(spoken, 4)] == [0, 1, 2, 3]
            spoken.close()

        if not interrupted(some, line, is_traced, counts):
            break
        assert soon(nobody_speaks), f"interrupted at line {line}"
        line += 1
    assert line > 40


def test_the_models_end_is_the_end_of_it(bundle: Path) -> None:
    with load_tts(bundle, sequences=2) as tts:
        spoken = tts.generate_each(tts.plan(TEXTS[0], options=replace(LONG, seed=seed)) for seed in count())
        reader = Elsewhere(list, spoken)
        assert soon(lambda: tts.engine.batcher.running == 2)
        tts.close()
        with pytest.raises(MisoError, match="closed"):
            reader.result()
        assert nobody_speaks()
        with pytest.raises(MisoError, match="closed"):
            tts.generate_each([])


def test_all_sequences_come_back(wide: MisoTTS) -> None:
    """However many were taken; what was not even begun takes none."""
    for taken in range(3):
        options = (replace(LONG if seed >= taken else SHORT, seed=seed) for seed in count())
        spoken = wide.generate_each(wide.plan(TEXTS[0], options=each) for each in options)
        for speech in islice(spoken, taken):
            assert len(speech.codes) >= 10
        assert wide.engine.batcher.running == 0 or taken
        spoken.close()
        assert nobody_speaks()
        assert all_is_back(wide)


FORK = """
import os, signal, sys
from pathlib import Path
from forking import refused
from miso_gguf import MisoTTS, SpeechOptions

with MisoTTS.load(Path(sys.argv[1]), "f32", threads=1, gpu_layers=0, sequences=2) as tts:
    spoken = tts.generate_each(
        tts.plan("Something is said here.", options=SpeechOptions(max_seconds=0.4, seed=seed)) for seed in range(8)
    )
    next(spoken)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        refused(lambda: next(spoken))
        spoken.close()
        refused(lambda: tts.generate_each([]))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert len(list(spoken)) == 7
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_is_told_and_the_parent_goes_on(bundle: Path) -> None:
    done = run_script(FORK, str(bundle))
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
