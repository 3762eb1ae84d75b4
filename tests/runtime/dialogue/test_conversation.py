"""Turns joined to one sound and one record, by a model that says what the test wants."""

import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.audio.samples import ramp_down
from miso_gguf.runtime.dialogue.conversation import TURN_GAP_MS, Conversation
from miso_gguf.runtime.dialogue.together import Together, conversation_of
from miso_gguf.runtime.dialogue.turns import Turn
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Chunk, Segment, Speech, SpokenSentence, Timing
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.runtime.voice import Voice

OPTIONS = SpeechOptions()
RAMP = 120


class _Stream:
    """Chunks of 0.5 s of `level`, one for each word; at "fails" the model fails, and at "stop" comes an interrupt."""

    def __init__(self, text: str, speaker: int, level: float, live: bool, dropped: int) -> None:
        self._words, self._level, self._live, self._dropped = text.split(), level, live, dropped
        self.speech = Speech(speaker)
        self.is_closed = False

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def __iter__(self) -> Iterator[Chunk]:
        begin = time.perf_counter()
        for word in self._words:
            if word == "fails":
                raise MisoError("the model fails")
            if word == "stop":
                raise KeyboardInterrupt
            elapsed = time.perf_counter() - begin
            self.speech.timing.wall_s = elapsed
            if not self.speech.audio_s:
                self.speech.timing.first_audio_s = 0.25
            self.speech.audio_s += 0.5
            self.speech.timing.frames += 6
            samples = np.full(12_000, self._level, np.float32)
            if not self._live:
                self.speech.parts.append(samples)
            yield Chunk(samples, 0.0, 0, elapsed)
        codes = np.full((6 * len(self._words), 2), 1, np.int64)
        if self._words:
            said = SpokenSentence(" ".join(self._words), codes, "eos", 1, 3, self._dropped)
            self.speech.sentences.append(said)


class _Model:
    """Stands in for `MisoTTS`: each turn is louder than the one before, and beyond `room` segments one is dropped."""

    def __init__(self, room: int = 100) -> None:
        self._room = room
        self.contexts: list[list[str]] = []
        self.voices: list[list[str]] = []
        self.streams: list[_Stream] = []

    def stream(
        self,
        text: str,
        *,
        context: Sequence[Segment],
        speaker: int,
        voice: Sequence[Voice],
        options: SpeechOptions,
        live: bool,
    ) -> _Stream:
        assert options.loudness_lufs is None
        self.contexts.append([segment.text for segment in context])
        self.voices.append([one.text for one in voice])
        dropped = max(0, len(context) - self._room)
        self.streams.append(_Stream(text, speaker, 0.1 * len(self.contexts), live, dropped))
        return self.streams[-1]


def _conversation(model: _Model, *texts: str, live: bool = True, options: SpeechOptions = OPTIONS) -> Conversation:
    turns = [Turn(text, number, None) for number, text in enumerate(texts)]
    return Conversation(cast(MisoTTS, model), turns, options, live=live)


def _sound(conversation: Conversation) -> NDArray[np.float32]:
    return np.concatenate(list(conversation.sound()))


def test_live_or_not_it_is_one_sound() -> None:
    live = _sound(_conversation(_Model(), "a b", "c", "d e"))
    whole = _sound(_conversation(_Model(), "a b", "c", "d e", live=False))
    np.testing.assert_array_equal(live, whole)
    pause = round(24 * TURN_GAP_MS)
    assert len(live) == 5 * 12_000 + 2 * pause
    first, second = live[:24_000], live[24_000 + pause :][:12_000]
    assert (first == np.float32(0.1)).all()
    assert (second[RAMP:] == np.float32(0.2)).all()
    assert not live[24_000 : 24_000 + pause].any()
    assert np.abs(np.diff(second)).max() < 0.005, "it begins without a click"


def test_a_loudness_is_that_of_a_turn() -> None:
    model, levelled = _Model(), SpeechOptions(loudness_lufs=-16)
    sound = _sound(_conversation(model, "a b", "c", options=levelled))
    assert len(sound) == 3 * 12_000 + round(24 * TURN_GAP_MS)
    first, second = sound[:24_000], sound[-12_000:]
    assert first[0] != np.float32(0.1)
    assert second[-1] != np.float32(0.2)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("loudness_lufs", [None, -16])
