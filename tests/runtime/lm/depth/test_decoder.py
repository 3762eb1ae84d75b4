"""The depth decoder alone: the graph's codes against the PyTorch reference, for every batch and kind of sampling."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Qtype
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from builders import COMMON, MICRO, Built
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.models.flavors import TINY
from miso_gguf.models.manifest import read_manifest
from miso_gguf.models.noise import gumbel_noise
from miso_gguf.models.reference import Reference
from miso_gguf.native.device import Backends
from miso_gguf.native.ggml import quantize
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.runtime.lm.depth.decoder import DepthDecoder

Floats = NDArray[np.float32]
SEED = 7
VOCAB = TINY.audio_vocab


@contextmanager
def opened(bundle: Path, level: str, decoder: Path | None = None) -> Iterator[DepthDecoder]:
    files = read_manifest(bundle).levels[level]
    with GgufFile(bundle / files.embeddings) as embeddings:
        projection = embeddings.tensors["projection.weight"]
    with (
        Backends(gpu=None, threads=1) as backends,
        DepthDecoder(decoder or bundle / files.decoder, projection, TINY, backends) as depth,
    ):
        yield depth


@pytest.fixture(scope="module")
def depth(bundle: Path) -> Iterator[DepthDecoder]:
    with opened(bundle, "f32") as depth:
        yield depth


def inputs_of(batch: int, frame: int = 0) -> tuple[Floats, Floats, Floats]:
    """Hidden states, codebook-0 logits, and noise before the temperature."""
    rng = np.random.default_rng((batch, frame))
    hidden = rng.standard_normal((batch, TINY.backbone.embed_dim)).astype(np.float32)
    logits = rng.standard_normal((batch, VOCAB)).astype(np.float32)
    noise = np.stack([gumbel_noise(SEED, frame, TINY.codebooks, VOCAB, stream=row) for row in range(batch)])
    return hidden, logits, noise


class GivenLogits(Reference):
    """The reference with the codebook-0 logits of the test: they need not come from the hidden state."""

    def __init__(self, weights: dict[str, torch.Tensor], logits: Floats) -> None:
        super().__init__(TINY, weights.__getitem__)
        self._logits = torch.from_numpy(logits)

    def codebook0_logits(self, h: torch.Tensor) -> torch.Tensor:
        return self._logits


def expected_codes(
    weights: dict[str, torch.Tensor], given: tuple[Floats, Floats, Floats], temperature: float, top_k: int
) -> NDArray[np.int64]:
    return np.stack(
        [
            GivenLogits(weights, logits)
            .generate_frame(torch.from_numpy(hidden), torch.from_numpy(noise), temperature, top_k)
            .numpy()
            for hidden, logits, noise in zip(*given, strict=True)
        ]
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("temperature", "top_k"),
    [(0.0, 50), (0.9, 50), (0.9, 1), (0.9, 2), (1.7, VOCAB - 1), (0.9, VOCAB), (0.9, 10**6)],
)
def test_codes_equal_the_reference(
    depth: DepthDecoder, weights: dict[str, torch.Tensor], batch: int, temperature: float, top_k: int
) -> None:
    hidden, logits, noise = given = inputs_of(batch)
    scaled = (noise * np.float32(temperature)).astype(np.float32)
    found = depth.frames(hidden, logits, scaled, top_k)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected_codes(weights, given, temperature, top_k))


def test_sampling_is_not_greedy(depth: DepthDecoder) -> None:
    """Else the test above would prove less than it says: noise and top_k must each make a difference."""
    hidden, logits, noise = inputs_of(8)
    results = [depth.frames(hidden, logits, n, k) for n, k in ((noise * 0, 50), (noise, 50), (noise, VOCAB))]
    greedy, sampled, unlimited = results
    assert (greedy != sampled).mean() > 0.5
    assert (unlimited != sampled).any()
    np.testing.assert_array_equal(depth.frames(hidden, logits, noise, 1), greedy)


def test_frames_do_not_remember(depth: DepthDecoder) -> None:
    """The cache is that of one frame: what was computed before, in which batch, leaves nothing behind."""
    hidden, logits, noise = inputs_of(4, frame=1)
    first = depth.frames(hidden, logits, noise, 50)
    depth.frames(*inputs_of(4, frame=2), 50)
    np.testing.assert_array_equal(depth.frames(hidden, logits, noise, 50), first)
    alone = [depth.frames(hidden[i : i + 1], logits[i : i + 1], noise[i : i + 1], 50)[0] for i in range(4)]
    np.testing.assert_array_equal(np.stack(alone), first)


@pytest.mark.parametrize(("level", "equal"), [("fp16", 0.98), ("q8_0", 0.75), ("q4_k_m", 0.4)])
def test_levels_are_as_close_as_they_can_be(
    bundle: Path, weights: dict[str, torch.Tensor], level: str, equal: float
) -> None:
    """Of the random model's nearly flat distributions, a share of the codes stays; two random draws share 2 in 100."""
    shares = []
    with opened(bundle, level) as depth:
        for frame in range(4):
            hidden, logits, noise = given = inputs_of(4, frame)
            found = depth.frames(hidden, logits, noise, 50)
            shares.append((found == expected_codes(weights, given, 1.0, 50)).mean())
    assert np.mean(shares) > equal


