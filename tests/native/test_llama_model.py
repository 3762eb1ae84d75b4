"""A stock llama.cpp model fed by embeddings: sequences, positions, and what is refused before llama.cpp sees it."""

import ctypes
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from builders import COMMON, MICRO, Built
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.core.process import OwnProcess
from miso_gguf.native.device import Device, devices
from miso_gguf.native.llama import LlamaModel, LlamaOptions, load_library

Floats = NDArray[np.float32]

WIDTH, VOCAB, CONTEXT = 64, 515, 32


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle(COMMON, MICRO)


@pytest.fixture(scope="module")
def path(bundle: Path) -> Path:
    return bundle / "Micro-backbone-F32.gguf"


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LlamaModel]:
    with LlamaModel(path, LlamaOptions(threads=1, exact=True, sequences=3), context=CONTEXT) as model:
        yield model


def rows(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def decode(model: LlamaModel, embedded: Floats, sequence: int, start: int = 0) -> tuple[Floats, Floats]:
    count = len(embedded)
    return model.decode(embedded, [sequence] * count, range(start, start + count), [True] * count)


def close(found: Floats, expected: Floats) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_dimensions(model: LlamaModel) -> None:
    assert (model.embed_dim, model.vocab, model.context, model.sequences, model.batch) == (64, 515, 32, 3, 32)
    hidden, logits = model.forward(rows(5))
    assert (hidden.shape, logits.shape) == ((5, WIDTH), (5, VOCAB))
    assert hidden.dtype == logits.dtype == np.float32


def test_only_wanted_rows_come_back_in_their_order(model: LlamaModel) -> None:
    hidden, logits = model.forward(rows(6))
    model.forget(0)
    some = model.decode(rows(6), [0] * 6, range(6), [False, True, False, False, True, True])
    close(some[0], hidden[[1, 4, 5]])
    close(some[1], logits[[1, 4, 5]])
    model.forget(0)
    none = model.decode(rows(6), [0] * 6, range(6), [False] * 6)
    assert (none[0].shape, none[1].shape) == ((0, WIDTH), (0, VOCAB))


def test_sequences_do_not_hear_each_other(model: LlamaModel) -> None:
    first, second = rows(6, 1), rows(6, 2)
    expected = [model.forward(embedded)[0] for embedded in (first, second)]
    for sequence in range(3):
        model.forget(sequence)
    decode(model, first[:4], 0)
    decode(model, second[:4], 2)
    both = model.decode(
        np.stack([second[4], first[4], first[5], second[5]]), [2, 0, 0, 2], [4, 4, 5, 5], [True, False, True, True]
    )[0]
    close(both, np.stack([expected[1][4], expected[0][5], expected[1][5]]))


def test_forgetting_goes_back(model: LlamaModel) -> None:
    embedded = rows(8)
    hidden = model.forward(embedded)[0]
    model.forget(0, 5)
    close(decode(model, embedded[5:], 0, 5)[0], hidden[5:])
    model.forget(0, 1)
    changed = decode(model, rows(3, 9), 0, 1)[0]
    assert np.abs(changed - hidden[1:4]).max() > 0.1


def test_a_copy_goes_its_own_way(model: LlamaModel) -> None:
    embedded = rows(8)
    expected = model.forward(embedded)[0]
    model.forget(0, 6)
    decode(model, rows(4, 3), 1)
    model.copy(0, 1)
    decode(model, rows(2, 5), 0, 6)
    close(decode(model, embedded[6:], 1, 6)[0], expected[6:])
    # The original has heard nothing of it.
    fresh = model.forward(np.concatenate([embedded[:6], rows(2, 5), embedded[:1]]))[0]
    model.forget(0, 8)
    close(decode(model, embedded[:1], 0, 8)[0], fresh[8:])


@pytest.mark.parametrize("wrong", [-1, 3, 1000])
def test_sequences_that_are_not_there(model: LlamaModel, wrong: int) -> None:
    calls: list[Callable[[], None]] = [
        lambda: model.forget(wrong),
        lambda: model.copy(0, wrong),
        lambda: model.copy(wrong, 0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="sequences must be 0 to 2"):
            call()


def test_a_copy_onto_itself_keeps_everything(model: LlamaModel) -> None:
    embedded = rows(8)
    expected = model.forward(embedded)[0]
    model.forget(0, 6)
    model.copy(0, 0)
    close(decode(model, embedded[6:], 0, 6)[0], expected[6:])


def test_arrays_need_not_be_contiguous_or_float32(model: LlamaModel) -> None:
    embedded = rows(4)
    expected = model.forward(embedded)[0]
    np.testing.assert_array_equal(model.forward(np.repeat(embedded, 2, axis=1)[:, ::2])[0], expected)
    np.testing.assert_array_equal(model.forward(embedded.astype(np.float64))[0], expected)


@pytest.mark.parametrize(
    ("embedded", "sequences", "positions", "wanted", "message"),
    [
        (rows(0), [], [], [], r"expected embeddings \[1..32, 64\], not \[0, 64\]"),
        (rows(33), [0] * 33, range(33), [True] * 33, r"not \[33, 64\]"),
        (rows(2)[:, :63], [0, 0], [0, 1], [True] * 2, r"not \[2, 63\]"),
        (rows(2)[0], [0] * 64, [0] * 64, [True] * 64, r"not \[64\]"),
        (rows(2), [0], [0, 1], [True] * 2, "sequences, positions and wanted must have 2 entries each"),
        (rows(2), [0, 0], [0], [True] * 2, "must have 2 entries each"),
        (rows(2), [0, 0], [0, 1], [True], "must have 2 entries each"),
        (rows(1), [3], [0], [True], "sequences must be below 3 and positions below 32"),
        (rows(1), [-1], [0], [True], "sequences must be below 3"),
        (rows(1), [0], [32], [True], "positions below 32"),
        (rows(1), [0], [-1], [True], "positions below 32"),
    ],
)
def test_what_llama_cpp_would_read_past_the_end_for(  # type: ignore[no-untyped-def]
    model: LlamaModel, embedded: Floats, sequences, positions, wanted, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.decode(embedded, sequences, positions, wanted)
    assert model.forward(rows(1))[0].shape == (1, WIDTH)


def test_positions_out_of_order_are_llama_cpps_to_refuse(model: LlamaModel) -> None:
    """A step that would leave a gap, or go over what is there."""
    model.forward(rows(4))
    for position in (2, 9):
        with pytest.raises(BundleError, match=r"llama.cpp failed to decode 1 positions \(status -1\)"):
            decode(model, rows(1), 0, position)
    close(decode(model, rows(5)[4:], 0, 4)[0], model.forward(rows(5))[0][4:])


def test_every_position_can_be_used(path: Path) -> None:
    with LlamaModel(path, LlamaOptions(threads=1, exact=True), context=CONTEXT, batch=7) as model:
        assert model.batch == 7
        embedded = rows(CONTEXT)
        parts = [decode(model, embedded[start : start + 7], 0, start)[0] for start in range(0, CONTEXT, 7)]
    with LlamaModel(path, LlamaOptions(threads=1, exact=True), context=CONTEXT) as model:
        close(np.concatenate(parts), model.forward(embedded)[0])


@pytest.mark.parametrize(("kv_type", "error"), [("f32", 5e-3), ("f16", 5e-3), ("q8_0", 5e-2)])
def test_types_of_the_kv_cache(path: Path, model: LlamaModel, kv_type: str, error: float) -> None:
    expected = model.forward(rows(20))[0]
    with LlamaModel(path, LlamaOptions(threads=1, kv_type=kv_type), context=CONTEXT) as other:  # type: ignore[arg-type]
        difference = np.abs(other.forward(rows(20))[0] - expected).max()
    assert difference < error


def test_files_that_are_no_model(bundle: Path, tmp_path: Path, path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(path.read_bytes()[:-100])
    for wrong in (half, tmp_path / "nothing.gguf", bundle / "mimi-decoder.onnx", bundle / "Micro-embeddings-F32.gguf"):
        with pytest.raises(BundleError, match=f"{wrong.name}: llama.cpp does not load it"):
            LlamaModel(wrong, LlamaOptions(threads=1), context=8)


def test_a_context_that_llama_cpp_cannot_make(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_library(), "llama_init_from_model", lambda *_: None)
    with pytest.raises(MemoryError, match="no memory for a context of 2 x 8 positions with a KV cache in q8_0"):
        LlamaModel(path, LlamaOptions(threads=1, sequences=2, kv_type="q8_0"), context=8)


@pytest.mark.parametrize("gpu", [None, devices()[-1]], ids=["no GPU", "a GPU"])
@pytest.mark.parametrize(("gpu_layers", "layers"), [(0, 0), (1, 1), (-1, -1), (None, -1)])
def test_only_no_layers_at_all_leave_the_gpu_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Device | None, gpu_layers: int | None, layers: int
) -> None:
    """Without devices, llama.cpp opens none, and there is none to send large products to. Here the CPU is the GPU."""
    lib, seen = load_library(), {}
    load, init = lib.llama_model_load_from_file, lib.llama_init_from_model

    def loading(name: bytes, params: ctypes.Structure) -> object:
        seen["model"] = params
        return load(name, params)

    def starting(model: object, params: ctypes.Structure) -> object:
        seen["context"] = params
        return init(model, params)

    monkeypatch.setattr(lib, "llama_model_load_from_file", loading)
    monkeypatch.setattr(lib, "llama_init_from_model", starting)
    with LlamaModel(path, LlamaOptions(threads=1, gpu_layers=gpu_layers), context=8, gpu=gpu) as model:
        assert model.forward(rows(3))[0].shape == (3, WIDTH)
        listed = list((ctypes.c_void_p * 2).from_address(seen["model"].devices))
    used = gpu if layers else None
    assert listed == [used and used.handle, None]
    assert (seen["model"].n_gpu_layers, seen["model"].main_gpu) == (layers if gpu else 0, 0)
    assert (seen["context"].op_offload, seen["context"].offload_kqv) == (bool(used), bool(used))


def test_closing_twice(path: Path) -> None:
    model = LlamaModel(path, LlamaOptions(threads=1), context=8)
    model.close()
    model.close()
    with pytest.raises(MisoError, match="this model is closed: load it again"):
        model.check()


CALLS: dict[str, Callable[[LlamaModel], object]] = {
    "decode": lambda model: decode(model, rows(1), 0),
    "forward": lambda model: model.forward(rows(1)),
    "forget": lambda model: model.forget(0),
    "copy": lambda model: model.copy(0, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_closed_is_not_used(path: Path, name: str) -> None:
    model = LlamaModel(path, LlamaOptions(threads=1, sequences=2), context=8)
    model.close()
    with pytest.raises(MisoError, match="this model is closed: load it again"):
        CALLS[name](model)


@pytest.mark.parametrize("name", CALLS)
def test_a_forked_child_leaves_it_alone(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """llama.cpp's threads are not there to compute, nor to be ended."""
    with LlamaModel(path, LlamaOptions(threads=1, sequences=2), context=8) as model, monkeypatch.context() as child:
        child.setattr(OwnProcess, "is_here", False)
        child.setattr(load_library(), "llama_free", None)
        with pytest.raises(MisoError, match="load a model after the fork"):
            CALLS[name](model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type": "q4_0"}, "kv_type must be one of f32, f16, q8_0, not 'q4_0'"),
        ({"kv_type": ["f16"]}, r"kv_type must be one of f32, f16, q8_0, not \['f16'\]"),
        ({"sequences": 0}, "sequences must be a whole number from 1 to 256, not 0"),
        ({"sequences": 257}, "sequences must be a whole number from 1 to 256, not 257"),
        ({"threads": 0}, "threads must be a whole number from 1 to 512, not 0"),
        ({"threads": 513}, "threads must be a whole number from 1 to 512, not 513"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaOptions(**options)


@pytest.mark.parametrize(
    ("context", "sequences", "most"),
    [(0, 1, 2147483392), (-1, 1, 2147483392), (1 << 31, 1, 2147483392), (1 << 24, 256, 8388352)],
)
def test_positions_that_llama_cpp_cannot_number(path: Path, context: int, sequences: int, most: int) -> None:
    message = f"the context of each of {sequences} sequences must be 1 to {most} positions, not {context}"
    with pytest.raises(ValueError, match=message):
        LlamaModel(path, LlamaOptions(threads=1, sequences=sequences), context=context)


@pytest.mark.parametrize(
    ("context", "sequences", "batch"),
    [(1, 1, None), (1, 2, None), (5, 16, None), (5, 6, 4), (255, 256, 64), (5, 2, 64)],
)
def test_there_is_always_room_for_one_of_each(path: Path, context: int, sequences: int, batch: int | None) -> None:
    """With room for fewer, llama.cpp ends the process as it opens the model."""
    options = LlamaOptions(threads=1, sequences=sequences)
    with LlamaModel(path, options, context=context, batch=batch) as model:
        assert model.batch == max(sequences, min(batch or context, context))
        hidden, _ = model.decode(rows(sequences), range(sequences), [0] * sequences, [True] * sequences)
    assert hidden.shape == (sequences, WIDTH)


def test_llama_cpp_logs_through_logging(
    path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command that a test ran before may have left its own handler, which prints.
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    with (
        caplog.at_level(logging.DEBUG, "miso_gguf.native.messages"),
        LlamaModel(path, LlamaOptions(threads=1), context=8),
    ):
        pass
    assert any("n_ctx" in record.getMessage() for record in caplog.records)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("first", ["devices.devices()", "llama.load_library()"])
def test_an_abort_says_why(first: str) -> None:
    """As ggml's CUDA backend does it: the reason is an error in the log, and the abort says only where."""
    program = f"""
import ctypes
from miso_gguf.native import device as devices, libraries, llama
{first}
base = libraries.ggml_base()
base.ggml_log_internal(4, b"CUDA error: %s\\n", b"out of memory")
base.ggml_log_internal(3, b"a warning\\n")
base.ggml_abort(b"ggml-cuda.cu", 109, b"CUDA error")
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode < 0
    assert done.stderr == "CUDA error: out of memory\nggml-cuda.cu:109: CUDA error\n"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is loaded")
@pytest.mark.parametrize("first", ["llama.load_library()", "ggml_base()", "ggml_registry()"])
def test_one_ggml_whoever_asks_first(first: str) -> None:
    """A second one would have its own log, and its own callback when it aborts."""
    program = f"""
from miso_gguf.native import llama
from miso_gguf.native.libraries import ggml_base, ggml_registry
{first}
llama.load_library(), ggml_base(), ggml_registry()
print(*{{line.split()[-1] for line in open("/proc/self/maps") if "/libggml" in line}})
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    names = [Path(path).name.partition(".")[0] for path in done.stdout.split()]
    assert sorted(names) == sorted(set(names)) != []
