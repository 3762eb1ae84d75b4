"""The depth decoder's graphs at every level: what they compute is what the weights in the file say."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Qtype
from gguf import GGUFWriter
from numpy.typing import NDArray

from builders import BLOCKS, Built
from miso_gguf.models.levels import LEVELS
from miso_gguf.models.manifest import read_manifest
from miso_gguf.native.device import Backends
from miso_gguf.native.ggml import dequantize
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.runtime.lm.depth.decoder import DepthDecoder

ROUNDING = {"f32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}
"""RMS of logits' errors over theirs, by how the CPU rounds what it multiplies with; others round to 8 bits."""


@pytest.fixture(scope="module")
def every(built: Built) -> Path:
    return built.every_level()


@contextmanager
def opened(bundle: Path, level: str, decoder: Path) -> Iterator[DepthDecoder]:
    with GgufFile(bundle / read_manifest(bundle).levels[level].embeddings) as embeddings:
        projection = embeddings.tensors["projection.weight"]
    with Backends(gpu=None, threads=1) as backends, DepthDecoder(decoder, projection, BLOCKS, backends) as depth:
        yield depth


def in_f32(source: Path, target: Path) -> tuple[Path, dict[str, Qtype]]:
    """The same decoder with what its weights stand for, and the types they had."""
    writer = GGUFWriter(target, "llama")
    with GgufFile(source) as file:
        types = {name: tensor.qtype for name, tensor in file.tensors.items()}
        for name, tensor in file.tensors.items():
            writer.add_tensor(name, dequantize(tensor.qtype, tensor.data, tensor.shape[-1]).reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target, types


def runs(types: dict[str, Qtype], *names: str) -> list[int]:
    """How many products each layer's matrices of these names become: neighbours of one type are one."""
    layers = range(BLOCKS.decoder.layers)
    return [len(list(groupby(types[f"blk.{layer}.{name}.weight"] for name in names))) for layer in layers]


def relative(error: NDArray[np.float32], of: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(error) / np.linalg.norm(of))


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_computes_what_its_weights_say(every: Path, tmp_path: Path, level: str) -> None:
    """Replayed and sampled, alone and in company, against the same graph over the weights as F32."""
    source = every / read_manifest(every).levels[level].decoder
    plain, types = in_f32(source, tmp_path / "plain.gguf")
    rng = np.random.default_rng(5)
    hidden = rng.standard_normal((4, BLOCKS.backbone.embed_dim)).astype(np.float32)
    first = rng.standard_normal((4, BLOCKS.audio_vocab)).astype(np.float32)
    quiet = np.zeros((4, BLOCKS.codebooks, BLOCKS.audio_vocab), np.float32)
    bound = ROUNDING.get(level, 0.03)
    with opened(every, level, source) as depth, opened(every, level, plain) as exact:
        assert [len(layer.query_key_value) for layer in depth.weights.layers] == runs(
            types, "attn_q", "attn_k", "attn_v"
        )
        assert [len(layer.gate_up) for layer in depth.weights.layers] == runs(types, "ffn_gate", "ffn_up")
        for batch in (1, 4):
            codes = depth.frames(hidden[:batch], first[:batch], quiet[:batch], 50)
            found, expected = (each.logits(hidden[:batch], codes) for each in (depth, exact))
            assert relative(found - expected, expected) < bound
            # Greedily the best by exact logits is said, or one that rounding may have put before it.
            said = np.take_along_axis(expected, codes[:, 1:, None], -1)[..., 0]
            assert (expected.max(-1) - said).max() <= 4 * bound * expected.std()
        assert depth.splits == 1
    assert bool(ROUNDING.get(level)) == (not LEVELS[level].mixture.quantises)


def test_the_levels_have_every_type_between_them(every: Path) -> None:
    found = set()
    for files in read_manifest(every).levels.values():
        with GgufFile(every / files.decoder) as file:
            found |= {tensor.qtype.name for tensor in file.tensors.values()}
    quantised = "Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K Q2_K IQ3_S IQ3_XXS IQ2_S"
    assert found == {"F32", "F16", "BF16", *quantised.split()}


def test_matrices_of_a_level_may_differ_in_type(every: Path) -> None:
    """Else the test above would never see attention in several products."""
    sizes = set()
    for level in LEVELS:
        with opened(every, level, every / read_manifest(every).levels[level].decoder) as depth:
            sizes |= {len(layer.query_key_value) for layer in depth.weights.layers}
    assert sizes >= {1, 2}
