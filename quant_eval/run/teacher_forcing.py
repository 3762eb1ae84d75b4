"""Teacher forcing: an utterance is run again with the codes that were spoken, for the logits of every code.

Another level that is given the same codes has the same history at every frame, so its logits can be compared one by
one; free runs of two levels part within a second. What one engine's backbone made of an utterance can be given to
another's depth decoder: so a difference is told apart by half.

One-step decoding draws, at each position of a replayed utterance, the frame that would be drawn there. The history is
the given one at every position, and the noise that of the frame loop, a function of seed, stream and frame. So two
levels differ in a code only where their logits do, and what is drawn stays aligned with the history, frame by frame.
It knows no audio, no statistics and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.arrays import F32Array, I64Array
from ...runtime.lm.engine import Engine
from ...runtime.lm.noise import scaled_noise
from ...runtime.lm.prompt import Block, audio_rows
from ...runtime.lm.utterance import Utterance

FRAMES_AT_ONCE = 8
"""Frames drawn together: the depth decoder's weights are read once for all of them."""


@dataclass(frozen=True)
class Replayed:
    """What a backbone makes of a prompt and T frames spoken on it.

    Attributes:
        codes: The frames, int64 [T, codebooks], the EOS frame not included.
        hidden: Hidden states, float32 [T + 1, D]: what frame t is made from. The last is that of the frame that was not
            spoken: the EOS frame, if the utterance ended by itself.
        logits0: Codebook-0 logits of the same positions, float32 [T + 1, V].
    """

    codes: I64Array
    hidden: F32Array
    logits0: F32Array

    @property
    def frames(self) -> int:
        """T."""
        return len(self.codes)


class Replay:
    """Teacher-forced runs on an engine. It holds nothing: the engine is closed as if it were not there."""

    def __init__(self, engine: Engine, *, as_spoken: bool = False) -> None:
        """Replay on `engine`.

        Args:
            engine: Whose models compute.
            as_spoken: Feed the frames one by one, as they were spoken: a level then gives the bits of its own run, at
                the cost of speaking again. Otherwise many frames are a batch. That rounds otherwise, no worse: least at
                F32, most with Q4_K on a CPU, whose products of 8 rows and more are another algorithm.
        """
        self._engine, self._at_once = engine, 1 if as_spoken else None

    def run(self, blocks: Sequence[Block], codes: I64Array) -> Replayed:
        """The backbone's part: the prompt `blocks`, then the frames `codes` [T, codebooks]. T may be 0.

        Raises `ValueError` if the codes are not of this model or have no room after the prompt. Waits for a sequence.
        """
        engine, spec = self._engine, self._engine.spec
        if codes.ndim != 2 or codes.shape[1] != spec.codebooks or codes.dtype != np.int64:
            raise ValueError(
                f"codes must be int64 [frames, {spec.codebooks}], not {codes.dtype} {list(codes.shape)}: "
                "were they spoken by another model?"
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < spec.audio_vocab:
            raise ValueError(
                f"codes must be 0 to {spec.audio_vocab - 1}, not {codes.min()} to {codes.max()}: "
                "were they spoken by another model?"
            )
        rows = sum(map(len, blocks))
        if rows < 1 or rows + len(codes) > spec.max_positions:
            raise ValueError(
                f"a prompt of {rows} rows and {len(codes)} frames do not fit into {spec.max_positions} positions: "
                "replay with the prompt and the context that it was spoken with"
            )
        with engine.batcher.lend(blocks) as sequence:
            hidden, logits = engine.prefill(sequence, blocks)
            if len(codes):
                later = engine.extend(sequence, audio_rows(codes), at_once=self._at_once)
                hidden, logits = (np.concatenate(pair) for pair in zip((hidden, logits), later, strict=True))
        return Replayed(codes, hidden, logits)

    def depth_logits(self, replayed: Replayed) -> F32Array:
        """The depth decoder's part, whoever's backbone it was: logits of codebooks 1 on, [T, codebooks - 1, V]."""
        return self._engine.depth_logits(replayed.hidden[: replayed.frames], replayed.codes)

    def all_logits(self, replayed: Replayed) -> F32Array:
        """Logits of every code that was spoken, float32 [T, codebooks, V]; 16 MB for 60 frames of 32 x 2051.

        Codebook 0 is the backbone's, as `replayed` has it; the others are this engine's depth decoder's.
        """
        return joined(replayed, self.depth_logits(replayed))


def joined(replayed: Replayed, depth_logits: F32Array) -> F32Array:
    """Both parts' logits together: [T, codebooks, V]."""
    return np.concatenate([replayed.logits0[: replayed.frames, np.newaxis], depth_logits], axis=1)


def one_step_codes(
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