@pytest.mark.parametrize(
    ("end", "error", "message"), [("fails", MisoError, "the model fails"), ("stop", KeyboardInterrupt, "^$")]
)
def test_what_was_spoken_comes_before_an_error(
    end: str, error: type[BaseException], message: str, live: bool, loudness_lufs: float | None
) -> None:
    options, heard = SpeechOptions(loudness_lufs=loudness_lufs), list[NDArray[np.float32]]()
    with pytest.raises(error, match=message):
        heard.extend(_conversation(_Model(), "a", f"b c {end}", live=live, options=options).sound())
    assert sum(map(len, heard[:-1])) == 3 * 12_000 + round(24 * TURN_GAP_MS)
    np.testing.assert_array_equal(heard[-1], ramp_down(float(heard[-2][-1])), "and ends without a click")


def test_each_turn_hears_those_before() -> None:
    model = _Model()
    _sound(_conversation(model, "a", "b b", "c"))
    assert model.contexts == [[], ["a"], ["a", "b b"]]


def test_what_had_no_room_is_forgotten() -> None:
    model = _Model(room=2)
    _sound(_conversation(model, *"abcdef"))
    assert model.contexts == [[], ["a"], ["a", "b"], ["a", "b", "c"], ["b", "c", "d"], ["c", "d", "e"]]


def _voice(name: str, speaker: int) -> Voice:
    return Voice(np.ones((2, 2), np.int64), name, speaker)


def test_all_voices_begin_every_turn_in_one_order() -> None:
    ann, bob, eve = _voice("ann", 0), _voice("bob", 1), _voice("eve", 1)
    turns = [
        Turn("a", 0, ann),
        Turn("b", 1, bob),
        Turn("c", None, _voice("ann", 0)),
        Turn("d", 1, eve),
        Turn("e", 1, None),
    ]
    expected = [["ann", "bob", "eve"], ["ann", "bob"], ["ann", "bob", "eve"], ["ann", "eve"], ["ann"]]
    model = _Model()
    _sound(Conversation(cast(MisoTTS, model), turns, OPTIONS, live=True))
    assert model.voices == expected
    assert [stream.speech.speaker for stream in model.streams] == [0, 1, 0, 1, 1]
    model = _Model()
    _sound(Conversation(cast(MisoTTS, model), iter(turns), OPTIONS, live=True))
    assert model.voices == [["ann"], ["ann", "bob"], ["ann", "bob"], ["ann", "eve"], ["ann"]]


def test_independent_turns_have_their_voice_alone() -> None:
    model, turns = _Model(), [Turn("a", 0, _voice("ann", 0)), Turn("b", 1, _voice("bob", 1)), Turn("c", 2, None)]
    _sound(Conversation(cast(MisoTTS, model), turns, OPTIONS, live=True, is_independent=True))
    assert model.contexts == [[], [], []]
    assert model.voices == [["ann"], ["bob"], []]


def test_turns_that_come_are_read_as_they_are_spoken() -> None:
    read: list[str] = []

    def coming() -> Iterator[Turn]:
        for text in "ab":
            read.append(text)
            yield Turn(text, 0, None)

    sound = Conversation(cast(MisoTTS, _Model()), coming(), OPTIONS, live=True).sound()
    next(sound)
    assert read == ["a"]
    next(sound)
    assert read == ["a", "b"]


def test_a_turn_that_says_nothing() -> None:
    sound = _sound(_conversation(_Model(), "", "a", "", "b"))
    assert len(sound) == 2 * 12_000 + round(24 * TURN_GAP_MS)
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


@pytest.mark.parametrize(
    ("texts", "sequences", "is_independent", "kind"),
    [
        (["a", "b"], 1, True, Conversation),
        (["a", "b"], 4, False, Conversation),
        (["a", "b"], 4, True, Together),
        ([iter(["a", "b"])], 4, True, Conversation),
        ([], 4, True, Together),
    ],
)
@pytest.mark.parametrize("comes", [True, False])
def test_only_whole_lines_are_spoken_together(
    texts: list[Any], sequences: int, is_independent: bool, kind: type[Conversation], comes: bool
) -> None:
    """The sentences of one text that comes hear each other, and are spoken as they come."""
    model = cast(MisoTTS, SimpleNamespace(engine=SimpleNamespace(sequences=sequences)))
    turns = [Turn(text, None, None) for text in texts]
    given = iter(turns) if comes or not all(isinstance(text, str) for text in texts) else turns
    found = conversation_of(model, given, OPTIONS, live=True, is_independent=is_independent)
    assert type(found) is kind
    assert list(found._turns) == turns
