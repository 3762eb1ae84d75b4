"""Loaded tiny models, their reference, and models that say what a test wants, for tests of the runtime."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from miso_gguf.models.noise import gumbel_noise
from miso_gguf.models.reference import Reference, Rows, prompt_rows
from miso_gguf.models.reference import Segment as ReferenceSegment
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.codec.codec import Codec
from miso_gguf.runtime.lm.backbone import Backbone
from miso_gguf.runtime.lm.batcher import Batcher
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.prompt import Block, PromptBuilder
from miso_gguf.runtime.lm.utterance import Utterance
from miso_gguf.runtime.options import EngineOptions
from miso_gguf.runtime.speech import Segment
from miso_gguf.runtime.tts import MisoTTS

Codes = NDArray[np.int64]
Floats = NDArray[np.float32]

CODEBOOKS, CODEC_CODES = 8, 512
"""Of the tiny model, and of the codec that goes with it: its vocabulary has three specials more."""


def random_codes(frames: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(1, CODEC_CODES, (frames, CODEBOOKS))


def segments(count: int) -> list[Segment]:
    return [Segment(f"hello {i} there", random_codes(7 + i, i), i) for i in range(count)]


def load_engine(bundle: Path, level: str = "f32", **options: Any) -> Engine:
    return Engine(open_level(bundle, level), EngineOptions(threads=1, gpu_layers=0, **options))


def load_tts(
    bundle: Path,
    level: str = "f32",
    *,
    exact: bool = False,
    sequences: int = 1,
    waiting: int = EngineOptions.waiting,
    patience_s: float | None = None,
) -> MisoTTS:
    """As `MisoTTS.load`, with the options that only tests need, and without the warm-up."""
    found = open_level(bundle, level)
    options = EngineOptions(threads=1, gpu_layers=0, exact=exact, sequences=sequences, waiting=waiting)
    engine = Engine(found, options)
    if patience_s is not None:
        engine.batcher = Batcher(engine, patience_s=patience_s)
    return MisoTTS(found, engine, Codec(found.codec_decoder, found.codec_encoder))


def say(engine: Engine, *utterances: Utterance) -> list[Codes]:
    """The codes of utterances that are spoken together."""
    tickets = [engine.batcher.admit(utterance, buffer=utterance.max_frames) for utterance in utterances]
    return [np.array(list(ticket), np.int64).reshape(-1, engine.spec.codebooks) for ticket in tickets]


def prefill(backbone: Backbone, sequence: int, blocks: Sequence[Block]) -> tuple[Floats, Floats, int]:
    """Hidden state [1, D] and logits [1, V] of a prompt that is read whole, and how many rows were computed."""
    with mock.patch.object(backbone._model, "decode", wraps=backbone._model.decode) as decode:
        *_, result = backbone.prefill_chunks(sequence, blocks)
    assert result is not None
    return *result, sum(len(call.args[0]) for call in decode.call_args_list)


def prompt_blocks(prompts: PromptBuilder, text: str, context: Sequence[Segment] = (), speaker: int = 0) -> list[Block]:
    return [*(prompts.segment(segment) for segment in context), prompts.text(text, speaker)]


def text_ids(block: Block) -> list[int]:
    return [int(token) for token in block.rows[:, -1] if token >= 0]


def reference_prompt(engine: Engine, text: str, context: Sequence[Segment] = (), speaker: int = 0) -> Rows:
    """The same prompt built by the reference: only the token ids come from ours."""
    prompts = engine.prompts
    given = [
        ReferenceSegment(text_ids(prompts.text(segment.text, segment.speaker)), torch.from_numpy(segment.codes))
        for segment in context
    ]
    return prompt_rows(engine.spec, given, text_ids(prompts.text(text, speaker)))


def reference_codes(
    reference: Reference, prompt: Rows, frames: int, *, seed: int = 0, temperature: float = 0.9, top_k: int = 50
) -> Codes:
    spec = reference.spec

    def noise(frame: int) -> torch.Tensor:
        return torch.from_numpy(gumbel_noise(seed, frame, spec.codebooks, spec.audio_vocab))

    codes: Codes = reference.generate(prompt, frames, noise, temperature, top_k).numpy()
    return codes


class Scripted:
    """Replaces what an engine chooses: its n-th utterance says `takes[n]`, then the EOS frame.

    It keeps what it was asked: `prompts`, the `noise` of each utterance's first frame, and how many `steps` were made.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine, takes: Sequence[Codes]) -> None:
        self._takes, self._frame, self._spec = takes, 0, engine.spec
        self.prompts: list[list[Block]] = []
        self.noise: list[Floats] = []
        self.steps = 0
        monkeypatch.setattr(engine, "prefill_chunks", self._prefill_chunks)
        monkeypatch.setattr(engine, "step", self._step)
        monkeypatch.setattr(engine, "sample", self._sample)

    def _result(self) -> tuple[Floats, Floats]:
        spec = self._spec
        return np.zeros((1, spec.backbone.embed_dim), np.float32), np.zeros((1, spec.audio_vocab), np.float32)

    def _prefill_chunks(self, _sequence: int, blocks: Sequence[Block]) -> Iterator[tuple[Floats, Floats]]:
        self.prompts.append(list(blocks))
        self._frame = 0
        yield self._result()

    def _step(self, _sequences: Sequence[int], codes: Sequence[Codes]) -> tuple[Floats, Floats]:
        np.testing.assert_array_equal(codes[0], self._takes[len(self.prompts) - 1][self._frame - 1])
        self.steps += 1
        return self._result()

    def _sample(self, _hidden: Floats, _logits: Floats, noise: Floats, _top_k: Sequence[int]) -> Codes:
        if self._frame == 0:
            self.noise.append(noise[0])
        take = self._takes[len(self.prompts) - 1]
        frame = take[self._frame] if self._frame < len(take) else np.zeros(self._spec.codebooks, np.int64)
        self._frame += 1
        return frame[None]
