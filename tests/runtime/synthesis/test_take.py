"""One try at an utterance, stopped from elsewhere."""

from miso_gguf import MisoTTS, SpeechOptions
from miso_gguf.runtime.speech import Timing
from miso_gguf.runtime.synthesis.take import Take


def test_what_is_stopped_before_it_begins_says_nothing(tts: MisoTTS) -> None:
    """As by another thread that closes a stream between two of its sentences."""
    utterance = tts.utterance("Something is said here.", options=SpeechOptions(max_seconds=3.2))
    take = Take(tts.engine, tts.codec, tts._codec_thread, utterance, Timing())
    take.stop()
    assert list(take) == []
    assert take.ended == "empty"
