"""What is accounted, against the formula of the model's shapes and against the files."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from builders import COMMON, Built
from miso_gguf.models.flavors import TINY
from miso_gguf.models.memory import GPU_PREFILL_ROWS, kv_bytes, level_memory
from miso_gguf.native.buffer import Allocation, noted_allocations
from miso_gguf.native.device import Device
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.native.llama import LlamaOptions
from miso_gguf.native.llama_log import logged_buffers
from miso_gguf.quant_eval.memory import accounted as module
from miso_gguf.quant_eval.memory.accounted import accounted_vram, memory_of
from miso_gguf.quant_eval.memory.measured import Measured
from miso_gguf.runtime.bundle import OpenLevel, open_level
from miso_gguf.runtime.lm import backbone, engine
from miso_gguf.runtime.lm.engine import Engine
from miso_gguf.runtime.options import EngineOptions, SpeechOptions

MIB = 1 << 20


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle(COMMON)


@pytest.fixture(scope="module", params=["fp16", "q4_0"])
def level(bundle: Path, request: pytest.FixtureRequest) -> OpenLevel:
    return open_level(bundle, request.param)


def parts_of(level: OpenLevel, **options: str) -> dict[str, int]:
    accounted = accounted_vram(level, **options)  # type: ignore[arg-type]
    assert accounted.notes == []
    return {part.name: part.bytes for part in accounted.parts}


def test_within_five_percent_of_the_formula(level: OpenLevel) -> None:
    memory, parts = level_memory(level.manifest, level.key), parts_of(level)
    assert sum(parts.values()) == pytest.approx(memory.vram_bytes, rel=0.05)
    cache = parts["backbone KV cache"] + parts["depth decoder KV cache and inputs"]
    assert cache == pytest.approx(memory.kv_cache_bytes, rel=0.005)
    assert parts["backbone compute"] == pytest.approx(memory.compute_bytes, rel=0.05)


def test_weights_are_those_of_the_files(level: OpenLevel) -> None:
    """Exact up to the log's rounding to 0.01 MiB and the alignment of tensors."""
    parts = parts_of(level)
    with GgufFile(level.backbone) as file:
        moved = sum(tensor.data.nbytes for name, tensor in file.tensors.items() if name != "token_embd.weight")
    assert parts["backbone weights"] == pytest.approx(moved, abs=0.006 * MIB + 32 * 64)
    with GgufFile(level.decoder) as decoder, GgufFile(level.embeddings) as embeddings:
        depth = sum(tensor.data.nbytes for tensor in decoder.tensors.values())
        # The last codebook is no input, and the first has no head.
        unused = sum(decoder.tensors[f"{name}.weight"].data.nbytes for name in ("token_embd", "output"))
        depth -= unused // TINY.codebooks
        depth += embeddings.tensors["projection.weight"].data.nbytes
    assert depth <= parts["depth decoder weights"] < depth * 1.01


@pytest.mark.parametrize(("kv_type", "bits"), [("f32", 32), ("f16", 16), ("q8_0", 8.5)])
def test_the_kv_cache_is_exact(bundle: Path, kv_type: str, bits: float) -> None:
    parts = parts_of(open_level(bundle, "q4_0"), kv_type=kv_type)
    expected = kv_bytes(TINY.backbone, 2048, bits)
    assert parts["backbone KV cache"] == pytest.approx(expected, abs=0.006 * MIB)
    # The cache in F16 although on a CPU; codes, hidden state, logits, noise and ranks at 4 bytes a value, each aligned.
    inputs = 4 * (TINY.codebooks + TINY.backbone.embed_dim + (1 + TINY.codebooks) * TINY.audio_vocab)
    inputs += 4 * SpeechOptions().top_k
    found = parts["depth decoder KV cache and inputs"]
    assert 0 <= found - kv_bytes(TINY.decoder, TINY.codebooks) - inputs <= 128


def test_every_part_says_where_it_is_from(level: OpenLevel) -> None:
    sources = {part.name: part.source for part in accounted_vram(level).parts}
    assert sources == {
        "backbone weights": "llama.cpp log, less token_embd, which stays on the host",
        "backbone KV cache": "llama.cpp log",
        "backbone compute": "llama.cpp log",
        "backbone output": "llama.cpp log",
        "depth decoder weights": "ggml buffer",
        "depth decoder KV cache and inputs": "ggml buffer, in F16 as on a GPU",
        "depth decoder compute": "ggml buffer",
    }


