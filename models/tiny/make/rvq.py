"""A residual vector quantiser by k-means: fitting codebooks, and the greedy coding that Mimi does with them.

All arithmetic is float64, all codebook entries are representable in float16. Knows nothing of audio.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

_ITERATIONS = 20


def as_float16(array: Array) -> Array:
    """The nearest values that float16 can hold, as float64."""
    return array.astype(np.float16).astype(np.float64)


def nearest(x: Array, codebook: Array) -> Codes:
    """The nearest entry of each row, the first of equals: `[n, d]` and `[cardinality, d]` to `[n]`."""
    return np.asarray((x @ codebook.T - 0.5 * np.square(codebook).sum(axis=1)).argmax(axis=1))


def encode_chain(x: Array, codebooks: Sequence[Array]) -> Codes:
    """Codes `[n, codebooks]`, each of what the ones before left over."""
    codes = np.zeros((len(x), len(codebooks)), np.int64)
    for index, codebook in enumerate(codebooks):
        codes[:, index] = nearest(x, codebook)
        x = x - codebook[codes[:, index]]
    return codes


def decode_chain(codes: Codes, codebooks: Sequence[Array]) -> Array:
    """The sum of the entries, `[n, d]`."""
    result = np.zeros((len(codes), codebooks[0].shape[1]))
    for index, codebook in enumerate(codebooks):
        result += codebook[codes[:, index]]
    return result


def fit_codebook(x: Array, weights: Array, entries: int, rng: np.random.Generator) -> Array:
    """K-means: `entries` vectors for `x` `[n, d]`, the first of them zero and kept so; float16 values.

    Args:
        x: What is to be coded.
        weights: How much each row counts, `[n]`.
        entries: Size of the codebook.
        rng: Chooses the start.

    Raises `ValueError` if there are fewer rows than entries.
    """
    if len(x) < entries:
        raise ValueError(f"{len(x)} vectors are too few for a codebook of {entries}: use more data or fewer entries")
    energy = weights * np.square(x).sum(axis=1)
    # A chain that has come to an end leaves nothing over: any start will do.
    energy = energy / energy.sum() if np.count_nonzero(energy) >= entries else np.full(len(x), 1 / len(x))
    codebook = x[rng.choice(len(x), entries, replace=False, p=energy)]
    codebook[0] = 0.0
    for _ in range(_ITERATIONS):
        codes = nearest(x, codebook)
        counts = np.bincount(codes, weights=weights, minlength=entries)
        sums = np.zeros_like(codebook)
        np.add.at(sums, codes, x * weights[:, None])
        used = counts > 0
        codebook[used] = sums[used] / counts[used, None]
        codebook[0] = 0.0
        unused = np.flatnonzero(~used[1:]) + 1
        worst = np.argsort(-weights * np.square(x - codebook[codes]).sum(axis=1), kind="stable")
        codebook[unused] = x[worst[: len(unused)]]
    return as_float16(codebook)


def fit_chain(x: Array, weights: Array, codebooks: int, entries: int, rng: np.random.Generator) -> list[Array]:
    """Codebooks for `x` and, one after the other, for what is left over; entry 0 of each is zero."""
    chain: list[Array] = []
    for _ in range(codebooks):
        codebook = fit_codebook(x, weights, entries, rng)
        x = x - codebook[nearest(x, codebook)]
        chain.append(codebook)
    return chain
