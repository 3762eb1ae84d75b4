"""The engine that keeps a GPU's time: its time, and what is said whatever is spoken beside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paced
import pytest
from elsewhere import Elsewhere
from paced import CHUNK, FRAME, PacedCall, PacedModels, Pacing, paced_tts, prompt_number

from miso_gguf.models.flavors import TINY
from miso_gguf.runtime.lm.prompt import Block
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.tts import MisoTTS

AT_ONCE = Pacing(frame_s=0.0, chunk_s=0.0)
TEXT = "Hello there, how are you today?"


@pytest.fixture(scope="module")
def tts(bundle: Path) -> Iterator[MisoTTS]:
    with paced_tts(bundle, "q4_k_m", AT_ONCE, sequences=3) as tts:
        yield tts


class Clock:
    """Stands in for `time`: a sleep takes 3 ms too long."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 0.003


def block(rows: int, name: int = 0) -> Block:
    return Block(np.full((rows, TINY.codebooks + 1), name, np.int64))


def test_time_does_not_drift_and_rest_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), list[PacedCall]()
    monkeypatch.setattr(paced, "time", clock)
    pacing = Pacing(frame_s=0.04, chunk_s=0.01)
    models = PacedModels(TINY, pacing, sequences=2, cardinality=512, note=calls.append)
    noise = np.zeros((1, TINY.codebooks, TINY.audio_vocab), np.float32)
    prompt = [block(200), block(9, 1)]
    *nothing, result = models.prefill_chunks(1, prompt)
    assert nothing == [None, None]
    assert result is not None
    for _ in range(3):
        models.sample(*result, noise, [50])
        result = models.step([1], [np.zeros(TINY.codebooks, np.int64)])
    clock.now += 0.02
    models.sample(*result, noise, [50])
    number = prompt_number(prompt)
    assert [call.kind for call in calls] == [CHUNK] * 3 + [FRAME] * 4
    assert [call.prompt for call in calls] == [number] * 3 + [0] * 4
    ends = 100 + np.array([0.01, 0.02, 0.03, 0.07, 0.11, 0.15, 0.15 + 0.003 + 0.02 + 0.04])
    np.testing.assert_allclose([call.end for call in calls], ends)
    assert models.shared(1, prompt) == 1
    assert models.shared(0, prompt) == models.shared(1, prompt[1:]) == 0


def test_what_is_said_follows_from_text_and_seed_alone(tts: MisoTTS) -> None:
    options = [SpeechOptions(seed=seed) for seed in range(6)]
    alone = [tts.generate_codes(TEXT, options=each) for each in options]
    together = [Elsewhere(tts.generate_codes, TEXT, options=each) for each in options]
    for codes, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(codes, other.result())
    length = AT_ONCE.frames(tts.utterance(TEXT).blocks)
    assert [len(codes) for codes in alone] == [length] * 6
    assert len({codes.tobytes() for codes in alone}) == 6
    assert all(codes.min() >= 1 and codes.max() < tts.codec.cardinality for codes in alone)


def test_its_speech_ends_by_itself(tts: MisoTTS) -> None:
    """No loop, no silence, no cap: nothing is spoken again."""
    speech = tts.generate(f"{TEXT} The rain kept me awake for most of the night.", options=SpeechOptions(seed=4))
    assert [(each.ended, each.tries) for each in speech.sentences] == [("eos", 1)] * 2
