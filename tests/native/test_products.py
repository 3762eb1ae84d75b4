"""What goes into products is told as it is, under the weights' names, and to nobody who does not ask."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from builders import MICRO, Built
from miso_gguf.models.levels import F32 as F32_LEVEL
from miso_gguf.native.buffer import Buffer, write_tensor
from miso_gguf.native.buffer_types import plain_buffer_type
from miso_gguf.native.device import Backends
from miso_gguf.native.graph import F32, Graph, TensorContext
from miso_gguf.native.llama import LlamaModel, LlamaOptions
from miso_gguf.native.products import ProductWatch
from miso_gguf.native.scheduler import Scheduler

Floats = NDArray[np.float32]
COLUMNS, ROWS = 8, 6
FIRST, COPIED, SECOND = "blk.0.one.weight", "CUDA0#blk.0.copied.weight#0", "blk.0.two.weight"


@pytest.fixture(scope="module")
def backends() -> Iterator[Backends]:
    with Backends(gpu=None, threads=1) as backends:
        yield backends


class Watched:
    """Three products: of rows that follow each other, of every second row, and of what the first one gives."""

    def __init__(self, backends: Backends, stack: ExitStack) -> None:
        self.watch, state, g = ProductWatch(), TensorContext(8), Graph(32)
        weights = [state.new(F32, COLUMNS, COLUMNS) for _ in range(3)]
        self._x = state.new(F32, COLUMNS, 2 * ROWS)
        for tensor, name in zip(weights, (FIRST, COPIED, SECOND), strict=True):
            state.name(tensor, name)
        buffer = Buffer(state, plain_buffer_type(backends.best), weights=False)
        self.values: Floats = np.random.default_rng(0).standard_normal((2 * ROWS, COLUMNS), np.float32)
        write_tensor(self._x, self.values)
        for tensor in weights:
            write_tensor(tensor, np.eye(COLUMNS, dtype=np.float32) * 3)
        row = 4 * COLUMNS
        every_second = g.view(self._x, (COLUMNS, ROWS - 1, 1, 1), (2 * row, 2 * row * ROWS, 2 * row * ROWS), 2 * row)
        first = g.mul_mat(weights[0], g.rows(self._x, 0, ROWS))
        for result in (g.mul_mat(weights[1], every_second), g.mul_mat(weights[2], first)):
            g.expand(result, output=True)
        self.scheduler = Scheduler(backends, g, self.watch)
        for each in (buffer, self.scheduler):
            stack.callback(each.close)


@pytest.fixture
def watched(backends: Backends) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(backends, stack)


def heard(watched: Watched, *names: str) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    with watched.watch.listening(names, found.__setitem__):
        watched.scheduler.compute()
    return found


def test_rows_are_told_wherever_they_lie(watched: Watched) -> None:
    found = heard(watched, FIRST, "blk.0.copied.weight", SECOND)
    assert set(found) == {FIRST, "blk.0.copied.weight", SECOND}
    np.testing.assert_array_equal(found[FIRST], watched.values[:ROWS])
    np.testing.assert_array_equal(found["blk.0.copied.weight"], watched.values[2::2])
    np.testing.assert_array_equal(found[SECOND], 3 * watched.values[:ROWS])


def test_only_what_was_asked_for_is_told(watched: Watched) -> None:
    assert list(heard(watched, SECOND)) == [SECOND]
    assert heard(watched) == {}
    watched.scheduler.compute()  # with nobody listening


def test_what_a_listener_raises_is_raised_by_who_computes(watched: Watched) -> None:
    told = []

    def listener(name: str, _rows: Floats) -> None:
        told.append(name)
        raise KeyboardInterrupt(name)

    with watched.watch.listening([FIRST, SECOND], listener):
        with pytest.raises(KeyboardInterrupt, match=FIRST):
            watched.scheduler.compute()
        watched.scheduler.compute()
    assert told == [FIRST], "nothing more is told"
    assert set(heard(watched, SECOND)) == {SECOND}, "and the next computation is as ever"


@pytest.fixture(scope="module")
def backbone(built: Built) -> Path:
    return built.bundle([F32_LEVEL], MICRO) / "Micro-backbone-F32.gguf"


def test_llama_cpp_tells_too_and_computes_the_same(backbone: Path) -> None:
    embedded = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    options, watch = LlamaOptions(threads=1, exact=True), ProductWatch()
    with (
        LlamaModel(backbone, options, context=8) as plain,
        LlamaModel(backbone, options, context=8, watch=watch) as model,
    ):
        expected = plain.forward(embedded)
        found: dict[str, Floats] = {}
        with watch.listening(["blk.1.attn_v.weight", "output.weight"], found.__setitem__):
            results = model.forward(embedded)
        unheard = model.forward(embedded)
    for result, again, plainly in zip(results, unheard, expected, strict=True):
        assert result.tobytes() == again.tobytes() == plainly.tobytes()
    assert {name: rows.shape for name, rows in found.items()} == {
        "blk.1.attn_v.weight": (5, 64),
        "output.weight": (5, 64),
    }
    np.testing.assert_array_equal(found["output.weight"], results[0])


def _refuses(name: str, _rows: Floats) -> None:
    raise KeyError(name)


def test_an_error_goes_through_llama_cpp(backbone: Path) -> None:
    watch = ProductWatch()
    with LlamaModel(backbone, LlamaOptions(threads=1), context=8, watch=watch) as model:
        embedded = np.ones((2, 64), np.float32)
        with (
            watch.listening(["blk.0.ffn_down.weight"], _refuses),
            pytest.raises(KeyError, match="ffn_down"),
        ):
            model.forward(embedded)
        hidden, _ = model.forward(embedded)
        assert np.isfinite(hidden).all()
