"""Reading a codec's weights: three naming schemes, one layout, and every fault named at once."""

import re
from dataclasses import replace

import numpy as np
import pytest
from moshi.models.loaders import get_mimi

from miso_gguf.convert.checkpoint.hf_layout import CODEC_PREFIX, unpermute_rows
from miso_gguf.convert.mimi.weights import Weights, kyutai_shapes, mimi_weights
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.mimi import MIMI, TINY_MIMI, MimiSpec, mimi_shapes, recognise_mimi
from miso_gguf.models.synthetic_mimi import random_mimi

SMALL = MimiSpec(codebooks=4, cardinality=32, codebook_dim=16, latent_dim=32, filters=2, layers=2, heads=1, ffn_dim=48)


@pytest.fixture
def checkpoint() -> Weights:
    return random_mimi(SMALL, 5)


def test_the_table_is_the_whole_of_moshis_model() -> None:
    model = get_mimi(None, num_codebooks=32)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert kyutai_shapes(shapes) == mimi_shapes(MIMI)


@pytest.mark.parametrize(
    "spec",
    [MIMI, TINY_MIMI, SMALL, replace(MIMI, codebooks=8), replace(TINY_MIMI, ratios=(5, 4), kernel=5)],
    ids=["mimi", "tiny", "small", "eight", "ratios"],
)
def test_a_spec_is_recognised_from_its_shapes(spec: MimiSpec) -> None:
    assert recognise_mimi(mimi_shapes(spec)) == spec


def test_recognition_survives_a_missing_layer() -> None:
    shapes = mimi_shapes(MIMI)
    del shapes["decoder_transformer.transformer.layers.7.linear1.weight"]
    assert recognise_mimi(shapes) == MIMI


def test_what_is_no_codec_is_not_recognised() -> None:
    with pytest.raises(CheckpointError, match=r"decoder\.model\.0.*linear1.*rvq_rest"):
        recognise_mimi({"backbone.norm.scale": (4096,)})


def test_a_recognised_codec_must_make_sense() -> None:
    shapes = {name: shape for name, shape in mimi_shapes(SMALL).items() if "rvq_first.vq" not in name}
    with pytest.raises(CheckpointError, match="rvq_first"):
        recognise_mimi(shapes)


def test_kyutai_names_are_taken_as_they_are(checkpoint: Weights) -> None:
    spec, weights = mimi_weights(checkpoint)
    assert spec == SMALL
    assert set(weights) == set(mimi_shapes(SMALL))
    for name, array in weights.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, checkpoint[name])


def test_moshis_in_memory_names_are_the_same_weights(checkpoint: Weights) -> None:
    renamed = {
        name.replace("in_proj_weight", "in_projs.0.weight").replace("out_proj.", "out_projs.0."): array
        for name, array in checkpoint.items()
    }
    assert renamed.keys() != checkpoint.keys()
    weights = mimi_weights(renamed)[1]
    assert all(np.array_equal(array, checkpoint[name]) for name, array in weights.items())


def test_only_the_codec_is_looked_at_inside_a_larger_checkpoint(checkpoint: Weights) -> None:
    larger = {CODEC_PREFIX + name: array for name, array in checkpoint.items()}
    larger["backbone_model.norm.weight"] = np.zeros(3, np.float32)
    assert mimi_weights(larger)[0] == SMALL


def test_codebooks_beyond_the_spec_are_left_out(checkpoint: Weights) -> None:
    fewer = replace(SMALL, codebooks=3)
    spec, weights = mimi_weights(checkpoint, fewer)
    assert spec == fewer
    assert set(weights) == set(mimi_shapes(fewer))


def test_half_precision_weights_become_float32(checkpoint: Weights) -> None:
    halves = {name: array.astype(np.float16) for name, array in checkpoint.items()}
    assert all(array.dtype == np.float32 for array in mimi_weights(halves)[1].values())


def test_every_fault_is_named_at_once(checkpoint: Weights) -> None:
    del checkpoint["decoder.model.14.conv.conv.bias"]
    del checkpoint["quantizer.rvq_rest.vq.layers.1._codebook.cluster_usage"]
    checkpoint["decoder.model.99.weight"] = np.zeros(1, np.float32)
    checkpoint["something_else"] = np.zeros(1, np.float32)
    checkpoint["upsample.convtr.convtr.convtr.weight"] = np.zeros((32, 1, 5), np.float32)
    checkpoint["encoder.model.0.conv.conv.bias"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as caught:
        mimi_weights(checkpoint)
    text = str(caught.value)
    for line in (
        "missing: decoder.model.14.conv.conv.bias",
        "missing: quantizer.rvq_rest.vq.layers.1._codebook.cluster_usage",
        "unknown: decoder.model.99.weight",
        "unknown: something_else",
        "mis-shaped: upsample.convtr.convtr.convtr.weight has shape [32, 1, 5], expected [32, 1, 4]",
        "mis-shaped: encoder.model.0.conv.conv.bias has shape [3], expected [2]",
    ):
        assert line in text


@pytest.mark.parametrize(("part", "second"), [("in_proj_weight", "in_projs.0.weight"), ("out_proj.", "out_projs.0.")])
def test_a_tensor_under_two_names_is_named(checkpoint: Weights, part: str, second: str) -> None:
    name = next(name for name in checkpoint if part in name)
    second = name.replace(part, second)
    checkpoint[second] = checkpoint[name] + 1
    with pytest.raises(CheckpointError, match=f"there under another name too: {re.escape(second)}$"):
        mimi_weights(checkpoint)


def test_values_that_are_not_finite_are_refused(checkpoint: Weights) -> None:
    checkpoint["decoder.model.0.conv.conv.bias"][1] = np.nan
    with pytest.raises(CheckpointError, match=r"not finite: decoder\.model\.0\.conv\.conv\.bias"):
        mimi_weights(checkpoint)


def test_half_split_rows_are_interleaved_head_by_head() -> None:
    rows = np.array([0, 2, 4, 1, 3, 5, 10, 12, 14, 11, 13, 15], np.float32)[:, None]
    expected = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert unpermute_rows(rows, 6)[:, 0].tolist() == expected
