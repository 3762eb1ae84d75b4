"""Mimi's graphs with random weights, small: what the tests of the codec run on."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from miso_gguf.convert.mimi.export import export_decoder, export_encoder
from miso_gguf.convert.mimi.weights import mimi_weights
from miso_gguf.models.mimi import TINY_MIMI, MimiSpec
from miso_gguf.models.synthetic_mimi import random_mimi

Codes = NDArray[np.int64]

SPEC = TINY_MIMI


def write_graphs(folder: Path, spec: MimiSpec = SPEC) -> tuple[Path, Path]:
    """The decoder and the encoder."""
    spec, weights = mimi_weights(random_mimi(spec, 0), spec)
    decoder, encoder = folder / "mimi-decoder.onnx", folder / "mimi-encoder.onnx"
    decoder.write_bytes(export_decoder(spec, weights, "float16"))
    encoder.write_bytes(export_encoder(spec, weights, "float32"))
    return decoder, encoder


def random_codes(frames: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, SPEC.cardinality, (frames, SPEC.codebooks))
