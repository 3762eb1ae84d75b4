"""The whole runtime against the PyTorch reference: the same codes, not similar ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from speaking import load_engine, load_tts, prompt_blocks, reference_codes, reference_prompt, say, segments

from miso_gguf.models.flavors import TINY
from miso_gguf.models.reference import KVCache, Reference, audio_rows
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.utterance import Utterance
from miso_gguf.runtime.options import SpeechOptions

TEXT = "One two three, said the tiny model."


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("frames", "temperature"), [(128, 0.0), (40, 0.9)], ids=["greedy", "sampled"])
def test_codes_equal_the_reference(
    engine: Engine, reference: Reference, context: int, frames: int, temperature: float
) -> None:
    given = segments(context)
    prompt = reference_prompt(engine, TEXT, given)
    blocks = prompt_blocks(engine.prompts, TEXT, given)
    assert sum(map(len, blocks)) == len(prompt.tokens)
    (found,) = say(engine, Utterance(blocks, frames, seed=5, temperature=temperature))
    expected = reference_codes(reference, prompt, frames, seed=5, temperature=temperature)
    assert len(np.unique(expected, axis=0)) > frames / 2, "a model that repeats itself proves little"
    np.testing.assert_array_equal(found, expected)


def test_the_seed_matters(engine: Engine) -> None:
    blocks = prompt_blocks(engine.prompts, TEXT)
    first, second = (say(engine, Utterance(blocks, 3, seed=seed))[0] for seed in (5, 6))
    assert (first != second).mean() > 0.5


def test_the_public_face_adds_nothing(bundle: Path, reference: Reference) -> None:
    """Text in, codes out through `MisoTTS`, with its own prompt and limits."""
    options = SpeechOptions(seed=3, max_seconds=1.6)
    with load_tts(bundle, exact=True) as tts:
        prompt = reference_prompt(tts.engine, TEXT, segments(2))
        expected = reference_codes(reference, prompt, 20, seed=3)
        found = tts.generate_codes(f"  {TEXT}\n", context=segments(2), options=options)
    np.testing.assert_array_equal(found, expected)


def test_fp16_differs_by_rounding_alone(bundle: Path, reference: Reference) -> None:
    """Teacher-forced, since a code that flips on a near-tie changes all that follow.

    ggml rounds weights and activations to F16, ten bits and a half: results of order one are off by a few 1e-3.
    """
    codes = segments(1)[0].codes
    with load_engine(bundle, "fp16", exact=True) as engine:
        prompt, blocks = reference_prompt(engine, TEXT, segments(2)), prompt_blocks(engine.prompts, TEXT, segments(2))
        results = [engine.prefill(0, blocks), *(engine.step([0], [frame]) for frame in codes)]
    hidden, logits = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
    cache = KVCache()
    first = reference.backbone(reference.embed(*prompt), cache)[-1:]
    later = reference.backbone(reference.embed(*audio_rows(TINY, torch.from_numpy(codes))), cache)
    expected = torch.cat([first, later])
    assert 0.5 < float(expected.std()) < 2
    assert 1e-4 < np.abs(hidden - expected.numpy()).max() < 1e-2
    assert 1e-4 < np.abs(logits - reference.codebook0_logits(expected).numpy()).max() < 1e-2