def rewritten(source: Path, target: Path, types: dict[str, Qtype]) -> Path:
    """A GGUF of F32 tensors with some of them, by the end of their name, in other types."""
    writer = GGUFWriter(target, "llama")
    for tensor in GGUFReader(source).tensors:
        qtype = next((qtype for name, qtype in types.items() if tensor.name.endswith(name)), Qtype.F32)
        data = np.array(tensor.data, np.float32)
        writer.add_tensor(tensor.name, data if qtype == Qtype.F32 else quantize(qtype, data), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_matrices_of_different_types_are_not_joined(
    bundle: Path, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    """llama.cpp's mixtures may give attn_q and attn_k, or gate and up, different types: then each is its own product.

    F16 rounds by 2^-11 where F32 does not: nearly all codes stay.
    """
    source = bundle / read_manifest(bundle).levels["f32"].decoder
    mixed = rewritten(source, tmp_path / "mixed.gguf", {"attn_k.weight": Qtype.F16, "ffn_up.weight": Qtype.F16})
    hidden, logits, noise = given = inputs_of(8, frame=3)
    expected = expected_codes(weights, given, 1.0, 50)
    with opened(bundle, "f32", mixed) as depth:
        assert {len(layer.query_key_value) for layer in depth.weights.layers} == {3}
        assert {len(layer.gate_up) for layer in depth.weights.layers} == {2}
        found = depth.frames(hidden, logits, noise, 50)
    assert (found == expected).mean() > 0.95
    with opened(bundle, "f32", rewritten(source, tmp_path / "same.gguf", {})) as depth:
        assert {len(layer.query_key_value) for layer in depth.weights.layers} == {1}
        assert {len(layer.gate_up) for layer in depth.weights.layers} == {1}
        np.testing.assert_array_equal(depth.frames(hidden, logits, noise, 50), expected)


def test_one_device_computes_all_of_it(depth: DepthDecoder) -> None:
    depth.frames(*inputs_of(1), 50)
    assert depth.splits == 1


def test_what_a_frame_reads(depth: DepthDecoder) -> None:
    """Matrices of all layers at seven steps, and seven heads."""
    d = TINY.decoder
    layer = 2 * d.q_dim * d.embed_dim + 2 * d.kv_dim * d.embed_dim + 3 * d.ffn_dim * d.embed_dim
    assert depth.streamed_bytes == 4 * 7 * (d.layers * layer + VOCAB * d.embed_dim)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, g, n: (h[:, :-1], g, n, 50), r"hidden must be float32 \[2, 256\], not float32 \[2, 255\]"),
        (lambda h, g, n: (h.astype(float), g, n, 50), r"hidden must be float32 \[2, 256\], not float64"),
        (lambda h, g, n: (h, g[:1], n, 50), r"logits must be float32 \[2, 515\], not float32 \[1, 515\]"),
        (lambda h, g, n: (h, g[0], n, 50), r"logits must be float32 \[2, 515\], not float32 \[515\]"),
        (lambda h, g, n: (h, g, n[:, 1:], 50), r"noise must be float32 \[2, 8, 515\], not float32 \[2, 7, 515\]"),
        (lambda h, g, n: (h, g, n[..., :-1], 50), r"noise must be float32 \[2, 8, 515\]"),
        (lambda h, g, n: (h[:0], g[:0], n[:0], 50), r"hidden must be float32 \[0, 256\]"),
    ],
)
def test_wrong_shapes_are_refused(depth: DepthDecoder, change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        depth.frames(*change(*inputs_of(2)))


def test_arrays_need_not_be_contiguous(depth: DepthDecoder) -> None:
    hidden, logits, noise = inputs_of(2)
    strided = [np.repeat(array, 2, axis=-1)[..., ::2] for array in (hidden, logits, noise)]
    found = depth.frames(strided[0], strided[1], strided[2], 50)
    np.testing.assert_array_equal(found, depth.frames(hidden, logits, noise, 50))


def test_after_close_there_is_an_error_and_no_abort(bundle: Path) -> None:
    given = inputs_of(1)
    with opened(bundle, "f32") as depth:
        codes = depth.frames(*given, 50)
        depth.logits(given[0], codes)
        depth.close()
        depth.close()
        calls: list[Callable[[], object]] = [
            lambda: depth.frames(*given, 50),
            lambda: depth.logits(given[0], codes),
            lambda: depth.splits,
        ]
        for call in calls:
            with pytest.raises(MisoError, match="this model is closed: load it again"):
                call()


@pytest.fixture(scope="module")
def other(built: Built) -> Path:
    """A bundle of another model."""
    return built.bundle(COMMON, MICRO)


def test_a_decoder_of_another_model_is_refused_by_tensor(bundle: Path, other: Path) -> None:
    decoder = other / read_manifest(other).levels["f32"].decoder
    message = r"token_embd.weight is \[4120, 32\], expected \[4120, 256\]. This file is of another model"
    with pytest.raises(BundleError, match=message), opened(bundle, "f32", decoder):
        pass


def test_a_missing_tensor_is_named(bundle: Path, tmp_path: Path) -> None:
    source = bundle / read_manifest(bundle).levels["f32"].backbone
    with ExitStack() as stack, pytest.raises(BundleError, match=r"token_embd.weight is \[515, 256\], expected"):
        stack.enter_context(opened(bundle, "f32", source))
    source = bundle / read_manifest(bundle).levels["f32"].embeddings
    with ExitStack() as stack, pytest.raises(BundleError, match=r"token_embd.weight is missing, expected"):
        stack.enter_context(opened(bundle, "f32", source))
