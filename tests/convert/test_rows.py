"""Rows of GGUF tensors: what they are made of, how they are cut, and what is refused."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from builders import MICRO
from miso_gguf.convert import rows as module
from miso_gguf.convert.checkpoint.hf_layout import hf_sources
from miso_gguf.convert.checkpoint.layouts import HUGGING_FACE
from miso_gguf.convert.checkpoint.open import Checkpoint
from miso_gguf.convert.rows import RowReader
from miso_gguf.core.errors import CheckpointError
from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.spec import ModelSpec, TransformerSpec, rope_factors
from miso_gguf.models.tensors import GgufTensor, Rows, checkpoint_shapes, gguf_tensors

F32Array = NDArray[np.float32]

SPEC = replace(
    MICRO, decoder=TransformerSpec(layers=2, embed_dim=32, heads=4, kv_heads=2, head_dim=16, ffn_dim=64), text_vocab=70
)
TENSORS = {f"{tensor.part} {tensor.name}": tensor for tensor in gguf_tensors(SPEC)}
HEADS, TABLE = TENSORS["decoder output.weight"], TENSORS["decoder token_embd.weight"]


class Memory:
    """A checkpoint in memory. Positions are (0, 1000 * the tensor's place + row)."""

    files: Sequence[Path] = ()
    left_out: Sequence[str] = ()

    def __init__(self, tensors: Mapping[str, F32Array]) -> None:
        self.tensors = tensors
        self.reads: list[tuple[str, int, int]] = []

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.tensors.items()}

    def position(self, name: str, row: int = 0) -> tuple[int, int]:
        return 0, 100_000 * list(self.tensors).index(name) + row

    def read(self, name: str, start: int, stop: int) -> F32Array:
        assert 0 <= start < stop <= len(self.tensors[name])
        self.reads.append((name, start, stop))
        return np.array(self.tensors[name][start:stop])

    def check_dtype(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


def random_weights(spec: ModelSpec = SPEC) -> dict[str, F32Array]:
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in checkpoint_shapes(spec).items()}


WEIGHTS = random_weights()


def permuted(weights: Mapping[str, F32Array]) -> dict[str, F32Array]:
    """The same weights under Hugging Face names, queries and keys in half-split order."""
    result = {}
    for name, source in hf_sources(SPEC).items():
        array = weights[name]
        if source.head_dim is not None:
            shape = (-1, source.head_dim // 2, 2, array.shape[1])
            array = np.ascontiguousarray(array.reshape(shape).swapaxes(1, 2)).reshape(array.shape)
        result[source.name] = array
    return result


def upstream(weights: Mapping[str, F32Array] = WEIGHTS, **options: bool) -> RowReader:
    return RowReader(Checkpoint(Memory(weights), SPEC), **options)


def huggingface() -> RowReader:
    return RowReader(Checkpoint(Memory(permuted(WEIGHTS)), SPEC, HUGGING_FACE))


def read_all(reader: RowReader, tensor: GgufTensor) -> F32Array:
    return np.concatenate([reader.read(tensor, start, stop) for start, stop in reader.chunks(tensor)])


Make = Callable[[], RowReader]
READERS = pytest.mark.parametrize("make", [upstream, huggingface])


@READERS
def test_plain_tensors_are_the_rows_of_their_source(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 2000)
    reader, plain = make(), 0
    for tensor in TENSORS.values():
        if isinstance(tensor.source, Rows):
            source = WEIGHTS[tensor.source.name][tensor.source.start : tensor.source.stop]
            found = read_all(reader, tensor)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, source.reshape(1, -1) if source.ndim == 1 else source)
            plain += 1
    assert plain == len(TENSORS) - 4, "all but the two RoPE tensors, the projected table and the heads"


