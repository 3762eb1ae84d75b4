"""One-step coupled decoding: at each position of a replayed utterance, the frame that would be drawn there.

The history is the given one at every position, and the noise that of the frame loop, a function of seed, stream and
frame. So two levels differ in a code only where their logits do, and what is drawn stays aligned with the history,
frame by frame. It knows no audio and does not judge the difference.
"""

import numpy as np

from ...core.arrays import I64Array
from ...runtime.lm.engine import Engine
from ...runtime.lm.frame_loop import Utterance, scaled_noise
from .teacher_forcing import Replayed

FRAMES_AT_ONCE = 8
"""Frames drawn together: the depth decoder's weights are read once for all of them."""


def coupled_codes(
    engine: Engine, replayed: Replayed, utterance: Utterance, *, at_once: int = FRAMES_AT_ONCE
) -> I64Array:
    """Draw frame t after the first t frames of `replayed`, for all t.

    Within a frame, each code follows from those drawn before it, not from those that were spoken.

    Args:
        engine: Whose depth decoder draws.
        replayed: The positions, from `Replay.run`; of the same engine, unless only one half is to differ.
        utterance: Its seed, stream, temperature and top_k; as spoken, if the draws are to be those of the run.
        at_once: Frames drawn together. Another number rounds in another order below F32: hold it the same for what is
            compared. With 1, and a replay `as_spoken`, a level draws exactly what it has spoken.

    Returns:
        Codes, int64 [T, codebooks], row t instead of the spoken frame t. A row of zeros is the EOS frame.

    Raises:
        ValueError: If `at_once` is not positive.
    """
    if at_once < 1:
        raise ValueError(f"at_once must be at least 1, not {at_once}")
    drawn = np.empty_like(replayed.codes)
    for start in range(0, replayed.frames, at_once):
        frames = range(start, min(start + at_once, replayed.frames))
        part = slice(frames.start, frames.stop)
        noise = np.stack([scaled_noise(engine.spec, utterance, frame) for frame in frames])
        drawn[part] = engine.sample(replayed.hidden[part], replayed.logits0[part], noise, utterance.top_k)
    return drawn
