"""The exported decoder against moshi: offline, streamed in chunks, in batches; and how it is stored."""

import getpass
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from spox import Tensor, argument, build

from miso_gguf.convert.mimi.export import export_decoder
from miso_gguf.convert.mimi.graph import WeightDtype
from miso_gguf.convert.mimi.transformer import _positions
from miso_gguf.convert.mimi.weights import mimi_weights
from miso_gguf.models.mimi import MIMI, TINY_MIMI, MimiSpec
from miso_gguf.models.synthetic_mimi import random_mimi

Streams = Callable[..., Any]
Oracle = Callable[..., Any]
Array = NDArray[Any]

FRAMES = 300  # 600 steps: past the window of 250, twice
SMALL = MimiSpec(codebooks=6, cardinality=64, codebook_dim=32, latent_dim=64, filters=4, layers=2, heads=2, ffn_dim=128)
NARROW = replace(SMALL, window=7, semantic_codebooks=2)


def export(spec: MimiSpec, seed: int = 0, dtype: WeightDtype = "float32") -> bytes:
    return export_decoder(spec, mimi_weights(random_mimi(spec, seed), spec)[1], dtype)


def random_codes(spec: MimiSpec, frames: int, batch: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, spec.cardinality, (batch, spec.codebooks, frames))


def assert_like_moshi(spec: MimiSpec, chunkings: list[list[int]], streams: Streams, oracle: Oracle) -> None:
    checkpoint = random_mimi(spec, 3)
    codes = random_codes(spec, FRAMES)
    expected = oracle(spec, checkpoint).decode(codes)
    assert 0.02 < expected.std() < 0.5, "audio this quiet or loud would hide errors"
    stream = streams(export_decoder(spec, mimi_weights(checkpoint, spec)[1], "float32"))
    offline = stream(codes)
    assert offline.shape == (1, 1, FRAMES * spec.frame_samples)
    assert offline.dtype == np.float32
    np.testing.assert_allclose(offline, expected, rtol=0, atol=1e-4)
    for sizes in chunkings:
        np.testing.assert_allclose(stream.restart().chunks(codes, sizes), expected, rtol=0, atol=1e-4)
        assert stream.state["offset"].tolist() == [2 * FRAMES]


@pytest.mark.parametrize("spec", [SMALL, NARROW, TINY_MIMI], ids=["small", "narrow", "tiny"])
def test_streamed_and_offline_decode_equal_moshi(spec: MimiSpec, streams: Streams, oracle: Oracle) -> None:
    assert_like_moshi(spec, [[1], [2], [5], [3, 1, 130, 7, 2]], streams, oracle)


@pytest.mark.parametrize(
    "chunkings",
    [pytest.param([[3, 1, 130, 7, 2]], marks=pytest.mark.long), pytest.param([[1], [2], [5]], marks=pytest.mark.slow)],
    ids=["mixed", "even"],
)
def test_full_size_decode_equals_moshi(chunkings: list[list[int]], streams: Streams, oracle: Oracle) -> None:
    assert_like_moshi(MIMI, chunkings, streams, oracle)


def test_rotation_is_that_of_float64_at_any_time() -> None:
    """Half a day into a stream too. What `docs/mimi.md` says of it."""
    offset, x = argument(Tensor(np.int64, ("batch",))), argument(Tensor(np.float32, ("batch", "steps", "width")))
    cos, sin, _ = _positions(x, MIMI, offset)
    graph = build({"x": x, "offset": offset}, {"cos": cos, "sin": sin}).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    starts = np.array([0, 1, 250, 25 * 3600, 25 * 3600 * 12])
    found = session.run(["cos", "sin"], {"x": np.zeros((len(starts), 60, 1), np.float32), "offset": starts})
    half = np.arange(MIMI.head_dim // 2, dtype=np.float32)
    # moshi computes the frequencies, and nothing else, in float32.
    frequency = np.exp(half * np.float32(-np.log(MIMI.rope_period) * 2 / MIMI.head_dim)).astype(np.float64)
    angle = (starts[:, None] + np.arange(60))[..., None, None] * frequency
    for values, expected in zip(found, (np.cos(angle), np.sin(angle)), strict=True):
        np.testing.assert_allclose(values, expected, rtol=0, atol=2.6e-7)


def test_hours_into_a_stream_nothing_drifts(streams: Streams) -> None:
    """Attention depends on distances alone; angles in float32 would be off by 2e-4 after an hour."""
    stream = streams(export(TINY_MIMI))
    codes = random_codes(TINY_MIMI, 140)
    results = []
    for offset in (TINY_MIMI.window, 25 * 3600, 25 * 3600 * 24):
        stream.restart()
        stream.state["offset"][:] = offset
        results.append(stream.chunks(codes, [10]))
    assert results[0].std() > 0.02
    for later in results[1:]:
        np.testing.assert_allclose(later, results[0], rtol=0, atol=5e-6)


def test_rows_of_a_batch_are_independent_streams(streams: Streams) -> None:
    stream = streams(export(SMALL), batch=3)
    codes = random_codes(SMALL, 200, batch=3)
    before, after = stream.chunks(codes[..., :150], [30]), None
    stream.reset_row(1)
    assert stream.state["offset"].tolist() == [300, 0, 300]
    after = stream.chunks(codes[..., 150:], [1, 4])
    for row in range(3):
        alone = stream.restart()
        np.testing.assert_allclose(alone.chunks(codes[row : row + 1, :, :150], [50]), before[row : row + 1], atol=1e-5)
        if row == 1:
            alone.restart()
        np.testing.assert_allclose(alone.chunks(codes[row : row + 1, :, 150:], [25]), after[row : row + 1], atol=1e-5)


def test_a_started_stream_depends_on_its_state(streams: Streams) -> None:
    stream = streams(export(SMALL))
    codes = random_codes(SMALL, 2)
    first = stream(codes)
    assert np.abs(stream(codes) - first).max() > 1e-2


@pytest.mark.parametrize("code", [SMALL.cardinality, 10**6, -1])
@pytest.mark.parametrize("codebook", [0, 3, SMALL.codebooks - 1])
def test_a_code_outside_its_codebook_is_an_error(code: int, codebook: int, streams: Streams) -> None:
    codes = random_codes(SMALL, 4)
    codes[0, codebook, 2] = code
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="index"):
        streams(export(SMALL))(codes)