@READERS
def test_heads_are_transposed_below_zeros(make: Make) -> None:
    reader = make()
    found = read_all(reader, HEADS)
    vocab = SPEC.audio_vocab
    assert found.shape == HEADS.shape == (SPEC.codebooks * vocab, 32)
    assert not found[:vocab].any()
    for codebook in range(1, SPEC.codebooks):
        rows = found[codebook * vocab : (codebook + 1) * vocab]
        np.testing.assert_array_equal(rows, WEIGHTS["audio_head"][codebook - 1].T)
    # Any rows within a codebook, as `chunks` might one day ask for them.
    np.testing.assert_array_equal(
        reader.read(HEADS, 2 * vocab + 3, 2 * vocab + 5), found[2 * vocab + 3 : 2 * vocab + 5]
    )
    assert reader.read(HEADS, vocab, vocab + 5).flags.c_contiguous
    assert [reader.read(HEADS, 3, 5).shape, reader.read(HEADS, 3, 5).any()] == [(2, 32), False]


@READERS
def test_the_table_is_projected(make: Make) -> None:
    reader = make()
    found = read_all(reader, TABLE)
    table, projection = (WEIGHTS[name].astype(np.float64) for name in ("audio_embeddings.weight", "projection.weight"))
    assert found.dtype == np.float32
    scale = np.linalg.norm(table, axis=1)[:, None] * np.linalg.norm(projection, axis=1)
    assert np.abs((found - table @ projection.T) / scale).max() < 1e-6
    assert np.abs(found).mean() > 3


