"""Counter-based Gumbel noise: the only randomness of sampling, as a pure function of where it is used.

The noise of one candidate depends on (seed, stream, frame, codebook, code) and on nothing else: not on what was drawn
before, how many utterances share a batch, or how wide the vocabulary is. So two quantisation levels can be run on the
same noise, a stream can be resumed at any frame, and the reference and the runtime draw the same codes.

The random *bits* are integers and the same on every machine. The logarithms are floating point: another numpy build
may round them differently in the last bit, which changes a code only where two candidates tie to within 1e-6.
"""

import numpy as np
import numpy.typing as npt

_WORD = 1 << 64


def uniform_bits(
    seed: int, frame: int, codebooks: int, vocab: int, *, stream: int = 0
) -> npt.NDArray[np.unsignedinteger]:
    """32 random bits for every candidate code of one frame.

    Philox4x64-10 with key (seed, 0). Code `t` of codebook `c` is half `t % 8` (low half first) of the 256-bit block
    with counter (t // 8 + 1, c, frame, stream); the 1 is there because numpy steps the counter before each block.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Args:
        seed: The user's seed, 0 to 2**64 - 1.
        frame: Index of the frame in its utterance.
        codebooks: How many codebooks to draw for.
        vocab: Candidates of each codebook.
        stream: Tells utterances of the same seed apart.

    Returns:
        Unsigned 32-bit integers `[codebooks, vocab]`.

    Raises:
        ValueError: If `seed`, `frame` or `stream` is not a 64-bit unsigned integer.
    """
    for label, value in (("seed", seed), ("frame", frame), ("stream", stream)):
        if not 0 <= value < _WORD:
            raise ValueError(f"{label} must be 0 to 2**64 - 1, not {value}")
    words = np.empty((codebooks, -(-vocab // 2)), np.uint64)
    generator = np.random.Philox(key=np.array([seed, 0], np.uint64))
    state = generator.state
    for codebook in range(codebooks):
        # Setting the state of one generator is 2x faster than making one per codebook, and also empties its buffer.
        state["state"]["counter"][:] = (0, codebook, frame, stream)
        generator.state = state
        words[codebook] = generator.random_raw(words.shape[1])
    return words.astype("<u8", copy=False).view("<u4")[:, :vocab]


def gumbel_noise(seed: int, frame: int, codebooks: int, vocab: int, *, stream: int = 0) -> npt.NDArray[np.float32]:
    """Standard Gumbel noise for every candidate code of one frame, float32 `[codebooks, vocab]`.

    `argmax(logits / temperature + noise)` is a draw from `softmax(logits / temperature)`. Upstream draws
    `argmax(p / e)` with exponential `e`, which is the same thing: `noise = -log(e)`. Values lie in [-3.2, 22.9], and
    32 x 2051 of them take under 1 ms. Arguments and errors as `uniform_bits`.
    """
    # The outer logarithm needs *relative* precision near u = 1, where the inner one approaches 0: hence float64 inside.
    uniform = uniform_bits(seed, frame, codebooks, vocab, stream=stream) + 0.5
    uniform *= 2.0**-32
    noise: npt.NDArray[np.float32] = np.log(uniform, out=uniform).astype(np.float32)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
    return noise
