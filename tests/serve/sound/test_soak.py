"""Encoders and tempos by the thousand: nothing of them stays, whether they were finished, closed or left."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from own_memory import settled_anonymous_bytes

from miso_gguf.serve.sound.encoding import open_encoder
from miso_gguf.serve.sound.formats import FORMATS
from miso_gguf.serve.sound.tempo import Tempo

SOUND = np.random.default_rng(0).uniform(-1, 1, 4800).astype(np.float32)


def use(turn: int) -> None:
    """One of each format: finished, closed early, or never used; and a tempo, whose end comes or does not."""
    for name in FORMATS:
        with open_encoder(name, whole=turn % 2 == 0) as encoder:
            if turn % 3:
                encoder.encode(SOUND)
            if turn % 4:
                encoder.finish()
    tempo = Tempo(0.3 if turn % 2 else 1.7)
    tempo(SOUND)
    if turn % 3:
        tempo.rest()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_stays() -> None:
    """Of 2 400 encoders; no cycle needs a collection, which might be long in coming."""
    files = Path("/proc/self/fd")
    for turn in range(100):
        use(turn)
    before, open_files = settled_anonymous_bytes(), len(list(files.iterdir()))
    gc.disable()
    try:
        for turn in range(400):
            use(turn)
    finally:
        gc.enable()
    after = settled_anonymous_bytes()
    assert len(list(files.iterdir())) == open_files
    assert after - before < 4 << 20