def snr_db(signal: Array, other: Array) -> float:
    signal, other = signal.astype(np.float64), other.astype(np.float64)
    return float(10 * np.log10(np.square(signal).sum() / np.square(signal - other).sum()))


def test_float16_storage_costs_half_the_bytes_and_little_accuracy(streams: Streams) -> None:
    whole, half = export(TINY_MIMI), export(TINY_MIMI, dtype="float16")
    codes = random_codes(TINY_MIMI, 100)
    assert snr_db(streams(whole)(codes), streams(half)(codes)) >= 55
    assert len(half) < 0.62 * len(whole)


@pytest.mark.slow
def test_full_size_float16_storage_is_accurate(streams: Streams) -> None:
    codes = random_codes(MIMI, 100)
    assert snr_db(streams(export(MIMI))(codes), streams(export(MIMI, dtype="float16"))(codes)) >= 55


def test_values_beyond_float16_are_kept_in_float32(streams: Streams) -> None:
    checkpoint = random_mimi(SMALL, 0)
    name = "quantizer.rvq_first.vq.layers.0._codebook"
    checkpoint[f"{name}.cluster_usage"][5] = 1e-5
    checkpoint[f"{name}.embedding_sum"][5] = 1e5 * 1e-5
    model = export_decoder(SMALL, mimi_weights(checkpoint, SMALL)[1], "float16")
    codes = random_codes(SMALL, 3)
    codes[0, 0, 1] = 5
    assert np.isfinite(streams(model)(codes)).all()


def test_rarely_used_entries_are_divided_by_their_usage() -> None:
    # A floor of 1.0 instead of 1e-5, a known mistake, would pass a test whose usages are all above 1.
    usage = random_mimi(TINY_MIMI)["quantizer.rvq_rest.vq.layers.0._codebook.cluster_usage"]
    assert ((usage > 1e-5) & (usage < 1)).any()
    assert (usage < 1e-5).any()


def test_export_is_deterministic_and_says_nothing_of_the_machine() -> None:
    first, second = export(SMALL), export(SMALL)
    assert first == second
    model = onnx.load_from_string(first)
    for name in (getpass.getuser(), platform.node(), str(Path.home()), str(Path(__file__).parents[3])):
        assert len(name) < 5 or name.encode() not in first
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version <= 10, "onnxruntime 1.20 reads IR versions up to 10"
    assert {node.domain for node in model.graph.node} == {""}


def test_an_unknown_weight_type_is_refused() -> None:
    with pytest.raises(ValueError, match="int8"):
        export(SMALL, dtype=cast("WeightDtype", "int8"))


def test_the_model_describes_itself(streams: Streams) -> None:
    stream = streams(export(SMALL))
    meta = {key: value for key, value in stream.metadata.items() if key != "miso.state"}
    assert meta == {
        "miso.format": "1",
        "miso.part": "mimi-decoder",
        "miso.sample_rate_hz": "24000",
        "miso.frame_samples": "1920",
        "miso.codebooks": "6",
        "miso.cardinality": "64",
    }
    entries = {entry["input"]: entry for entry in json.loads(stream.metadata["miso.state"])}
    assert len(entries) == 1 + 11 + 2 * SMALL.layers
    assert entries["offset"] == {
        "input": "offset", "output": "offset_out", "dtype": "int64", "init": 0, "shape": ["batch"]
    }  # fmt: skip
    assert entries["decoder_transformer.transformer.layers.1.self_attn.key"]["shape"] == ["batch", 2, 249, 32]
