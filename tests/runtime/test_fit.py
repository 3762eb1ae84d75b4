"""The memory plan against sums made by hand, at the sizes of the real model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.models.errors import BundleError
from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.manifest import Manifest, sealed
from miso_gguf.models.memory import level_memory
from miso_gguf.native.device import Device
from miso_gguf.native.llama import KvType
from miso_gguf.runtime import fit
from miso_gguf.runtime.fit import MARGIN_BYTES, Need, Room, cpu_memory, memory_here, plan_memory

SIZES = {
    "f32": (27_900, 2_000, 3_200),
    "fp16": (13_990, 1_010, 1_600),
    "q8_0": (7_430, 540, 860),
    "q4_k_m+q8_0": (4_200, 540, 860),
    "q4_k_m": (4_200, 370, 860),
    "q4_0": (3_940, 360, 860),
}
"""Level -> megabytes of backbone, depth decoder and embeddings."""
CODEC = 170
BACKBONE_KV = 2 * 32 * 1024 * 2048 * 2
DECODER_KV = 2 * 8 * 384 * 32 * 2
"""Keys and values x layers x width x positions x bytes."""


def manifest(*levels: str) -> Manifest:
    files = {"codec": {"size_bytes": CODEC * 10**6, "sha256": "0" * 64}}
    for level in levels:
        for part, size in zip(("backbone", "decoder", "embeddings"), SIZES[level], strict=True):
            files[f"{level}-{part}"] = {"size_bytes": size * 10**6, "sha256": "0" * 64}
    return sealed(
        converter="test",
        llama_cpp="0",
        fingerprint="0" * 64,
        sources=[],
        spec=asdict(MISO_8B),
        codec={"decoder": "codec", "encoder": "codec"},
        levels={level: {part: f"{level}-{part}" for part in ("backbone", "decoder", "embeddings")} for level in levels},
        files=files,
    )


ALL = manifest("q4_0", "fp16", "q8_0", "q4_k_m")


def gpu(gigabytes: float) -> Room:
    return Room("CUDA0 (card)", int(gigabytes * 1e9), int(24e9), is_gpu=True)


def cpu(gigabytes: float) -> Room:
    return Room("CPU (cpu)", int(gigabytes * 1e9), int(64e9), is_gpu=False)


@pytest.mark.parametrize(
    ("gigabytes", "level"), [(24, "fp16"), (16, "fp16"), (12, "q8_0"), (8, "q4_k_m"), (6, "q4_k_m"), (5.2, "q4_0")]
)
def test_on_a_gpu_the_finest_that_fits(gigabytes: float, level: str) -> None:
    plan = plan_memory(ALL, gpu(gigabytes))
    assert (plan.pick.level, plan.pick.fits, plan.pick.gpu_layers) == (level, True, None)
    assert plan.advice == level


def test_levels_and_contexts_finest_first() -> None:
    plan = plan_memory(ALL, gpu(24))
    expected = [(level, context) for level in ("fp16", "q8_0", "q4_k_m", "q4_0") for context in (1024, 2048)]
    assert [(need.level, need.context) for need in plan.needs] == expected


def _need(need_level: str, room: Room, kv_type: KvType = "f16", context: int = 2048) -> Need:
    plan = plan_memory(manifest(need_level), room, kv_type)
    return next(need for need in plan.needs if need.context == context)


def test_at_full_context_it_is_what_inspect_says() -> None:
    for level in SIZES:
        assert _need(level, gpu(24)).needed_bytes == level_memory(manifest(level), level).vram_bytes


@pytest.mark.parametrize(
    ("kv_type", "context", "expected"),
    [
        ("f16", 2048, BACKBONE_KV + DECODER_KV),
        ("f16", 1024, BACKBONE_KV // 2 + DECODER_KV),
        ("q8_0", 2048, BACKBONE_KV * 17 // 32 + DECODER_KV),
        ("f32", 2048, BACKBONE_KV * 2 + DECODER_KV),
    ],
)
def test_kv_cache(kv_type: KvType, context: int, expected: int) -> None:
    assert _need("q8_0", gpu(24), kv_type, context).kv_cache_bytes == expected


def test_a_cpu_holds_embeddings_and_codec_too() -> None:
    assert _need("q4_k_m", gpu(24)).weights_bytes == (4_200 + 370) * 10**6
    assert _need("q4_k_m", cpu(24)).weights_bytes == (4_200 + 370 + 860 + CODEC) * 10**6


def test_the_last_byte_counts() -> None:
    needed = _need("q4_k_m", gpu(24)).needed_bytes + MARGIN_BYTES
    for free, spare in ((needed, 0), (needed - 1, -1)):
        need = _need("q4_k_m", Room("g", free, free, is_gpu=True))
        assert (need.spare_bytes, need.fits) == (spare, spare == 0)


@pytest.mark.parametrize(
    ("levels", "level"),
    [
        (tuple(SIZES), "q4_k_m"),
        (("fp16", "q8_0"), "q8_0"),
        (("q8_0", "q4_0"), "q8_0"),
        (("q4_k_m+q8_0", "q8_0"), "q4_k_m+q8_0"),
        (("q4_0",), "q4_0"),
        (("f32",), "f32"),
    ],
)
def test_on_a_cpu_the_fastest_that_is_good(levels: tuple[str, ...], level: str) -> None:
    plan = plan_memory(manifest(*levels), cpu(64))
    assert (plan.pick.level, plan.pick.fits) == (level, True)
    assert plan.advice.startswith(f"{level}: a CPU reads all of it for every frame")


def test_on_a_small_cpu_what_fits() -> None:
    assert plan_memory(manifest("q8_0", "q4_0"), cpu(7)).pick.level == "q4_0"
    plan = plan_memory(ALL, cpu(4))
    assert (plan.pick.level, plan.pick.fits, plan.pick.gpu_layers) == ("q4_0", False, None)
    assert "more than there is" in plan.advice


def test_a_smaller_cache_can_make_a_level_fit() -> None:
    room = Room("g", _need("q8_0", gpu(24)).needed_bytes + MARGIN_BYTES - 10**8, 1, is_gpu=True)
    assert plan_memory(ALL, room).pick.level == "q4_k_m"
    assert plan_memory(ALL, room, "q8_0").pick.level == "q8_0"


def test_a_shorter_context_can_make_a_level_fit() -> None:
    room = Room("g", _need("q8_0", gpu(24)).needed_bytes + MARGIN_BYTES - 10**8, 1, is_gpu=True)
    plan = plan_memory(ALL, room, wanted_context=512)
    assert plan.pick.level == "q8_0"
    assert [need.context for need in plan.needs][:3] == [512, 1024, 2048]


def test_layers_that_fit() -> None:
    # 3 GB - 0.4 - 0.36 decoder - 0.12 compute = 2.12; a layer 3.94 / 32 * 1.06 + 0.0084 of cache = 0.139.
    plan = plan_memory(ALL, gpu(3))
    assert (plan.pick.level, plan.pick.fits, plan.pick.gpu_layers) == ("q4_0", False, 15)
    assert plan.advice.startswith("q4_0 with --gpu-layers 15: none fits whole; 15 of 32 layers")


@given(st.integers(0, 6 * 10**9))
def test_layers_fit_and_one_more_would_not(free: int) -> None:
    plan = plan_memory(ALL, Room("g", free, free, is_gpu=True))
    if plan.pick.fits:
        assert free >= _need("q4_0", gpu(24)).needed_bytes + MARGIN_BYTES
        return
    layers = plan.pick.gpu_layers
    assert layers is not None
    need = _need("q4_0", gpu(24))
    fixed = 360 * 10**6 + DECODER_KV + need.compute_bytes + MARGIN_BYTES
    each = 3_940e6 / 32 * 1.06 + BACKBONE_KV / 32
    assert layers == 0 or fixed + layers * each <= free
    assert layers == 32 or fixed + (layers + 1) * each > free


def test_nothing_on_a_gpu_without_room() -> None:
    plan = plan_memory(ALL, gpu(0.3))
    assert plan.pick.gpu_layers == 0
    assert plan.advice.endswith("on the CPU")


def test_no_level() -> None:
    with pytest.raises(BundleError, match="has no level"):
        plan_memory(manifest(), gpu(8))


def test_json() -> None:
    said = json.loads(json.dumps(plan_memory(ALL, gpu(8)).as_dict()))
    assert said["pick"] == {"level": "q4_k_m", "fits": True, "gpu_layers": None}
    assert said["room"]["free_bytes"] == 8 * 10**9
    assert [(entry["level"], entry["fits"]) for entry in said["levels"][2:5]] == [
        ("q8_0", False),
        ("q8_0", False),
        ("q4_k_m", True),
    ]
    assert said["levels"][5]["needed_bytes"] == level_memory(ALL, "q4_k_m").vram_bytes


class _Gpu(Device):
    def memory(self) -> tuple[int, int]:
        return 5, 10


def test_memory_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "gpus", lambda: [_Gpu(0, "CUDA0", "card", "gpu")])
    assert memory_here() == Room("CUDA0 (card)", 5, 10, is_gpu=True)
    assert not memory_here(1).is_gpu
    monkeypatch.setattr(fit, "gpus", list)
    assert not memory_here().is_gpu


def test_memory_of_this_machine() -> None:
    room = cpu_memory()
    assert 10**8 < room.free_bytes <= room.total_bytes
    assert room.device.startswith("CPU")


def test_available_bytes(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert fit._available_bytes(7, meminfo) == 7
    meminfo.write_text("MemTotal:       100 kB\nMemAvailable:     64 kB\n")
    assert fit._available_bytes(7, meminfo) == 65536
    meminfo.write_text("MemTotal:       100 kB\n")
    assert fit._available_bytes(7, meminfo) == 7
