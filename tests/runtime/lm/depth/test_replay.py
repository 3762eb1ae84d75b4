"""The teacher-forced depth decoder: its logits against the PyTorch reference, whatever the number of frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from speaking import load_engine, random_codes

from miso_gguf.models.flavors import TINY
from miso_gguf.models.reference import Reference
from miso_gguf.runtime.lm.depth.decoder import DepthDecoder
from miso_gguf.runtime.lm.depth.replay import FRAMES_AT_ONCE, ReplayGraph
from miso_gguf.runtime.lm.engine import Engine

Floats = NDArray[np.float32]
STEPS = TINY.codebooks - 1


@pytest.fixture(scope="module")
def depth(bundle: Path) -> Iterator[DepthDecoder]:
    with load_engine(bundle, exact=True) as engine:
        yield engine.depth


def hidden_states(frames: int, seed: int = 0) -> Floats:
    return np.random.default_rng((frames, seed)).standard_normal((frames, TINY.backbone.embed_dim)).astype(np.float32)


def expected_logits(reference: Reference, hidden: Floats, codes: NDArray[np.int64]) -> Floats:
    with torch.no_grad():
        logits: Floats = reference.depth_logits(torch.from_numpy(hidden), torch.from_numpy(codes[:, :STEPS])).numpy()
    return logits


@pytest.mark.parametrize("frames", [1, 2, FRAMES_AT_ONCE - 1, FRAMES_AT_ONCE, FRAMES_AT_ONCE + 1, 40])
def test_logits_equal_the_reference(depth: DepthDecoder, reference: Reference, frames: int) -> None:
    hidden, codes = hidden_states(frames), random_codes(frames)
    found = depth.logits(hidden, codes)
    expected = expected_logits(reference, hidden, codes)
    assert found.dtype == np.float32
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_a_code_is_seen_by_those_after_it_in_its_frame_alone(depth: DepthDecoder) -> None:
    hidden, codes = hidden_states(3), random_codes(3)
    before = depth.logits(hidden, codes)
    for codebook in range(TINY.codebooks):
        changed = codes.copy()
        changed[1, codebook] = (changed[1, codebook] + 1) % TINY.audio_vocab
        moved = (depth.logits(hidden, changed) != before).any(axis=-1)
        # Entry j is of codebook j + 1, which is given the codes of codebooks 0 to j.
        assert moved.tolist() == [[False] * STEPS, [j >= codebook for j in range(STEPS)], [False] * STEPS]


def test_the_last_code_may_be_missing(depth: DepthDecoder) -> None:
    hidden, codes = hidden_states(2), random_codes(2)
    np.testing.assert_array_equal(depth.logits(hidden, codes[:, :-1]), depth.logits(hidden, codes))


def test_greedy_sampling_takes_the_best_of_these_logits(engine: Engine) -> None:
    """Two graphs, one that samples and one that is told: the same numbers."""
    hidden = hidden_states(12, seed=3)
    logits0 = np.random.default_rng(4).standard_normal((12, TINY.audio_vocab)).astype(np.float32)
    codes = engine.sample(hidden, logits0, np.zeros((12, TINY.codebooks, TINY.audio_vocab), np.float32), 50)
    np.testing.assert_array_equal(engine.depth.logits(hidden, codes).argmax(-1), codes[:, 1:])


@pytest.mark.parametrize("level", ["fp16", "q4_k_m"])
def test_a_frame_is_the_same_alone_or_in_company(bundle: Path, level: str) -> None:
    """Also below F32: every pass is filled up to the same number of frames, and a frame's place is all that differs."""
    hidden, codes = hidden_states(FRAMES_AT_ONCE + 5), random_codes(FRAMES_AT_ONCE + 5)
    with load_engine(bundle, level) as engine:
        together = engine.depth.logits(hidden, codes)
        for frame in (0, 3, FRAMES_AT_ONCE, FRAMES_AT_ONCE + 4):
            alone = engine.depth.logits(hidden[frame : frame + 1], codes[frame : frame + 1])
            np.testing.assert_allclose(alone[0], together[frame], rtol=0, atol=1e-5)


def test_no_frames_no_logits(depth: DepthDecoder) -> None:
    assert depth.logits(hidden_states(0), random_codes(0)).shape == (0, STEPS, TINY.audio_vocab)


def test_one_device_computes_all_of_it(depth: DepthDecoder) -> None:
    depth.logits(hidden_states(1), random_codes(1))
    assert isinstance(depth._replay, ReplayGraph)
    assert depth._replay._scheduler.splits == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, c: (h[:, :-1], c), r"hidden must be float32 \[N, 256\], not float32 \[2, 255\]"),
        (lambda h, c: (h.astype(float), c), r"hidden must be float32 \[N, 256\], not float64"),
        (lambda h, c: (h, c[:1]), r"codes must be int64 \[2, 8\] \(or 7\), not int64 \[1, 8\]"),
        (lambda h, c: (h, c[:, :6]), r"codes must be int64 \[2, 8\] \(or 7\), not int64 \[2, 6\]"),
        (lambda h, c: (h, c.astype(np.int32)), r"codes must be int64 .*, not int32"),
        (lambda h, c: (h, c * 0 - 1), "codes must be 0 to 514, not -1 to -1"),
        (lambda h, c: (h, c * 0 + 515), "codes must be 0 to 514, not 515 to 515"),
    ],
)
def test_what_cannot_be_replayed_is_refused(depth: DepthDecoder, change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        depth.logits(*change(hidden_states(2), random_codes(2)))