def test_rope_factors_are_computed() -> None:
    for part, head_dim in (("backbone", 32), ("decoder", 16)):
        tensor = TENSORS[f"{part} rope_freqs.weight"]
        found = read_all(upstream(), tensor)
        assert found.tolist() == [np.array(rope_factors(SPEC, head_dim), np.float32).tolist()]
        assert found.shape == (1, head_dim // 2)


@READERS
@settings(max_examples=examples(25), deadline=None)
@given(st.integers(1, 40_000))
def test_chunks_tile_every_tensor(make: Make, weights: int) -> None:
    reader = make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_WEIGHTS", weights)
        for tensor in TENSORS.values():
            chunks = reader.chunks(tensor)
            if len(tensor.shape) == 1:
                assert chunks == [(0, 1)]
                continue
            edges = [0, *(stop for _, stop in chunks)]
            assert chunks == list(pairwise(edges)), "no gap, no overlap"
            assert edges[-1] == tensor.shape[0]
            assert all(start < stop for start, stop in chunks)
            if make is huggingface and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
                head_dim = 32 if tensor.part == "backbone" else 16
                assert all(start % head_dim == 0 and stop % head_dim == 0 for start, stop in chunks)
            elif tensor is HEADS:
                assert all(start // 515 == (stop - 1) // 515 for start, stop in chunks), "within one codebook"
            else:
                assert all((stop - start) * tensor.shape[1] <= max(weights, tensor.shape[1]) for start, stop in chunks)


def test_chunks_of_the_full_model() -> None:
    reader = RowReader(Checkpoint(Memory({}), MISO_8B))
    chunks = {(t.part, t.name): reader.chunks(t) for t in gguf_tensors(MISO_8B)}
    assert chunks["backbone", "blk.0.ffn_gate.weight"][:2] == [(0, 256), (256, 512)]
    assert len(chunks["backbone", "blk.0.ffn_gate.weight"]) == 14336 // 256
    assert chunks["backbone", "token_embd.weight"][-1] == (2048, 2051)
    assert chunks["decoder", "output.weight"] == [(2051 * i, 2051 * (i + 1)) for i in range(32)]


def test_results_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 1000)
    with threadpool_limits(1, user_api="blas"):
        for tensor in (TABLE, HEADS, TENSORS["decoder blk.1.attn_k.weight"]):
            for make in (upstream, huggingface):
                serial = [make().read(tensor, *chunk).tobytes() for chunk in make().chunks(tensor)]
                reader = make()
                with ThreadPoolExecutor(8) as pool:
                    parallel = list(
                        pool.map(lambda c, r=reader, t=tensor: r.read(t, *c).tobytes(), reader.chunks(tensor))
                    )
                assert serial == parallel


def test_positions_are_those_of_the_source() -> None:
    reader = upstream()
    names = list(WEIGHTS)

    def place(name: str, row: int = 0) -> tuple[int, int]:
        return 0, 100_000 * names.index(name) + row

    assert reader.position(TENSORS["backbone rope_freqs.weight"]) == (-1, 0)
    assert reader.position(TENSORS["backbone blk.1.ffn_up.weight"], 7) == place("backbone.layers.1.mlp.w3.weight", 7)
    assert reader.position(TABLE, 600) == place("audio_embeddings.weight", 600)
    assert [reader.position(HEADS, row) for row in (0, 514, 515, 1029, 1030)] == [
        place("audio_head", head) for head in (0, 0, 0, 0, 1)
    ]
    later = GgufTensor("backbone", "x", (2, 64), Rows("text_embeddings.weight", 5, 7))
    assert reader.position(later, 1) == place("text_embeddings.weight", 6)
    np.testing.assert_array_equal(reader.read(later, 1, 2), WEIGHTS["text_embeddings.weight"][6:7])


def test_the_projection_is_read_once() -> None:
    memory = Memory(WEIGHTS)
    reader = RowReader(Checkpoint(memory, SPEC))
    reader.read(TABLE, 0, 3)
    reader.read(TABLE, 3, 9)
    assert memory.reads == [
        ("audio_embeddings.weight", 0, 3), ("projection.weight", 0, 32), ("audio_embeddings.weight", 3, 9),
    ]  # fmt: skip


def tampered(name: str, index: tuple[int | slice, ...], value: float) -> dict[str, F32Array]:
    array = WEIGHTS[name].copy()
    array[index] = value
    return {**WEIGHTS, name: array}


Q = "backbone.layers.0.attn.q_proj.weight"


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("tensor", "name", "index", "message"),
    [
        ("backbone blk.0.attn_q.weight", Q, (33, 5), f"tensor {Q} holds 1 NaN or Inf values in rows 32..63, the first "
         "at row 33, column 5: the checkpoint is damaged, or --allow-nonfinite converts it as it is"),
        ("backbone blk.0.attn_q.weight", Q, (32, 0), "the first at row 32, column 0"),
        ("backbone blk.0.attn_q.weight", Q, (63, 63), "the first at row 63, column 63"),
        ("decoder output_norm.weight", "decoder.norm.scale", (31,), "decoder.norm.scale holds 1 NaN or Inf values in "
         "rows 0..31, the first at row 31, column 0"),
        ("decoder output.weight", "audio_head", (2, 1, 4), f"audio_head holds 1 NaN or Inf values in rows 2..2, the "
         f"first at row 2, column {515 + 4}"),
        ("decoder token_embd.weight", "audio_embeddings.weight", (700, 3), "audio_embeddings.weight holds 1 NaN or "),
        ("decoder token_embd.weight", "projection.weight", (9, 8), "projection.weight holds 1 NaN or Inf values in "
         "rows 0..31, the first at row 9, column 8"),
    ],
)  # fmt: skip
def test_nan_and_inf_are_named(
    monkeypatch: pytest.MonkeyPatch, tensor: str, name: str, index: tuple[int, ...], message: str, value: float
) -> None:
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 2048)
    with pytest.raises(CheckpointError) as caught:
        read_all(upstream(tampered(name, index, value)), TENSORS[tensor])
    assert message in str(caught.value)


def test_all_bad_values_of_a_chunk_are_counted() -> None:
    weights = tampered(Q, (slice(3, 5),), np.nan)
    with pytest.raises(
        CheckpointError, match=r"holds 128 NaN or Inf values in rows 0\.\.63, the first at row 3, column 0"
    ):
        read_all(upstream(weights), TENSORS["backbone blk.0.attn_q.weight"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_allowed_values_pass_unchanged(value: float) -> None:
    reader = upstream(tampered(Q, (33, 5), value), allow_nonfinite=True)
    found = read_all(reader, TENSORS["backbone blk.0.attn_q.weight"])
    np.testing.assert_array_equal(found, tampered(Q, (33, 5), value)[Q])
    reader = upstream(tampered("audio_embeddings.weight", (700, 3), value), allow_nonfinite=True)
    found = read_all(reader, TABLE)
    assert np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist() == [700]


@pytest.mark.filterwarnings("error")
def test_a_product_that_overflows_is_left_to_the_encoder() -> None:
    found = upstream(tampered("audio_embeddings.weight", (700,), 3e38)).read(TABLE, 700, 701)
    assert np.isinf(found).any()
