"""Hugging Face's Mimi, an implementation of its own: its saved weights through our export against its own output."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import MimiConfig, MimiModel

from miso_gguf.convert.checkpoint.hf_layout import CODEC_PREFIX
from miso_gguf.convert.mimi.export import export_decoder, export_encoder
from miso_gguf.convert.mimi.weights import Weights, mimi_weights
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.mimi import MimiSpec
from miso_gguf.models.synthetic_mimi import random_mimi

Streams = Callable[..., Any]

SPEC = MimiSpec(codebooks=4, cardinality=64, codebook_dim=32, latent_dim=64, filters=4, layers=2, heads=2, ffn_dim=128)
FRAMES = 120  # up to 125 transformers agrees with moshi; beyond, it ignores the window offline


@pytest.fixture(scope="module")
def model() -> Any:
    config = MimiConfig(
        hidden_size=64, num_filters=4, codebook_size=64, codebook_dim=32, vector_quantization_hidden_dimension=32,
        num_quantizers=4, upsample_groups=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=128, head_dim=32, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = MimiModel(config).eval()
    # Its own initialisation has zero codebooks and layer scales of 0.01.
    vectors = random_mimi(SPEC, 2)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("embed_sum"):
                kind, layer = ("first", 0) if "semantic" in name else ("rest", int(name.split("layers.")[1][0]))
                source = f"quantizer.rvq_{kind}.vq.layers.{layer}._codebook"
                value.copy_(torch.from_numpy(vectors[f"{source}.embedding_sum"]))
            elif name.endswith("cluster_usage"):
                kind, layer = ("first", 0) if "semantic" in name else ("rest", int(name.split("layers.")[1][0]))
                value.copy_(
                    torch.from_numpy(vectors[f"quantizer.rvq_{kind}.vq.layers.{layer}._codebook.cluster_usage"])
                )
            elif "layer_scale" in name:
                value.normal_(0.3, 0.1)
            elif "_proj.weight" in name and "transformer" in name:
                value.normal_(0, 0.15)
            elif "norm" in name:
                value.add_(0.1 * torch.randn_like(value))
    return model


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    tensors: Weights = load_file(folder / "model.safetensors")
    return tensors


def test_the_saved_codec_is_recognised_alone_and_inside_csm(saved: Weights) -> None:
    assert mimi_weights(saved)[0] == SPEC
    inside = {CODEC_PREFIX + name: array for name, array in saved.items()} | {"lm_head.weight": np.zeros((2, 2))}
    spec, weights = mimi_weights(inside)
    assert spec == SPEC
    alone = mimi_weights(saved)[1]
    assert all(np.array_equal(weights[name], alone[name]) for name in alone)


def test_decoding_equals_transformers(model: Any, saved: Weights, streams: Streams) -> None:
    codes = np.random.default_rng(0).integers(0, 64, (2, 4, FRAMES))
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(codes)).audio_values.numpy()
    assert expected.std() > 0.02
    stream = streams(export_decoder(*mimi_weights(saved), "float32"), batch=2)
    np.testing.assert_allclose(stream(codes), expected, rtol=0, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


def test_encoding_equals_transformers(model: Any, saved: Weights, streams: Streams) -> None:
    audio = np.random.default_rng(0).normal(0, 0.3, (1, 1, FRAMES * 1920)).astype(np.float32)
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(audio)).audio_codes.numpy()
    assert len(np.unique(expected[0, 0])) > 8
    stream = streams(export_encoder(*mimi_weights(saved), "float32"))
    assert (stream.chunks(audio, [4 * 1920]) == expected).mean() >= 0.999


def test_faults_are_named_as_the_checkpoint_names_them(saved: Weights) -> None:
    broken = dict(saved)
    layer = "decoder_transformer.layers.1.self_attn"
    del broken[f"{layer}.k_proj.weight"]
    broken["encoder_transformer.layers.0.self_attn.q_proj.weight"] = np.zeros((32, 64), np.float32)
    broken["encoder_transformer.layers.0.self_attn.k_proj.weight"] = np.zeros((96, 64), np.float32)
    broken["decoder.layers.0.extra"] = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError) as caught:
        mimi_weights(broken)
    text = str(caught.value)
    assert f"missing: {layer}.k_proj.weight" in text
    assert "encoder_transformer.layers.0.self_attn.q_proj.weight has shape [32, 64], expected [64, 64]" in text
    assert "encoder_transformer.layers.0.self_attn.k_proj.weight has shape [96, 64], expected [64, 64]" in text
    assert "unknown: decoder.layers.0.extra" in text


def test_names_of_a_loaded_model_are_the_same_weights(model: Any, saved: Weights) -> None:
    loaded = {f"{CODEC_PREFIX}{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    spec, weights = mimi_weights(loaded)
    expected = mimi_weights(saved)[1]
    assert spec == SPEC
    assert all(np.array_equal(weights[name], array) for name, array in expected.items())
