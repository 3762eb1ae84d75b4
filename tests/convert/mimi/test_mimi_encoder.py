"""The exported encoder against moshi: the same codes on noise and speech, offline and streamed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from miso_gguf.convert.mimi.export import export_encoder
from miso_gguf.convert.mimi.weights import mimi_weights
from miso_gguf.models.mimi import MIMI, TINY_MIMI, MimiSpec
from miso_gguf.models.synthetic_mimi import random_mimi

Streams = Callable[..., Any]
Oracle = Callable[..., Any]
Array = NDArray[Any]

SMALL = MimiSpec(codebooks=6, cardinality=64, codebook_dim=32, latent_dim=64, filters=4, layers=2, heads=2, ffn_dim=128)
NARROW = replace(SMALL, window=7, semantic_codebooks=2)
FRAME = 1920


def speech() -> Array:
    samples, rate = soundfile.read(Path(__file__).parents[2] / "data" / "speech.flac", dtype="float32")
    assert rate == 24000
    return np.asarray(samples[None, None])


def noise(frames: int, seed: int = 0, batch: int = 1) -> Array:
    return np.random.default_rng(seed).normal(0, 0.1, (batch, 1, frames * FRAME)).astype(np.float32)


def export(spec: MimiSpec, seed: int = 0) -> bytes:
    return export_encoder(spec, mimi_weights(random_mimi(spec, seed), spec)[1], "float32")


def assert_like_moshi(
    spec: MimiSpec, audio: Array, streams: Streams, oracle: Oracle, chunks: tuple[int, ...] = (1, 3)
) -> None:
    checkpoint = random_mimi(spec, 3)
    expected = oracle(spec, checkpoint).encode(audio)
    assert len(np.unique(expected[0, 0])) > 8, "codes that hardly vary would hide errors"
    stream = streams(export_encoder(spec, mimi_weights(checkpoint, spec)[1], "float32"))
    codes = stream(audio)
    assert codes.dtype == np.int64
    assert codes.shape == (1, spec.codebooks, -(-audio.shape[-1] // FRAME))
    assert (codes == expected).mean() >= 0.999
    for frames in chunks:
        assert (stream.restart().chunks(audio, [frames * FRAME]) == expected).mean() >= 0.999


@pytest.mark.parametrize("spec", [SMALL, NARROW, TINY_MIMI], ids=["small", "narrow", "tiny"])
@pytest.mark.parametrize("audio", [noise(200), speech()], ids=["noise", "speech"])
def test_codes_equal_moshi(spec: MimiSpec, audio: Array, streams: Streams, oracle: Oracle) -> None:
    assert_like_moshi(spec, audio, streams, oracle)


@pytest.mark.slow
@pytest.mark.parametrize("audio", [noise(200), speech()], ids=["noise", "speech"])
def test_full_size_codes_equal_moshi(audio: Array, streams: Streams, oracle: Oracle) -> None:
    assert_like_moshi(MIMI, audio, streams, oracle)


@pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 7])
def test_a_ragged_end_is_padded_with_silence(samples: int, streams: Streams) -> None:
    stream = streams(export(SMALL))
    audio = speech()[..., 20_000 : 20_000 + samples]
    whole = np.zeros((1, 1, -(-samples // FRAME) * FRAME), np.float32)
    whole[..., :samples] = audio
    assert np.array_equal(stream(audio), stream.restart()(whole))


def test_only_the_first_step_of_a_stream_is_repeated_before_it(streams: Streams) -> None:
    stream = streams(export(SMALL))
    audio = noise(2)
    fresh = stream(audio)
    zeros = {name: np.zeros_like(value) for name, value in stream.state.items()}
    # The same silence before it, but a stream that has begun: the downsampling now pads with what it carries.
    stream.state = zeros | {"offset": np.array([2 * SMALL.window], np.int64)}
    assert not np.array_equal(stream(audio), fresh)


def test_rows_of_a_batch_are_independent_streams(streams: Streams) -> None:
    stream = streams(export(SMALL), batch=2)
    audio = noise(40, batch=2)
    before = stream.chunks(audio[..., : 25 * FRAME], [5 * FRAME])
    stream.reset_row(1)
    after = stream.chunks(audio[..., 25 * FRAME :], [FRAME])
    for row in range(2):
        alone = stream.restart()
        assert np.array_equal(alone(audio[row : row + 1, :, : 25 * FRAME]), before[row : row + 1])
        if row == 1:
            alone.restart()
        assert np.array_equal(alone(audio[row : row + 1, :, 25 * FRAME :]), after[row : row + 1])


def test_the_model_describes_itself(streams: Streams) -> None:
    stream = streams(export(SMALL))
    assert stream.metadata["miso.part"] == "mimi-encoder"
    assert stream.metadata["miso.codebooks"] == "6"


def test_export_is_deterministic() -> None:
    assert export(SMALL) == export(SMALL)
