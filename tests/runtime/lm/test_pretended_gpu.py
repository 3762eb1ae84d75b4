"""The paths that only a GPU takes, on a CPU that is called one: placement, fused shapes, noise ahead, warm-up.

The arithmetic is nearly the same: the depth decoder's cache is in F16, and gate and up are two products.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import Built
from miso_gguf import MisoTTS, SpeechOptions
from miso_gguf.core.arrays import F32Array
from miso_gguf.models.spec import ModelSpec
from miso_gguf.native.device import devices
from miso_gguf.native.scheduler import Scheduler
from miso_gguf.quant_eval.run.teacher_forcing import Replay
from miso_gguf.runtime.lm import engine as engine_module
from miso_gguf.runtime.lm.backbone import Backbone
from miso_gguf.runtime.lm.embeddings import Embeddings
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.options import EngineOptions

TEXTS = ["Hello there. This is very good.", "Where is the red house?"]
GREEDY = SpeechOptions(temperature=0.0, split_sentences=False)
SAMPLED = SpeechOptions(seed=5, split_sentences=False)

Load = Callable[[], MisoTTS]


@pytest.fixture(scope="module")
def speaking(built: Built) -> Path:
    return built.tiny("fp16", "q8_0", "q4_k_m", "q4_0")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = replace(devices()[-1], name="CUDA0", kind="gpu")
    monkeypatch.setattr(engine_module, "_choose_gpu", lambda _options: gpu)


@pytest.fixture
def on_cpu(speaking: Path) -> Iterator[MisoTTS]:
    with MisoTTS.load(speaking, "fp16", threads=1, gpu_layers=0) as tts:
        yield tts


def test_it_computes_what_the_cpu_computes(speaking: Path, on_cpu: MisoTTS, pretend: None) -> None:
    utterance = on_cpu.utterance(TEXTS[0], options=GREEDY)
    codes = on_cpu.generate_codes(TEXTS[0], options=GREEDY)

    def logits(tts: MisoTTS) -> F32Array:
        replay = Replay(tts.engine)
        return replay.all_logits(replay.run(utterance.blocks, codes))

    with MisoTTS.load(speaking, "fp16", threads=1) as tts:
        assert tts.engine.depth.weights.fuses_swiglu
        found, expected = logits(tts), logits(on_cpu)
        said = tts.generate_codes(TEXTS[0], options=GREEDY)
        assert tts.engine.depth.splits == 1
    assert np.linalg.norm(found - expected) < 5e-3 * np.linalg.norm(expected)
    # The first frames, before a rounding can have sent it elsewhere.
    np.testing.assert_array_equal(said[:3], codes[:3])


@pytest.mark.parametrize("level", ["fp16", "q4_k_m"])
def test_the_same_again_alone_and_together(speaking: Path, pretend: None, level: str) -> None:
    """Noise that is drawn ahead, and matrices that a batch reads otherwise, change nothing but roundings."""
    with MisoTTS.load(speaking, level, threads=1, sequences=2) as tts:
        first, again = (tts.generate_codes(TEXTS[0], options=SAMPLED) for _ in range(2))
        batch = tts.generate_batch(TEXTS, options=SAMPLED)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(batch[0].codes[:2], first[:2])
    assert len(batch[1].codes) > 5


def test_what_the_first_frame_would_wait_for_is_done_before(
    speaking: Path, pretend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Scheduler] = []
    compute = Scheduler.compute

    def noting(self: Scheduler) -> None:
        runs.append(self)
        compute(self)

    monkeypatch.setattr(Scheduler, "compute", noting)
    with MisoTTS.load(speaking, "fp16", threads=1) as tts:
        assert len(runs) == 2
        assert len(set(runs)) == 1
        with tts.engine.batcher.admit(tts.utterance(TEXTS[0], options=GREEDY)) as ticket:
            next(ticket)
        assert set(runs) == {runs[0]}, "the first frame has no graph of its own"


@pytest.mark.parametrize("context", [20, 40])
def test_a_short_context_has_no_room_to_warm_up(speaking: Path, pretend: None, context: int) -> None:
    with MisoTTS.load(speaking, "fp16", options=EngineOptions(threads=1, context=context)) as tts:
        assert tts.engine.spec.max_positions == context


def test_a_gpu_that_lacks_operations_is_reported(
    speaking: Path, pretend: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), MisoTTS.load(speaking, "fp16", threads=1):
        assert "pieces" not in caplog.text
    monkeypatch.setattr(Scheduler, "splits", 3)
    with caplog.at_level(logging.WARNING), MisoTTS.load(speaking, "fp16", threads=1):
        assert "CUDA0 lacks operations of the depth decoder, which runs in 3 pieces" in caplog.text


@pytest.mark.parametrize(
    ("gpu_layers", "threads", "sequences", "codec_threads"),
    [(None, 1, 1, 1), (None, 3, 1, 3), (-1, 16, 1, 4), (99, 16, 4, 4), (2, 16, 1, 1), (-1, 16, 6, 6), (-1, 16, 16, 8)],
)
def test_the_codec_takes_the_cores_that_the_models_leave(  # type: ignore[no-untyped-def]
    speaking: Path, pretend: None, monkeypatch: pytest.MonkeyPatch, gpu_layers, threads, sequences, codec_threads
) -> None:
    monkeypatch.setattr(Engine, "warm_up", lambda *_: None)
    with MisoTTS.load(speaking, "fp16", threads=threads, gpu_layers=gpu_layers, sequences=sequences) as tts:
        assert tts.codec.threads == codec_threads


def test_beside_models_on_the_cpu_the_codec_has_one_thread(speaking: Path) -> None:
    with MisoTTS.load(speaking, "fp16", threads=2, gpu_layers=0) as tts:
        assert tts.codec.threads == 1


def test_repack_is_left_out_where_it_is_not_safe(
    speaking: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[bool] = []

    def noting(path: Path, spec: ModelSpec, embeddings: Embeddings, options: EngineOptions, **others: Any) -> Backbone:
        asked.append(options.repack)
        return backbone(path, spec, embeddings, options, **others)

    backbone = Backbone
    monkeypatch.setattr(engine_module, "Backbone", noting)
    monkeypatch.setattr(engine_module, "is_interleaving_safe", lambda: False)
    for wanted in (True, False):
        MisoTTS.load(speaking, "fp16", options=EngineOptions(threads=1, gpu_layers=0, repack=wanted)).close()
    assert asked == [False, False]
    assert caplog.text.count("repack=True is left out") == 1
