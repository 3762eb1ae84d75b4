"""A GPU that lacks operations for a level's types: asked with trial operations, said before anything is loaded."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Qtype

from builders import Built
from miso_gguf import MisoTTS
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import LEVELS
from miso_gguf.models.memory import GPU_PREFILL_ROWS
from miso_gguf.native.buffer_types import can_look_up, can_multiply, matrix_buffer_type, plain_buffer_type
from miso_gguf.native.device import Device, devices
from miso_gguf.runtime import choice
from miso_gguf.runtime.bundle import OpenLevel, open_bundle
from miso_gguf.runtime.choice import lacks
from miso_gguf.runtime.lm import engine as engine_module
from miso_gguf.runtime.lm import lacking as lacking_module
from miso_gguf.runtime.lm.depth.decoder import DepthDecoder
from miso_gguf.runtime.lm.lacking import Use, lacking, remark_on
from miso_gguf.runtime.options import EngineOptions

GPU = replace(devices()[-1], name="GPU0", kind="gpu")
Lack = Callable[[str, Qtype], None]


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.tiny("fp16", "q8_0", "q4_k_m", "q4_0")


@pytest.fixture
def lack(monkeypatch: pytest.MonkeyPatch) -> Lack:
    """Takes an operation on a type from all devices."""

    def take(operation: str, qtype: Qtype) -> None:
        real: Callable[..., bool] = getattr(lacking_module, operation)

        def asked(device: Device, buffer_type: int, asked_of: Qtype, *shape: int, **how: Any) -> bool:
            return asked_of != qtype and real(device, buffer_type, asked_of, *shape, **how)

        monkeypatch.setattr(lacking_module, operation, asked)

    return take


def of(bundle: Path, key: str) -> OpenLevel:
    return open_bundle(bundle).level(key)


def test_a_device_is_asked_and_may_say_no() -> None:
    """In memory for interleaved rows the CPU multiplies and looks nothing up; in plain memory it does both."""
    cpu = devices()[-1]
    plain, interleaved = plain_buffer_type(cpu), matrix_buffer_type(cpu, Qtype.Q4_0, 256, 256)
    if interleaved == plain:
        pytest.skip("this CPU has no memory for interleaved rows")
    assert can_multiply(cpu, interleaved, Qtype.Q4_0, 256, 256, inputs=128)
    assert not can_look_up(cpu, interleaved, Qtype.Q4_0, 256, 256)
    assert can_look_up(cpu, plain, Qtype.Q4_0, 256, 256)


def test_the_cpu_lacks_nothing(built: Built) -> None:
    bundle = built.every_level()
    for key in LEVELS:
        assert lacking(of(bundle, key), GPU) == []
        assert remark_on(of(bundle, key), GPU) is None


def test_it_asks_for_all_that_is_multiplied_and_looked_up(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[tuple[str, Qtype, int, int, int]] = set()

    def multiplies(_device: Device, _type: int, qtype: Qtype, columns: int, rows: int, *, inputs: int) -> bool:
        asked.add(("multiply", qtype, columns, rows, inputs))
        return True

    def looks_up(_device: Device, _type: int, qtype: Qtype, columns: int, rows: int) -> bool:
        asked.add(("look up", qtype, columns, rows, 1))
        return True

    monkeypatch.setattr(lacking_module, "can_multiply", multiplies)
    monkeypatch.setattr(lacking_module, "can_look_up", looks_up)
    assert lacking(of(bundle, "q8_0"), GPU) == []
    b, d, vocab = TINY.backbone, TINY.decoder, TINY.audio_vocab
    matrices = {(t.embed_dim, rows) for t in (b, d) for rows in (t.q_dim, t.kv_dim, t.ffn_dim)}
    matrices |= {(columns, t.embed_dim) for t in (b, d) for columns in (t.q_dim, t.ffn_dim)}
    matrices |= {(b.embed_dim, vocab), (d.embed_dim, vocab)}
    expected = {("multiply", Qtype.Q8_0, *matrix, inputs) for matrix in matrices for inputs in (1, GPU_PREFILL_ROWS)}
    expected |= {("multiply", Qtype.F16, b.embed_dim, d.embed_dim, inputs) for inputs in (1, GPU_PREFILL_ROWS)}
    assert asked - expected == {("look up", Qtype.Q8_0, d.embed_dim, vocab, 1)}
    assert expected <= asked


def test_what_is_lacking_is_named_with_what_to_take_instead(bundle: Path, lack: Lack) -> None:
    lack("can_multiply", Qtype.Q6_K)
    remark = remark_on(of(bundle, "q4_k_m"), GPU)
    assert remark == (
        "GPU0 lacks what q4_k_m needs, products in Q6_K (Miso-Tiny-backbone-Q4_K_M.gguf) and products in Q6_K "
        "(Miso-Tiny-decoder-Q4_K_M.gguf): the CPU does that, and it will be slow. Choose q8_0"
    )
    assert remark_on(of(bundle, "q8_0"), GPU) is None


def test_lookups_are_another_operation_than_products(bundle: Path, lack: Lack) -> None:
    lack("can_look_up", Qtype.F16)
    use = Use("Miso-Tiny-decoder-F16.gguf", True, Qtype.F16, TINY.decoder.embed_dim, TINY.audio_vocab)
    assert lacking(of(bundle, "fp16"), GPU) == [use]
    remark = remark_on(of(bundle, "fp16"), GPU) or ""
    assert "lacks what fp16 needs, rows of tables in F16 (Miso-Tiny-decoder-F16.gguf): the CPU" in remark
    assert lacking(of(bundle, "q8_0"), GPU) == []


def test_where_no_level_of_the_bundle_helps(bundle: Path, lack: Lack) -> None:
    """The projection is a matrix of the embeddings' file, which all levels share."""
    lack("can_multiply", Qtype.F16)
    assert [use.file for use in lacking(of(bundle, "q4_0"), GPU)] == ["Miso-Tiny-embeddings-Q8_0.gguf"]
    assert (remark_on(of(bundle, "q4_0"), GPU) or "").endswith("level of other types, or take another device")


def test_it_is_said_before_weights_are_loaded(
    bundle: Path, lack: Lack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Loading(Exception):
        """The first weights."""

    def load(*_: object) -> None:
        raise Loading

    monkeypatch.setattr(engine_module, "_choose_gpu", lambda _options: GPU)
    monkeypatch.setattr(DepthDecoder, "__init__", load)
    for level, expected in (("q8_0", 0), ("q4_0", 1)):
        lack("can_multiply", Qtype.Q4_0)
        with caplog.at_level(logging.WARNING), pytest.raises(Loading):
            MisoTTS.load(bundle, level, threads=1)
        assert caplog.text.count("GPU0 lacks what") == expected


def test_fit_says_it_of_every_level_that_is_here(
    bundle: Path, lack: Lack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lack("can_multiply", Qtype.Q8_0)
    monkeypatch.setattr(choice, "gpus", lambda: [GPU])
    opened = open_bundle(bundle)
    assert [line.split()[3] for line in lacks(opened, EngineOptions())] == ["q8_0"]
    assert lacks(opened, EngineOptions(gpu_layers=0)) == []
    assert lacks(opened, EngineOptions(main_gpu=1)) == []
    # A bundle that was copied in part, and one that is still at the hub.
    assert lacks(replace(opened, directory=tmp_path), EngineOptions()) == []
    assert lacks(replace(opened, directory=None), EngineOptions()) == []
    monkeypatch.setattr(choice, "gpus", list)
    assert lacks(opened, EngineOptions()) == []
