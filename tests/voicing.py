"""Voices for tests of the server's, told apart by their number, and what they are kept for."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np

from miso_gguf.runtime.voice import Voice

if TYPE_CHECKING:
    from miso_gguf.runtime.synthesis.stream import SpeechStream
    from miso_gguf.runtime.tts import MisoTTS

CODEBOOKS, CODEC_CODES = 8, 512
"""As in `speaking.py`, which brings torch with it: processes that are to start soon do without."""


def voice(number: int = 0, name: str | None = None, codebooks: int = CODEBOOKS) -> Voice:
    codes = np.random.default_rng(number).integers(1, CODEC_CODES, (40, codebooks))
    return Voice(codes, f"number {number}", number, f"voice {number}" if name is None else name)


def model(codebooks: int = CODEBOOKS) -> "MisoTTS":
    """As much of one as tells which voices are its own."""
    codec, spec = SimpleNamespace(codebooks=codebooks), SimpleNamespace(audio_vocab=CODEC_CODES + 3)
    return cast("MisoTTS", SimpleNamespace(codec=codec, engine=SimpleNamespace(spec=spec)))


def nothing(_: "SpeechStream") -> None:
    """Hold of a speaker's making, for who stops nothing."""