def test_on_a_gpu_only_what_is_on_it_counts() -> None:
    """The lines of a full offload: the host's model and compute buffers are not the GPU's."""
    lines = [
        "CPU_Mapped model buffer size = 4.50 MiB",
        "CUDA0 model buffer size = 4001.25 MiB",
        "CUDA_Host output buffer size = 0.25 MiB",
        "CUDA0 KV buffer size = 256.00 MiB",
        "CUDA0 compute buffer size = 118.00 MiB",
        "CUDA_Host compute buffer size = 12.00 MiB",
    ]
    parts = module._backbone_parts(logged_buffers(lines), 0)
    assert [part.bytes / MIB for part in parts] == [4001.25, 256, 118, 0.25]
    assert {part.source for part in parts} == {"llama.cpp log"}


def test_a_log_that_is_not_understood_gives_no_sum(level: OpenLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "logged_buffers", lambda lines: [b for b in logged_buffers(lines) if b.kind != "kv"])
    accounted = accounted_vram(level)
    assert accounted.parts == []
    assert accounted.notes[0].startswith("not accounted: llama.cpp's log says nothing of its kv buffers")
    memory, notes = memory_of(level, measure=lambda *_: Measured(why_not="not run: x"))
    assert memory.accounted == []
    assert notes == [f"VRAM of {level.key}: {accounted.notes[0]}"]


def test_both_numbers_of_a_level(bundle: Path) -> None:
    asked = []

    def measure(directory: Path, key: str) -> Measured:
        asked.append((directory, key))
        return Measured(500 * MIB, 400 * MIB, "", ["a browser was open"], 1000)

    memory, notes = memory_of(open_level(bundle, "Q4_0"), measure=measure)
    assert asked == [(bundle, "q4_0")]
    assert (memory.measured_peak_bytes, memory.measured_steady_bytes) == (500 * MIB, 400 * MIB)
    assert memory.accounted_bytes == sum(part.bytes for part in memory.accounted) > 10 * MIB
    assert notes == ["VRAM of q4_0: a browser was open"]


def test_what_was_not_measured_is_no_number(bundle: Path) -> None:
    memory, notes = memory_of(open_level(bundle, "q4_0"), measure=lambda *_: Measured(why_not="not run: no GPU"))
    assert (memory.measured_peak_bytes, memory.measured_steady_bytes) == (None, None)
    assert (memory.measured_why_not, notes) == ("not run: no GPU", [])
    assert memory.accounted_bytes > 0


def test_a_gpu_is_used_if_there_is_one(level: OpenLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there is none: what would be asked of llama.cpp is seen."""
    asked: dict[str, object] = {}

    def refuse(_path: Path, options: LlamaOptions, **more: object) -> None:
        asked.update(gpu_layers=options.gpu_layers, **more)
        raise MemoryError("full")

    gpu = Device(0, "CUDA0", "card", "gpu")
    monkeypatch.setattr(module, "LlamaModel", refuse)
    with pytest.raises(MemoryError, match="full"):
        accounted_vram(level, gpu=gpu)
    assert asked == {"gpu_layers": None, "context": 2048, "batch": GPU_PREFILL_ROWS, "gpu": gpu}


@pytest.mark.parametrize(("found", "rows"), [(1, GPU_PREFILL_ROWS), (0, 64)])
@pytest.mark.parametrize("sequences", [1, 200])
def test_the_engine_prefills_what_is_accounted(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, found: int, rows: int, sequences: int
) -> None:
    """How many speak does not change it."""
    asked: dict[str, object] = {}
    gpu = Device(0, "CUDA0", "card", "gpu")

    def refuse(_path: Path, _options: LlamaOptions, **more: object) -> None:
        asked.update(more)
        raise MemoryError("full")

    monkeypatch.setattr(engine, "gpus", lambda: [gpu] * found)
    monkeypatch.setattr(engine, "remark_on", lambda *_: None)
    monkeypatch.setattr(engine, "Backends", lambda **_: nullcontext())
    monkeypatch.setattr(engine, "DepthDecoder", lambda *_: nullcontext())
    monkeypatch.setattr(backbone, "LlamaModel", refuse)
    with pytest.raises(MemoryError, match="full"):
        Engine(open_level(bundle, "q4_0"), EngineOptions(threads=1, sequences=sequences))
    assert asked == {"context": 2048, "batch": rows, "gpu": gpu if found else None, "watch": None}


def test_allocations_are_noted_only_while_asked(level: OpenLevel) -> None:
    with noted_allocations() as outer:
        with noted_allocations() as inner:
            accounted_vram(level)
        assert outer == []
    accounted_vram(level)
    assert inner == outer == []  # `accounted_vram` asks for itself
    assert Allocation("compute", "CPU", 1) not in inner
