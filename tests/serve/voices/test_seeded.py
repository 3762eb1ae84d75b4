"""An alias is one and the same speaker of the model, made once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from speaking import load_tts
from voicing import nothing

from builders import Built
from miso_gguf.core.closing import Closing
from miso_gguf.core.errors import MisoError
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.voice import Voice
from miso_gguf.serve.voices import seeded
from miso_gguf.serve.voices.seeded import ALIASES, SENTENCE, TRIES, Hold, SeededSpeakers


class Sayer:
    """A model that says for each seed so many frames, and how it ended."""

    def __init__(self, takes: dict[int, tuple[int, str]], fingerprint: str = "a", key: str = "f32") -> None:
        self.takes, self.asked = takes, list[tuple[str, int, int]]()
        self.level = SimpleNamespace(manifest=SimpleNamespace(fingerprint=fingerprint), key=key)
        self.gate = threading.Event()
        self.gate.set()

    def stream(self, text: str, *, speaker: int, options: SpeechOptions, live: bool) -> "Saying":
        assert not live
        self.gate.wait(60)
        self.asked.append((text, speaker, options.seed))
        frames, ended = self.takes[options.seed % TRIES]
        return Saying(frames, ended, options.seed)


class Saying(Closing):
    """One take of it, whose record is there when it has been heard or stopped."""

    def __init__(self, frames: int, ended: str, seed: int) -> None:
        self.speech = SimpleNamespace(sentences=[])
        self._said = SimpleNamespace(codes=np.full((frames, 8), 1 + seed, np.int64), ended=ended)
        self._stopped = False

    def __iter__(self) -> Iterator[None]:
        yield None
        if not self._stopped:
            self.speech.sentences.append(self._said)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """Nothing to free."""


def made(
    sayer: Sayer, speakers: SeededSpeakers | None = None, name: str = "echo", hold: Hold = nothing
) -> Voice | None:
    return (speakers or SeededSpeakers()).voice(name, sayer, hold)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("takes", "kept", "asked"),
    [
        ({0: (60, "eos")}, 0, 1),
        ({0: (24, "eos"), 1: (25, "eos")}, 1, 2),
        ({0: (80, "cap"), 1: (90, "loop"), 2: (30, "eos")}, 2, 3),
        ({0: (80, "cap"), 1: (90, "loop"), 2: (3, "eos")}, 1, 3),
        ({0: (0, "empty"), 1: (1, "silence"), 2: (0, "empty")}, 1, 3),
        ({0: (0, "empty"), 1: (0, "empty"), 2: (0, "empty")}, None, 3),
    ],
)
def test_the_first_whole_take_or_the_longest_is_kept(
    takes: dict[int, tuple[int, str]], kept: int | None, asked: int
) -> None:
    sayer, number = Sayer(takes), ALIASES.index("echo")
    voice = made(sayer)
    assert sayer.asked == [(SENTENCE, number, number * TRIES + each) for each in range(asked)]
    if kept is None:
        assert voice is None
    else:
        assert voice is not None
        assert voice.codes.tolist() == [[1 + number * TRIES + kept] * 8] * takes[kept][0]
        assert (voice.text, voice.speaker, voice.name) == (SENTENCE, number, "echo")


def test_those_who_ask_at_once_wait_for_one_making() -> None:
    sayer, speakers, voices = Sayer({0: (60, "eos")}), SeededSpeakers(), list[Voice | None]()
    sayer.gate.clear()
    threads = [threading.Thread(target=lambda: voices.append(made(sayer, speakers))) for _ in range(8)]
    for thread in threads:
        thread.start()
    sayer.gate.set()
    for thread in threads:
        thread.join()
    assert len(sayer.asked) == 1
    assert len(voices) == 8
    assert all(voice is voices[0] for voice in voices)


def test_another_level_or_bundle_has_its_own_and_the_same_loaded_again_does_not() -> None:
    speakers = SeededSpeakers()
    sayers = [Sayer({0: (60, "eos")}, *which) for which in (("a", "f32"), ("a", "q4_0"), ("b", "f32"), ("a", "f32"))]
    for sayer in sayers:
        made(sayer, speakers)
    assert [len(sayer.asked) for sayer in sayers] == [1, 1, 1, 0]


def test_who_stops_it_gets_none_and_the_next_makes_it() -> None:
    sayer, speakers = Sayer({0: (60, "eos")}), SeededSpeakers()
    with pytest.raises(MisoError, match="gone before it was made"):
        made(sayer, speakers, hold=lambda stream: stream.stop())
    assert made(sayer, speakers) is not None
    assert len(sayer.asked) == 2


def test_a_failure_is_forgotten() -> None:
    sayer, speakers = Sayer({0: (60, "eos")}), SeededSpeakers()
    takes, sayer.takes = sayer.takes, {}
    with pytest.raises(KeyError):
        made(sayer, speakers)
    sayer.takes = takes
    assert made(sayer, speakers) is not None


def test_speakers_of_the_tiny_model_differ_and_each_is_the_same_again(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeded, "MOST_SECONDS", 1.0)
    bundle: Path = built.tiny("q4_k_m")
    with load_tts(bundle, "q4_k_m") as tts:
        voices = [SeededSpeakers().voice(name, tts, nothing) for name in ("alloy", "coral", "verse")]
        digests = [voice and voice.digest for voice in voices]
        assert None not in digests
        assert len({*digests}) == 3
        again = SeededSpeakers().voice("verse", tts, nothing)
        assert again is not None
        assert again.digest == digests[-1]
        said = tts.generate("Hello there.", voice=voices[0])
        assert said.speaker == ALIASES.index("alloy")
        assert len(said.codes)
