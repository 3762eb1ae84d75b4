"""Miso GGUF: Miso TTS 8B as GGUF files, run by llama.cpp, measured level by level.

from miso_gguf import MisoTTS

with MisoTTS.load("bundle", "q4_k_m") as tts:
    tts.generate("Hello there.").save("hello.wav")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .core.errors import BundleError, Busy, CheckpointError, MisoError
    from .runtime.options import EngineOptions, SpeechOptions
    from .runtime.speech import Chunk, Segment, Speech
    from .runtime.synthesis.asynchronous import AsyncSpeechStream
    from .runtime.synthesis.plan import SpeechPlan
    from .runtime.synthesis.stream import SpeechStream
    from .runtime.tts import MisoTTS
    from .runtime.voice import Voice

__all__ = [
    "AsyncSpeechStream",
    "BundleError",
    "Busy",
    "CheckpointError",
    "Chunk",
    "EngineOptions",
    "MisoError",
    "MisoTTS",
    "Segment",
    "Speech",
    "SpeechOptions",
    "SpeechPlan",
    "SpeechStream",
    "Voice",
]

_HOMES = {
    "AsyncSpeechStream": "runtime.synthesis.asynchronous",
    "BundleError": "core.errors",
    "Busy": "core.errors",
    "CheckpointError": "core.errors",
    "Chunk": "runtime.speech",
    "EngineOptions": "runtime.options",
    "MisoError": "core.errors",
    "MisoTTS": "runtime.tts",
    "Segment": "runtime.speech",
    "Speech": "runtime.speech",
    "SpeechOptions": "runtime.options",
    "SpeechPlan": "runtime.synthesis.plan",
    "SpeechStream": "runtime.synthesis.stream",
    "Voice": "runtime.voice",
}
"""Loaded when they are first used: the runtime brings llama.cpp with it, which a conversion does without."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
