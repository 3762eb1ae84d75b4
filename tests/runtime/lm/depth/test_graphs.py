"""Which graph computes a batch: rows with options of their own get the codes they get alone, from few graphs."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from speaking import load_engine

from miso_gguf.core.arrays import F32Array, I64Array
from miso_gguf.models.flavors import TINY
from miso_gguf.native.buffer import write_tensor
from miso_gguf.native.graph import F32, Tensor
from miso_gguf.runtime.lm.depth import graphs, sampling
from miso_gguf.runtime.lm.depth.decoder import DepthDecoder
from miso_gguf.runtime.lm.depth.graphs import KEPT, FrameGraphs

VOCAB = TINY.audio_vocab
Inputs = tuple[F32Array, F32Array, F32Array]


@pytest.fixture(scope="module")
def depth(bundle: Path) -> Iterator[DepthDecoder]:
    with load_engine(bundle, exact=True) as engine:
        yield engine.depth


@pytest.fixture
def fresh(depth: DepthDecoder) -> Iterator[FrameGraphs]:
    """Graphs of nobody else, over the same weights."""
    with FrameGraphs(TINY, depth.weights, depth._backends, kv=F32) as made:
        yield made


def inputs_of(batch: int, seed: int = 0) -> Inputs:
    """Hidden states, codebook-0 logits, and noise of temperature 1; every third row is greedy."""
    rng = np.random.default_rng((batch, seed))
    hidden = rng.standard_normal((batch, TINY.backbone.embed_dim)).astype(np.float32)
    logits = rng.standard_normal((batch, VOCAB)).astype(np.float32)
    noise = rng.gumbel(size=(batch, TINY.codebooks, VOCAB)).astype(np.float32)
    noise[2::3] = 0
    return hidden, logits, noise


def rows_of(given: Inputs, *rows: int) -> Inputs:
    hidden, logits, noise = given
    return hidden[list(rows)], logits[list(rows)], noise[list(rows)]


def chosen(depth: DepthDecoder, given: Inputs, codes: I64Array, top_k: Sequence[int]) -> I64Array:
    """What numpy draws from the logits that the other graph has for these codes."""
    hidden, logits, noise = given
    everything = np.concatenate([logits[:, None], depth.logits(hidden, codes)], axis=1)
    found = np.empty_like(codes)
    for row, codebook in np.ndindex(*codes.shape):
        best = np.argsort(-everything[row, codebook])[: top_k[row]]
        found[row, codebook] = best[np.argmax(everything[row, codebook, best] + noise[row, codebook, best])]
    return found


@pytest.mark.parametrize(
    "top_k",
    [
        [1, 2, 50, 49, 3, 50],
        [1, 51, 256, 50, 200],
        [1, 2, 50, 51, 256, 257, VOCAB - 1, VOCAB, VOCAB + 5, 2**31 - 1, 10**30],
        [VOCAB, VOCAB + 5, 2**31 - 1],
    ],
    ids=["few", "some", "all kinds", "all"],
)
def test_rows_of_different_top_k_get_the_codes_they_get_alone(depth: DepthDecoder, top_k: list[int]) -> None:
    given = inputs_of(len(top_k))
    together = depth.frames(*given, top_k)
    assert together.dtype == np.int64
    alone = [depth.frames(*rows_of(given, row), k)[0] for row, k in enumerate(top_k)]
    np.testing.assert_array_equal(together, np.stack(alone))
    np.testing.assert_array_equal(together, chosen(depth, given, together, top_k))


def test_every_top_k_leaves_out_all_but_so_many(depth: DepthDecoder) -> None:
    """Noise that turns the order round: the winner is the last that takes part, whichever of the graphs it is."""
    hidden, _, noise = inputs_of(1)
    logits = np.random.default_rng(5).permutation(VOCAB).astype(np.float32)
    noise[0, 0] = -2 * logits
    order = np.argsort(-logits)
    for k in [*range(1, 60), 255, 256, 257, 400, VOCAB - 1, VOCAB]:
        assert depth.frames(hidden, logits[None], noise, k)[0, 0] == order[k - 1]


def test_of_equals_at_the_border_so_many_take_part_as_there_is_room_for(depth: DepthDecoder) -> None:
    hidden, logits, noise = inputs_of(1)
    logits[:], noise[:] = -5, 0
    leaders, tied = [7, 100], [3, 8, 200, 514]
    logits[0, leaders], logits[0, tied] = 2, 1
    for k in (3, 4, 5):
        won = []
        for code in tied:
            noise[:] = 0
            noise[0, 0, code] = 50
            winner = depth.frames(hidden, logits, noise, k)[0, 0]
            assert winner in [code, *leaders]
            won.append(winner == code)
        assert sum(won) == k - len(leaders)


@pytest.mark.parametrize("kind", ["int", "list", "array", "numpy integers"])
def test_top_k_is_one_integer_or_one_for_each_row(depth: DepthDecoder, kind: str) -> None:
    given = inputs_of(3)
    same: dict[str, Any] = {
        "int": 50,
        "list": [50] * 3,
        "array": np.full(3, 50, np.int64),
        "numpy integers": tuple(np.int32(50) for _ in range(3)),
    }
    np.testing.assert_array_equal(depth.frames(*given, same[kind]), depth.frames(*given, [50, 50, 50]))


@pytest.mark.parametrize(
    ("top_k", "message"),
    [
        (0, "top_k must be at least 1, not 0"),
        ([50, -1], "top_k must be at least 1, not -1"),
        ([50], "top_k must be one integer, or 2, one for each row, not 1"),
        ([50] * 3, "top_k must be one integer, or 2, one for each row, not 3"),
        ([], "not 0"),
        (50.0, r"top_k must be an integer, or one for each row, not 50\.0"),
        ([50, 1.5], r"top_k must be an integer, or one for each row, not \[50, 1\.5\]"),
        (np.full(2, 50.0), "top_k must be an integer"),
        (np.full((2, 1), 50), "top_k must be an integer"),
        ("50", "top_k must be an integer, or one for each row, not '50'"),
        (None, "top_k must be an integer"),
    ],
)
def test_other_top_k_are_refused(depth: DepthDecoder, top_k: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depth.frames(*inputs_of(2), top_k)


def test_few_graphs_whatever_was_asked_for(bundle: Path) -> None:
    with load_engine(bundle, exact=True) as engine:
        depth = engine.depth
        given = inputs_of(1)
        for top_k in (*range(1, 301), VOCAB - 1, VOCAB, VOCAB + 1):
            depth.frames(*given, top_k)
        assert len(depth._graphs) == 4
        for top_k in (1, 50, 51, VOCAB):
            for batch in range(1, 9):
                depth.frames(*inputs_of(batch), top_k)
                assert len(depth._graphs) <= KEPT


def test_the_least_recently_used_goes(fresh: FrameGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KEPT", 2)
    two = inputs_of(2)
    first = fresh.compute(*two, (50, 50))
    one = fresh.compute(*rows_of(two, 0), (50,))
    kept = fresh._graphs[2, 50]
    fresh.compute(*two, (50, 1))
    fresh.compute(*rows_of(two, 0, 1, 1), (50, 50, 50))
    assert list(fresh._graphs) == [(2, 50), (3, 50)]
    assert fresh._graphs[2, 50] is kept
    np.testing.assert_array_equal(fresh.compute(*rows_of(two, 0), (50,)), one)
    np.testing.assert_array_equal(fresh.compute(*two, (50, 50)), first)
    assert len(fresh) == 2


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("cpu", {1: 1, 2: 2, 3: 3, 5: 5, 7: 7, 8: 8, 9: 12, 12: 12, 13: 16, 16: 16, 17: 20}),
        ("gpu", {1: 1, 2: 2, 3: 4, 5: 8, 7: 8, 8: 8, 9: 16, 12: 16, 16: 16, 17: 32}),
    ],
)
def test_sizes_of_batches(depth: DepthDecoder, kind: str, sizes: dict[int, int]) -> None:
    """A CPU pays for every row; on a GPU they are nearly free, and a new graph is not."""
    device: Any = SimpleNamespace(best=SimpleNamespace(kind=kind))
    rows = FrameGraphs(TINY, depth.weights, device, kv=F32)._rows
    assert {batch: rows(batch) for batch in sizes} == sizes


def test_what_fills_a_batch_up_changes_nothing(depth: DepthDecoder) -> None:
    top_k = [1, 50, 3, 40, 2, 50, 49, 7, 50]
    given = inputs_of(len(top_k))
    found = depth.frames(*given, top_k)
    assert found.shape == (9, TINY.codebooks)
    parts = [depth.frames(*rows_of(given, *range(start, start + 3)), top_k[start : start + 3]) for start in (0, 3, 6)]
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_a_gpu_sorts_all_codes_and_finds_the_same(depth: DepthDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that a GPU gets, on this CPU."""
    top_k = (1, 50, 3, 256, 100)
    given = inputs_of(len(top_k))
    expected = depth.frames(*given, top_k)
    backends = depth._backends
    monkeypatch.setattr(backends, "devices", [replace(backends.best, kind="gpu")])
    with closing(FrameGraphs(TINY, depth.weights, backends, kv=F32)) as as_on_a_gpu:
        found: NDArray[np.int64] = as_on_a_gpu.compute(*given, top_k)
        assert list(as_on_a_gpu._graphs) == [(8, 256)]
    np.testing.assert_array_equal(found, expected)


def test_an_interrupt_after_the_ranks_were_written(fresh: FrameGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not taken for those from before."""
    given = inputs_of(1)
    expected = fresh.compute(*given, (50,))

    def interrupted(tensor: Tensor, data: NDArray[np.generic]) -> None:
        write_tensor(tensor, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "write_tensor", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fresh.compute(*given, (1,))
    np.testing.assert_array_equal(fresh.compute(*given, (50,)), expected)
    assert (fresh.compute(*given, (1,)) != expected).any()
