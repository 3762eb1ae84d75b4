"""The sums are those of the PyTorch reference in float64: every matrix of both halves, each step for itself."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from heard_reference import Sums, reference_sums
from speaking import reference_prompt

from miso_gguf.core.errors import MisoError
from miso_gguf.models.flavors import TINY
from miso_gguf.quant_eval.corpus import Prompt, Turn
from miso_gguf.quant_eval.run.candidate import Candidate
from miso_gguf.quant_eval.run.stages import Target, speak_target
from miso_gguf.recipes.collector import Collector
from miso_gguf.recipes.sums import empty_sums
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.options import EngineOptions, SpeechOptions

ENGINE = EngineOptions(threads=1, gpu_layers=0, exact=True, voice_cache_bytes=0)
SHORT = SpeechOptions(max_seconds=1.6, split_sentences=False)
PROMPTS = (
    Prompt("alone", "test", "One two three, said the tiny model."),
    Prompt("answer", "test", "And then?", before=(Turn(0, "Who is there?"), Turn(0, "It is us, we are here."))),
)


def collector_of(bundle: Path, level: str) -> Collector:
    return Collector(Candidate.of(level, open_level(bundle, level)), ENGINE)


@pytest.fixture(scope="module")
def collector(bundle: Path) -> Iterator[Collector]:
    with collector_of(bundle, "f32") as collector:
        yield collector


def expected_sums(
    collector: Collector, weights: dict[str, torch.Tensor], prompt: Prompt, options: SpeechOptions
) -> tuple[dict[str, Sums], int]:
    target = Target.of(prompt, speak_target(collector._loaded, prompt, 0, options))
    given = reference_prompt(collector._loaded.tts.engine, prompt.text, target.context)
    return reference_sums(TINY, weights, given, target.codes), len(target.codes)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.id)
@pytest.mark.parametrize("seconds", [1.28, 1.6], ids=["a pass", "more than a pass"])
def test_sums_equal_the_references(
    collector: Collector, weights: dict[str, torch.Tensor], prompt: Prompt, seconds: float
) -> None:
    options = SpeechOptions(max_seconds=seconds, split_sentences=False)
    sums = empty_sums(TINY)
    frames = collector.hear(prompt, 0, options, sums)
    expected, expected_frames = expected_sums(collector, weights, prompt, options)
    assert frames == expected_frames == round(seconds * 12.5)
    for part, wanted in expected.items():
        found = dict(sums["backbone" if part == "backbone" else "decoder"].entries())
        assert found.keys() == wanted.keys()
        for name, (squares, counts) in wanted.items():
            entry = found[name]
            assert entry.count == counts.sum()
            np.testing.assert_allclose(entry.sums, squares.sum(axis=0), rtol=2e-5, err_msg=name)
            if part == "decoder":
                assert entry.step_counts is not None
                assert entry.step_sums is not None
                assert entry.step_counts.tolist() == counts.tolist()
                np.testing.assert_allclose(entry.step_sums, squares, rtol=2e-5, atol=1e-12, err_msg=name)


def test_what_a_file_cannot_hold_is_no_sum() -> None:
    """Of float32: it would be infinite there."""
    sums = empty_sums(TINY)["decoder"]
    name, step = "blk.0.attn_q.weight", 3
    for value in (np.nan, np.inf, 2e19):
        with pytest.raises(MisoError, match="multiplied with NaN or infinity"):
            sums.add(name, np.full((1, 256), value, np.float32), step)
    assert not sums.sums[name].any()
    assert not sums.counts[name].any()
