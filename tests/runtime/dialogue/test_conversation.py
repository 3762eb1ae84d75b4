"""Turns joined to one sound and one record, by a model that says what the test wants."""

import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from miso_gguf.runtime.dialogue.conversation import TURN_GAP_MS, Conversation
from miso_gguf.runtime.dialogue.turns import Turn
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Chunk, Segment, Speech, SpokenSentence, Timing
from miso_gguf.runtime.tts import MisoTTS

OPTIONS = SpeechOptions()
RAMP = 120


class _Stream:
    """Chunks of 0.5 s of `level`, one for each word."""

    def __init__(self, text: str, speaker: int, level: float) -> None:
        self._words, self._level = text.split(), level
        self.speech = Speech(speaker)
        self.is_closed = False

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def __iter__(self) -> Iterator[Chunk]:
        begin = time.perf_counter()
        for _ in self._words:
            elapsed = time.perf_counter() - begin
            self.speech.timing.wall_s = elapsed
            if not self.speech.audio_s:
                self.speech.timing.first_audio_s = 0.25
            self.speech.audio_s += 0.5
            self.speech.timing.frames += 6
            yield Chunk(np.full(12_000, self._level, np.float32), 0.0, 0, elapsed)
        codes = np.full((6 * len(self._words), 2), 1, np.int64)
        self.speech.sentences.append(SpokenSentence(" ".join(self._words), codes, "eos", 1, 3, 0))


class _Model:
    """Stands in for `MisoTTS`: each turn is louder than the one before."""

    def __init__(self, max_positions: int = 2048) -> None:
        self.engine = SimpleNamespace(spec=SimpleNamespace(max_positions=max_positions))
        self.contexts: list[list[str]] = []
        self.streams: list[_Stream] = []

    def stream(self, text: str, *, context: Sequence[Segment], speaker: int | None, **_: Any) -> _Stream:
        self.contexts.append([segment.text for segment in context])
        self.streams.append(_Stream(text, speaker or 0, 0.1 * len(self.contexts)))
        return self.streams[-1]

    def generate(self, text: str, *, context: Sequence[Segment], speaker: int | None, **_: Any) -> Speech:
        stream = self.stream(text, context=context, speaker=speaker)
        stream.speech.parts = [chunk.samples for chunk in stream]
        return stream.speech


def _conversation(model: _Model, *texts: str, live: bool = True, options: SpeechOptions = OPTIONS) -> Conversation:
    turns = [Turn(text, number, None) for number, text in enumerate(texts)]
    return Conversation(cast(MisoTTS, model), turns, options, live=live)


def _sound(conversation: Conversation) -> NDArray[np.float32]:
    return np.concatenate(list(conversation.sound()))


def test_live_or_not_it_is_one_sound() -> None:
    live = _sound(_conversation(_Model(), "a b", "c", "d e"))
    whole = _sound(_conversation(_Model(), "a b", "c", "d e", live=False))
    np.testing.assert_array_equal(live, whole)
    levelled = SpeechOptions(loudness_lufs=-16)
    np.testing.assert_array_equal(live, _sound(_conversation(_Model(), "a b", "c", "d e", options=levelled)))
    pause = round(24 * TURN_GAP_MS)
    assert len(live) == 5 * 12_000 + 2 * (RAMP + pause)
    first, second = live[:24_000], live[24_000 + RAMP + pause :][:12_000]
    assert (first == np.float32(0.1)).all()
    assert (second[RAMP:] == np.float32(0.2)).all()
    assert not live[24_000 + RAMP : 24_000 + RAMP + pause].any()
    assert np.abs(np.diff(live[: 36_000 + RAMP + pause])).max() < 0.005


def test_each_turn_hears_those_before() -> None:
    model = _Model()
    _sound(_conversation(model, "a", "b b", "c"))
    assert model.contexts == [[], ["a"], ["a", "b b"]]


def test_what_can_have_no_room_is_forgotten() -> None:
    # Every turn is 6 frames: the last three reach past 15 positions, whatever their text takes.
    model = _Model(max_positions=15)
    _sound(_conversation(model, *"abcdef"))
    assert model.contexts == [[], ["a"], ["a", "b"], ["b", "c"], ["c", "d"], ["d", "e"]]


def test_a_turn_that_says_nothing() -> None:
    sound = _sound(_conversation(_Model(), "", "a", "", "b"))
    assert len(sound) == 2 * 12_000 + RAMP + round(24 * TURN_GAP_MS)
    assert (sound[:12_000] == np.float32(0.2)).all()


def test_the_record() -> None:
    conversation = _conversation(_Model(), "a b", "c")
    assert conversation.record.audio_s == 0
    _sound(conversation)
    record = conversation.record
    assert (record.audio_s, record.timing.frames, record.timing.first_audio_s) == (1.5, 18, 0.25)
    assert [sentence.text for sentence in record.sentences] == ["a b", "c"]
    assert [sentence["speaker"] for sentence in conversation.as_dict()["sentences"]] == [0, 1]


def test_first_audio_of_a_later_turn() -> None:
    conversation = _conversation(_Model(), "", "a")
    _sound(conversation)
    assert conversation.record.timing.first_audio_s >= 0.25


def test_waiting_for_the_player_is_not_speaking() -> None:
    conversation = _conversation(_Model(), "a b c", "d e")
    for _ in conversation.sound():
        time.sleep(0.05)
    assert conversation.record.timing.wall_s < 0.03


def test_what_is_left_is_closed() -> None:
    model = _Model()
    sound = _conversation(model, "a b").sound()
    next(sound)
    sound.close()
    assert model.streams[0].is_closed


def test_timing_is_summed_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Model()
    conversation = _conversation(model, "a", "b")
    _sound(conversation)
    for stream in model.streams:
        stream.speech.timing = Timing(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    monkeypatch.setattr(conversation, "_waits_s", [0.0, 1.0])
    assert conversation.record.timing == Timing(2, 2.0, 5.0, 8.0, 10.0, 12.0, 14.0)
