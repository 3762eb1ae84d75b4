"""The single calls of an engine: whoever makes them, they are computed on the batcher's thread."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from speaking import prompt_blocks, random_codes

from miso_gguf.native.llama import LlamaModel
from miso_gguf.runtime.lm.depth.decoder import DepthDecoder
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.prompt import audio_rows


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of those that have computed."""
    found: set[str] = set()

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            found.add(threading.current_thread().name)
            return call(*arguments)

        return noting

    for owner, name in ((LlamaModel, "decode"), (DepthDecoder, "frames"), (DepthDecoder, "logits")):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name)))
    return found


def test_all_computing_is_one_threads(engine: Engine, threads: set[str]) -> None:
    codes, noise = random_codes(2), np.zeros((1, engine.spec.codebooks, engine.spec.audio_vocab), np.float32)
    blocks = prompt_blocks(engine.prompts, "One thing.")
    with engine.batcher.lend(blocks) as sequence:
        hidden, logits = engine.prefill(sequence, blocks)
        calls: list[Callable[[], object]] = [
            lambda: list(engine.prefill_chunks(sequence, blocks)),
            lambda: engine.step([sequence], [codes[0]]),
            lambda: engine.extend(sequence, audio_rows(codes)),
            lambda: engine.sample(hidden, logits, noise, 50),
            lambda: engine.depth_logits(hidden, codes[:1]),
            lambda: engine.warm_up(50),
        ]
        for call in calls:
            threads.clear()
            call()
            assert threads == {"miso-batcher"}
