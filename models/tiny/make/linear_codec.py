"""The constructed codec as what it is: a linear basis for frames and a split residual quantiser of the coefficients.

`as_mimi.py` writes the same thing in Mimi's weights; here it is plain matrix algebra, frame by frame, in float64, and
fast enough to code a corpus. Every number is one that float16 can hold, so both forms compute with the same ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...mimi import FRAME_SAMPLES, STEPS_PER_FRAME, MimiSpec
from .rvq import Array, Codes, as_float16, decode_chain, encode_chain, fit_chain, fit_codebook, nearest

Samples = NDArray[np.float32]

STEP_SAMPLES = FRAME_SAMPLES // STEPS_PER_FRAME
_LOUDNESS = 0.25
"""Frames count by their energy to the power of minus this: quiet ones would otherwise be left to chance."""
_UNUSED = 1.0
"""Of the semantic entry 0, in a dimension in which no latent lies: silence (entry 1) is always nearer."""


@dataclass(frozen=True)
class LinearCodec:
    """A codec of frames, each coded on its own.

    Attributes:
        basis: Of a step of 40 ms, `[960, R]`.
        mixing: From the latent to the two steps' coefficients, `[2, R, latent_dim]`.
        semantic_dims: The first codebook codes these first dimensions of the latent, the chain of others the rest.
        codebooks: `[codebooks, cardinality, codebook_dim]`. Semantic entry 0 decodes to silence and is never chosen,
            so no frame is coded as the EOS frame; entry 1 is silence. Acoustic entries 0 are zero.
    """

    basis: Array
    mixing: Array
    semantic_dims: int
    codebooks: Array

    def latents(self, samples: Samples) -> Array:
        """Of whole frames: `[n * 1920]` to `[n, latent_dim]`."""
        if len(samples) % FRAME_SAMPLES:
            raise ValueError(f"{len(samples)} samples are not whole frames of {FRAME_SAMPLES}")
        steps = np.asarray(samples, np.float64).reshape(-1, STEPS_PER_FRAME, STEP_SAMPLES) @ self.basis
        return np.asarray(np.einsum("nsr,srd->nd", steps, self.mixing))

    def encode(self, samples: Samples) -> Codes:
        """Codes int64 `[n, codebooks]` of `n * 1920` samples. Raises `ValueError` if they are not whole frames."""
        return self._codes(self.latents(samples))

    def decode(self, codes: Codes) -> Samples:
        """Samples float32 `[n * 1920]` of codes `[n, codebooks]`."""
        acoustic_dims = self.mixing.shape[2] - self.semantic_dims
        semantic = self.codebooks[0][codes[:, 0], : self.semantic_dims]
        acoustic = decode_chain(codes[:, 1:], list(self.codebooks[1:, :, :acoustic_dims]))
        latents = np.concatenate([semantic, acoustic], axis=1)
        steps = np.einsum("nd,srd->nsr", latents, self.mixing) @ self.basis.T
        return np.asarray(steps.reshape(-1), np.float32)

    def _codes(self, latents: Array) -> Codes:
        split = self.semantic_dims
        acoustic_dims = latents.shape[1] - split
        padded = np.zeros((len(latents), self.codebooks.shape[2]))
        padded[:, :split] = latents[:, :split]
        first = nearest(padded, self.codebooks[0])
        rest = encode_chain(latents[:, split:], list(self.codebooks[1:, :, :acoustic_dims]))
        return np.concatenate([first[:, None], rest], axis=1)


def _principal(x: Array, weights: Array, count: int) -> Array:
    """The directions of most weighted energy, `[d, count]`, the strongest first; of a sign that does not change."""
    values, vectors = np.linalg.eigh((x * weights[:, None]).T @ x)
    vectors = vectors[:, np.argsort(-values, kind="stable")[:count]]
    strongest = vectors[np.abs(vectors).argmax(axis=0), np.arange(count)]
    return np.asarray(vectors * np.sign(strongest))


def fit_codec(samples: Samples, spec: MimiSpec, rank: int, semantic_dims: int, seed: int = 0) -> LinearCodec:
    """A codec for speech like `samples` `[n * 1920]`.

    Args:
        samples: All that it should be good at, as whole frames.
        spec: Its dimensions.
        rank: Of the basis of a step; that of a frame is `spec.latent_dim`.
        semantic_dims: How much of the latent the one semantic codebook codes: few, for nothing corrects it.
        seed: For k-means.

    Raises `ValueError` if there are fewer frames than codebook entries.
    """
    rng = np.random.default_rng(seed)
    steps = np.asarray(samples, np.float64).reshape(-1, STEP_SAMPLES)
    energy = np.square(steps).reshape(-1, FRAME_SAMPLES).mean(axis=1)
    weights = (energy + 1e-3 * energy.max()) ** -_LOUDNESS
    weights /= weights.mean()
    basis = as_float16(_principal(steps, np.repeat(weights, STEPS_PER_FRAME), rank))
    coefficients = (steps @ basis).reshape(-1, STEPS_PER_FRAME * rank)
    mixing = as_float16(_principal(coefficients, weights, spec.latent_dim))
    latents = coefficients @ mixing
    acoustic_dims = spec.latent_dim - semantic_dims
    codebooks = np.zeros((spec.codebooks, spec.cardinality, spec.codebook_dim))
    codebooks[0, 0, semantic_dims] = _UNUSED
    codebooks[0, 1:, :semantic_dims] = fit_codebook(latents[:, :semantic_dims], weights, spec.cardinality - 1, rng)
    chain = fit_chain(latents[:, semantic_dims:], weights, spec.codebooks - 1, spec.cardinality, rng)
    codebooks[1:, :, :acoustic_dims] = chain
    return LinearCodec(basis, mixing.reshape(STEPS_PER_FRAME, rank, spec.latent_dim), semantic_dims, codebooks)
