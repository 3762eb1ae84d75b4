"""Below F32 a row among others is computed as alone, up to rounding."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from speaking import load_engine, prompt_blocks, random_codes, say, segments

from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.lm.utterance import Utterance

ROWS, FRAMES = 8, 12
"""ggml multiplies 8 rows and more of Q4_K by another algorithm: with fewer the bits are the same."""


def logits_of(engine: Engine, together: bool) -> NDArray[np.float64]:
    """Log-probabilities of codebook 0 [FRAMES, ROWS, V], with given frames."""
    frames = random_codes(FRAMES * ROWS, 3).reshape(FRAMES, ROWS, -1)
    for row in range(ROWS):
        engine.prefill(row, prompt_blocks(engine.prompts, f"Say this, number {row}.", segments(row % 3)))
    groups = [list(range(ROWS))] if together else [[row] for row in range(ROWS)]
    steps = [[engine.step(group, [codes[row] for row in group])[1] for group in groups] for codes in frames]
    logits = np.array([np.concatenate(step) for step in steps], np.float64)
    normal: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return normal


def test_a_row_among_others_differs_by_rounding(bundle: Path) -> None:
    """Measured: KLD 5e-5 in the mean on these random frames."""
    with load_engine(bundle, "q4_k_m", sequences=ROWS) as engine:
        alone, together = logits_of(engine, False), logits_of(engine, True)
        divergence = (np.exp(alone) * (alone - together)).sum(axis=-1)
        assert divergence.mean() < 2e-4
        assert divergence.max() < 5e-3
        asked = [Utterance(prompt_blocks(engine.prompts, f"Number {row}."), FRAMES, seed=row) for row in range(ROWS)]
        pairs = zip([say(engine, utterance)[0] for utterance in asked], say(engine, *asked), strict=True)
        assert np.mean([len(one) == len(other) and (one == other).mean() for one, other in pairs]) > 0.8
