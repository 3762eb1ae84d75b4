"""The memory plan against sums made by hand, at the sizes of the real model."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_of_sizes

from miso_gguf.core.errors import BundleError
from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.manifest import Manifest
from miso_gguf.models.memory import GPU_PREFILL_ROWS, level_memory
from miso_gguf.native.device import Device
from miso_gguf.native.llama import KvType
from miso_gguf.runtime import fit
from miso_gguf.runtime.fit import MARGIN_BYTES, Need, Pick, Room, cpu_memory, memory_here, plan_memory

SIZES = {
    "f32": (27_900, 2_000, 3_200),
    "fp16": (13_990, 1_010, 1_600),
    "q8_0": (7_430, 540, 860),
    "q6_k": (5_740, 440, 860),
    "q5_k_m": (4_950, 400, 860),
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
    sizes = {level: [size * 10**6 for size in SIZES[level]] for level in levels}
    return manifest_of_sizes(sizes, CODEC * 10**6)


ALL = manifest("q4_0", "fp16", "q8_0", "q4_k_m")


def gpu(gigabytes: float) -> Room:
    return Room("CUDA0 (card)", int(gigabytes * 1e9), int(24e9), is_gpu=True)


def cpu(gigabytes: float) -> Room:
    return Room("CPU (cpu)", int(gigabytes * 1e9), int(64e9), is_gpu=False)


@pytest.mark.parametrize(
    ("gigabytes", "level", "kv_type"),
    [
        (24, "fp16", "f16"),
        # Cards of 16, 12, 10, 8 and 6 GB, less what a desktop takes.
        (15.7, "fp16", "f16"),
        (15.6, "fp16", "q8_0"),
        (11.6, "q8_0", "f16"),
        (9.6, "q8_0", "f16"),
        (8.6, "q8_0", "q8_0"),
        (7.6, "q4_k_m", "f16"),
        (5.7, "q4_k_m", "f16"),
        (5.2, "q4_k_m", "q8_0"),
        (5.1, "q4_0", "f16"),
        (4.9, "q4_0", "q8_0"),
    ],
)
def test_on_a_gpu_the_finest_that_fits(gigabytes: float, level: str, kv_type: KvType) -> None:
    """Sums in MB: Q4_K_M 4200 + 370, cache 269 or 143, compute 31, margin 400: 5270 or 5144. Q4_0 5000 or 4874."""
    plan = plan_memory(ALL, gpu(gigabytes))
    assert plan.pick == Pick(level, kv_type, fits=True)
    assert plan.advice == (level if kv_type == "f16" else f"{level} with --kv-type q8_0")
    assert plan.kv_type_for(level) == kv_type


@pytest.mark.parametrize(
    ("gigabytes", "level"),
    [(8.7, "q8_0"), (8.5, "q6_k"), (6.9, "q6_k"), (6.7, "q5_k_m"), (6.1, "q5_k_m"), (5.8, "q4_k_m")],
)
def test_levels_between_find_their_place(gigabytes: float, level: str) -> None:
    """With a cache in F16 and the margin Q8_0 takes 8670 MB, Q6_K 6880, Q5_K_M 6050."""
    assert plan_memory(manifest(*SIZES), gpu(gigabytes), "f16").pick == Pick(level, "f16", fits=True)


def test_the_smaller_cache_only_where_it_makes_the_difference() -> None:
    room = Room("g", _need("q4_k_m", gpu(24)).needed_bytes + MARGIN_BYTES, 1, is_gpu=True)
    assert plan_memory(ALL, room).pick == Pick("q4_k_m", "f16", fits=True)
    room = replace(room, free_bytes=room.free_bytes - 1)
    plan = plan_memory(ALL, room)
    assert plan.pick == Pick("q4_k_m", "q8_0", fits=True)
    # What does not fit either way is left as it is.
    assert [plan.kv_type_for(level) for level in ("fp16", "q8_0", "q4_k_m", "q4_0")] == ["f16", "f16", "q8_0", "f16"]
    assert plan_memory(ALL, room, "f16").pick == Pick("q4_0", "f16", fits=True)


def test_a_type_that_was_asked_for_is_kept_to() -> None:
    plan = plan_memory(ALL, gpu(24), "q8_0")
    assert plan.pick == Pick("fp16", "q8_0", fits=True)
    assert {need.kv_type for need in plan.needs} == {"q8_0"}
    assert plan.advice == "fp16 with --kv-type q8_0"


def test_heads_that_have_no_whole_blocks() -> None:
    """llama.cpp refuses a cache in Q8_0 for them."""
    spec = replace(MISO_8B, backbone=replace(MISO_8B.backbone, head_dim=80))
    plan = plan_memory(ALL.model_copy(update={"spec": asdict(spec)}), gpu(24))
    assert {need.kv_type for need in plan.needs} == {"f16"}


def test_finest_first() -> None:
    plan = plan_memory(ALL, gpu(24))
    levels, kv_types, contexts = ("fp16", "q8_0", "q4_k_m", "q4_0"), ("f16", "q8_0"), (1024, 2048)
    expected = [(level, kv_type, context) for level in levels for kv_type in kv_types for context in contexts]
    assert [(need.level, need.kv_type, need.context) for need in plan.needs] == expected
    assert plan.context == 2048
    assert {need.kv_type for need in plan_memory(ALL, cpu(24)).needs} == {"f16"}


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


def test_compute() -> None:
    """The widest layer's gate and up, and 7.5 rows of the model's width, in float32; the mask in float16."""
    expected = GPU_PREFILL_ROWS * (4 * (2 * 14_336 + 7.5 * 4096) + 2 * 2048)
    assert _need("q4_k_m", gpu(24)).compute_bytes == expected == 29.5 * 2**20


def test_a_cpu_holds_embeddings_and_codec_too() -> None:
    assert _need("q4_k_m", gpu(24)).weights_bytes == (4_200 + 370) * 10**6
    assert _need("q4_k_m", cpu(24)).weights_bytes == (4_200 + 370 + 860 + CODEC) * 10**6


def test_each_sequence_takes_a_cache() -> None:
    one, four = (plan_memory(ALL, gpu(24), sequences=sequences).needs for sequences in (1, 4))
    for few, many in zip(one, four, strict=True):
        assert many.kv_cache_bytes == 4 * few.kv_cache_bytes
        assert many.needed_bytes - few.needed_bytes == few.spare_bytes - many.spare_bytes == 3 * few.kv_cache_bytes
    # As above, but 0.36 decoder and 0.1 of its caches, and a layer 0.1305 + 16 x 0.0045.
    plan = plan_memory(ALL, gpu(3), sequences=16)
    assert plan.pick == Pick("q4_0", "q8_0", fits=False, gpu_layers=10)


@pytest.mark.parametrize(
    ("gigabytes", "context", "streams"),
    [
        # 4570 of weights, 31 of compute, 400 of margin: 5001 MB; a cache 268.8 MB.
        (4.9, 2048, 0),
        (5.2, 2048, 0),
        (5.3, 2048, 1),
        (8, 2048, 11),
        (12, 2048, 26),
        # A cache of 134.6 MB.
        (5.2, 1024, 1),
        (8, 1024, 22),
    ],
)
def test_streams_that_fit(gigabytes: float, context: int, streams: int) -> None:
    need = _need("q4_k_m", gpu(gigabytes), context=context)
    assert need.streams == streams
    assert need.fits == (streams > 0)


@given(st.integers(4 * 10**9, 100 * 10**9), st.integers(1, 256), st.sampled_from(["f16", "q8_0"]))
def test_so_many_streams_fit_and_one_more_would_not(free: int, planned: int, kv_type: KvType) -> None:
    """However many sequences the plan was made for."""
    room = Room("g", free, free, is_gpu=True)

    def need(sequences: int) -> Need:
        return plan_memory(manifest("q4_k_m"), room, kv_type, sequences=sequences).needs[-1]

    streams = need(planned).streams
    for sequences in {max(1, streams), min(256, streams + 1)}:
        assert need(sequences).fits == (sequences <= streams)
        assert need(sequences).streams == streams


def test_streams_of_a_level() -> None:
    plan = plan_memory(ALL, gpu(8), wanted_context=1024)
    assert (plan.streams_of("q4_k_m"), plan.streams_of("q8_0"), plan.streams_of("q5_k_m")) == (22, 0, 0)
    assert plan_memory(ALL, gpu(8), "q8_0").streams_of("q4_k_m") == 20
    assert plan_memory(ALL, gpu(1000)).streams_of("q4_k_m") == 256, "as many as llama.cpp has room for"


def test_states_of_voices_are_in_the_memory_of_the_cpu() -> None:
    for room, counted in ((cpu(24), 256 * 10**6), (gpu(24), 0)):
        without, plan = (plan_memory(ALL, room, voice_cache_bytes=size) for size in (0, 256 * 10**6))
        for few, many in zip(without.needs, plan.needs, strict=True):
            assert (few.voice_cache_bytes, many.voice_cache_bytes) == (0, counted)
            assert many.needed_bytes - few.needed_bytes == few.spare_bytes - many.spare_bytes == counted
    assert (
        json.loads(json.dumps(plan_memory(ALL, cpu(9), voice_cache_bytes=7).as_dict()))["levels"][0][
            "voice_cache_bytes"
        ]
        == 7
    )


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
        (("q8_0", "q6_k", "q5_k_m"), "q5_k_m"),
        (("q6_k", "q8_0"), "q6_k"),
        (("q5_k_m", "q4_0"), "q5_k_m"),
        (("q4_0",), "q4_0"),
        (("f32",), "f32"),
    ],
)
def test_on_a_cpu_the_fastest_that_is_good(levels: tuple[str, ...], level: str) -> None:
    plan = plan_memory(manifest(*levels), cpu(64))
    assert plan.pick == Pick(level, "f16", fits=True)
    assert plan.advice.startswith(f"{level}: a CPU reads all of it for every frame")


def test_on_a_small_cpu_what_fits() -> None:
    assert plan_memory(manifest("q8_0", "q4_0"), cpu(7)).pick.level == "q4_0"
    plan = plan_memory(ALL, cpu(4))
    assert plan.pick == Pick("q4_0", "f16", fits=False)
    assert "more than there is" in plan.advice


def test_a_shorter_context_can_make_a_level_fit() -> None:
    room = Room("g", _need("q8_0", gpu(24)).needed_bytes + MARGIN_BYTES - 10**8, 1, is_gpu=True)
    plan = plan_memory(ALL, room, wanted_context=512)
    assert plan.pick == Pick("q8_0", "f16", fits=True)
    assert plan.context == 512
    assert [need.context for need in plan.needs][:3] == [512, 1024, 2048]


def test_layers_that_fit() -> None:
    # 3 GB - 0.4 - 0.36 decoder - 0.03 compute = 2.21; a layer 3.94 / 32 * 1.06 + 0.0045 of cache = 0.135.
    plan = plan_memory(ALL, gpu(3))
    assert plan.pick == Pick("q4_0", "q8_0", fits=False, gpu_layers=16)
    assert plan.advice.startswith("q4_0 with --kv-type q8_0 --gpu-layers 16: none fits whole; 16 of 32 layers")
    # A layer with a cache in F16 takes 0.139.
    assert plan_memory(ALL, gpu(3), "f16").pick == Pick("q4_0", "f16", fits=False, gpu_layers=15)


@given(st.integers(0, 6 * 10**9))
def test_layers_fit_and_one_more_would_not(free: int) -> None:
    plan = plan_memory(ALL, Room("g", free, free, is_gpu=True))
    if plan.pick.fits:
        assert free >= _need("q4_0", gpu(24), "q8_0").needed_bytes + MARGIN_BYTES
        return
    layers = plan.pick.gpu_layers
    assert layers is not None
    need = _need("q4_0", gpu(24), "q8_0")
    fixed = 360 * 10**6 + DECODER_KV + need.compute_bytes + MARGIN_BYTES
    each = 3_940e6 / 32 * 1.06 + BACKBONE_KV * 17 / 32 / 32
    assert layers == 0 or fixed + layers * each <= free
    assert layers == 32 or fixed + (layers + 1) * each > free


def test_nothing_on_a_gpu_without_room() -> None:
    plan = plan_memory(ALL, gpu(0.3))
    assert plan.pick == Pick("q4_0", "f16", fits=False, gpu_layers=0)
    assert plan.advice.endswith("on the CPU")


def test_no_level() -> None:
    with pytest.raises(BundleError, match="has no level"):
        plan_memory(manifest(), gpu(8))


def test_json() -> None:
    said = json.loads(json.dumps(plan_memory(ALL, gpu(8.6)).as_dict()))
    assert said["pick"] == {"level": "q8_0", "kv_type": "q8_0", "fits": True, "gpu_layers": None}
    assert said["room"]["free_bytes"] == 8.6 * 10**9
    assert [(entry["level"], entry["kv_type"], entry["fits"]) for entry in said["levels"][5:9]] == [
        ("q8_0", "f16", False),
        ("q8_0", "q8_0", True),
        ("q8_0", "q8_0", True),
        ("q4_k_m", "f16", True),
    ]
    assert said["levels"][9]["needed_bytes"] == level_memory(ALL, "q4_k_m").vram_bytes


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
