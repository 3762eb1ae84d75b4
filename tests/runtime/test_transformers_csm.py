"""A model saved by transformers, converted and spoken by ours: the codes that transformers' own `generate` gives."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_csm import SPEC, random_csm
from speaking import load_tts, say, text_ids
from transformers import CsmForConditionalGeneration

from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.models.levels import F32
from miso_gguf.models.synthetic_tokenizer import tiny_tokenizer
from miso_gguf.runtime.lm.utterance import Utterance
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.tts import MisoTTS

TEXTS = ("Hello from transformers.", "And the same again, in other words!")
FRAMES = 25


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> CsmForConditionalGeneration:
    return random_csm(tied=request.param)


@pytest.fixture(scope="module")
def tts(model: CsmForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MisoTTS]:
    directory = tmp_path_factory.mktemp("csm")
    model.save_pretrained(directory)
    tokenizer: Path = directory / "tokenizer.json"
    tokenizer.write_text(json.dumps(tiny_tokenizer()))
    with open_checkpoint(directory) as checkpoint:
        convert(plan_conversion(directory / "bundle", checkpoint, None, tokenizer, Request([F32], threads=1)))
    with load_tts(directory / "bundle", exact=True) as tts:
        yield tts


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS)
def test_greedy_codes_equal_transformers(tts: MisoTTS, model: CsmForConditionalGeneration, text: str) -> None:
    tied = model.backbone_model.embed_tokens.embed_audio_tokens.weight is model.depth_decoder.model.embed_tokens.weight
    assert tts.engine.spec == replace(SPEC, tied_audio_embeddings=tied)
    block = tts.engine.prompts.text(text, 0)
    ids = torch.tensor([text_ids(block)])
    # Without a mask, transformers takes every token that equals its padding for padding.
    mask = torch.ones_like(ids)
    expected = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=FRAMES)[0]
    assert expected.shape == (FRAMES, SPEC.codebooks)
    assert len({tuple(frame) for frame in expected.tolist()}) > 10, "a model that repeats itself proves little"
    (found,) = say(tts.engine, Utterance([block], FRAMES, temperature=0))
    assert found.tolist() == expected.tolist()
    options = SpeechOptions(temperature=0, max_seconds=FRAMES / 12.5)
    assert tts.generate_codes(text, options=options).tolist() == expected.tolist()


def test_its_codec_came_with_it(tts: MisoTTS) -> None:
    speech = tts.generate(TEXTS[0], options=SpeechOptions(max_seconds=0.8))
    assert speech.samples.shape == (10 * 1920,)
    assert speech.samples.std() > 1e-4
