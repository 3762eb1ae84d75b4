"""The estimate: all that costs something is in it, and a GPU is no host."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from miso_gguf.native.nvml import Nvml
from miso_gguf.quant_eval.run import cost as cost_module
from miso_gguf.quant_eval.run import speed as module
from miso_gguf.quant_eval.run.cost import Cost, estimate_cost, hearing_cost
from miso_gguf.quant_eval.run.damages import Damage
from miso_gguf.quant_eval.run.plan import Asked, Plan, plan_run
from miso_gguf.quant_eval.run.speed import Speed, Weights, gpu_bandwidth, read_bandwidth, speed_of
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.options import EngineOptions
from miso_gguf.runtime.tts import MisoTTS


class NoNvml(Exception):
    """As of pynvml."""


def nvml(clock_mhz: int = 10501, bits: int = 384, **more: Any) -> Callable[[], Nvml]:
    """A 4090, by default. Source: its data sheet, 1008 GB/s."""
    given = {
        "NVMLError": NoNvml,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMaxClockInfo": lambda _handle, kind: {2: clock_mhz}[kind],
        "nvmlDeviceGetMemoryBusWidth": lambda _handle: bits,
    }
    return lambda: SimpleNamespace(**{**given, **more})


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are all that counts."""
    monkeypatch.setattr(module, "read_bandwidth", lambda _threads: 1e6)


@pytest.fixture
def plan(bundle: Path, tmp_path: Path) -> Plan:
    asked = Asked(tmp_path / "out", prompts=2, seeds=2, controls=False, threads=1, gpu_layers=0)
    return plan_run(bundle, ["fp16", "q8_0"], "fp16", asked)


def time_of(plan: Plan, **more: Any) -> float:
    wall_s = estimate_cost(plan, **more).wall_s
    assert wall_s is not None
    return wall_s


def test_weights_are_those_that_are_streamed(bundle: Path) -> None:
    level = open_level(bundle, "q8_0")
    found = Weights.of(level)
    with MisoTTS.of(level, EngineOptions(threads=1)) as tts:
        assert found.depth_bytes == pytest.approx(tts.engine.depth.streamed_bytes, rel=0.03)
    steps = level.manifest.model_spec.codebooks - 1
    assert found.backbone_bytes < level.backbone.stat().st_size
    assert found.depth_macs > steps * (found.backbone_macs // 100)


def test_everything_that_costs_is_in_it(bundle: Path, plan: Plan) -> None:
    """Each of these makes it longer, by what it is."""
    base = time_of(plan)
    f32 = plan_run(
        bundle, ["f32", "fp16", "q8_0"], "fp16", Asked(plan.out, prompts=2, seeds=2, controls=False, gpu_layers=0)
    )
    assert time_of(f32) > base + 0.5 * time_of(replace(plan, candidates=plan.candidates[:1]))
    assert "fp16 against f32" in estimate_cost(f32).said
    for stage in plan.stages:
        assert time_of(replace(plan, stages=tuple(each for each in plan.stages if each != stage))) < base, stage
    for half, paths in (("both", ["backbone", "decoder"]), ("decoder", ["decoder"])):
        whole = plan.reference
        damages = tuple(Damage.of(whole, half, strength) for strength in (0.1, 0.2))  # type: ignore[arg-type]
        cost = estimate_cost(replace(plan, damages=damages))
        assert cost.copies_bytes == sum(getattr(whole.files, path).stat().st_size for path in paths), "one at a time"
        assert cost.disk_bytes - estimate_cost(plan).disk_bytes == cost.copies_bytes
        assert cost.wall_s is not None
        assert cost.wall_s > base + 2 * cost.copies_bytes / cost_module._COPIED_BYTES_S
        assert "damaged copies" in cost.said
    assert "damaged" not in estimate_cost(plan).said


def test_what_the_reference_does_alone(plan: Plan) -> None:
    alone = replace(plan, candidates=())
    assert time_of(alone) > 2 * time_of(replace(alone, seeds=()))


def test_damaged_clips_cost_what_praat_does(plan: Plan) -> None:
    assert time_of(replace(plan, controls=True)) > time_of(plan)
    silent = replace(plan, stages=("logits",))
    assert time_of(replace(silent, controls=True)) == pytest.approx(time_of(silent))


PARTS = ("CODEC_FRAME", "CODEC_BYTE", "LOGIT", "CONTOURS", "VOICE", "WARP", "STATISTICS", "REPORTS")


@pytest.mark.parametrize("name", [f"_{part}_S" for part in PARTS])
def test_each_part_counts(name: str, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = time_of(plan)
    monkeypatch.setattr(cost_module, name, 1e3 * getattr(cost_module, name))
    assert time_of(plan) > before + 1


def test_attribution_is_two_more_passes_of_a_half(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own and the reference's depth decoder, each on the hidden states of the other."""
    monkeypatch.setattr(module, "_MACS_PER_CORE_S", 1e3)
    logits = replace(plan, stages=("logits",), seeds=(0,))
    itself, twin = plan.candidates[0], replace(plan.candidates[0], name="twin")
    alone, both = (time_of(replace(logits, candidates=each)) for each in ((itself,), (itself, itself)))
    found = time_of(replace(logits, candidates=(twin,)))
    weights = Weights.of(itself.files)
    share = weights.depth_macs / (weights.depth_macs + weights.backbone_macs)
    assert alone + share * (both - alone) < found < alone + 2 * share * (both - alone)


def test_what_is_heard_is_said_and_replayed(plan: Plan) -> None:
    level, prompts = plan.reference.files, plan.corpus.prompts
    engine = EngineOptions(threads=1, gpu_layers=0)
    speech_s, takes = hearing_cost(level, prompts, engine)
    _, recorded = hearing_cost(level, [replace(prompt, audio=Path("it.wav")) for prompt in prompts], engine)
    _, twice = hearing_cost(level, [*prompts, *prompts], engine)
    assert speech_s == pytest.approx(sum(len(prompt.text) for prompt in prompts) / 14)
    assert isinstance(takes, float)
    assert isinstance(recorded, float)
    assert 0 < recorded < takes, "a recording is not spoken"
    assert twice == pytest.approx(2 * takes)


def test_it_grows_with_what_is_asked_for(plan: Plan) -> None:
    one, two = estimate_cost(replace(plan, seeds=(0,))), estimate_cost(plan)
    assert two.audio_s == pytest.approx(2 * one.audio_s)
    assert two.logits_bytes == 2 * one.logits_bytes > 0
    assert two.clips == 2 * one.clips
    assert two.audio_bytes == pytest.approx(1.5 * one.audio_bytes, abs=1), "one-step clips are of the first seed"
    assert one.wall_s is not None
    assert two.wall_s is not None
    assert two.wall_s > 1.5 * one.wall_s - 8


def test_processes_share_the_work_and_the_memory(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def read(threads: int) -> float:
        asked.append(threads)
        return 1e6

    monkeypatch.setattr(module, "read_bandwidth", read)
    one, two = time_of(plan), time_of(plan, processes=2)
    assert asked == [1, 2]
    assert two > 0.5 * one, "they read from the same memory"
    assert two < 1.1 * one


def test_a_gpu_is_no_host(plan: Plan) -> None:
    """Its own bandwidth, or no figure: never that of the machine it is in."""
    on_gpu = replace(plan, settings={**plan.settings, "device": "Card"}, engine=EngineOptions(threads=1))
    fast = estimate_cost(on_gpu, nvml=nvml())
    assert fast.wall_s is not None
    assert fast.wall_s < time_of(plan) / 2
    for missing, why in (
        (nvml(bits=0), "the driver does not say"),
        (nvml(nvmlDeviceGetMemoryBusWidth=raising(NoNvml("not supported"))), "not supported"),
        (nvml(nvmlDeviceGetMemoryBusWidth=raising(AttributeError("no such"))), "nvidia-ml-py is too old"),
    ):
        unknown = estimate_cost(on_gpu, nvml=missing)
        assert unknown.wall_s is None
        assert why in unknown.said
        assert unknown.clips == fast.clips
    few = replace(on_gpu, engine=EngineOptions(threads=1, gpu_layers=1))
    assert estimate_cost(few, nvml=nvml()).wall_s is None
    assert "1 of 4 layers on a GPU" in estimate_cost(few, nvml=nvml()).said


def raising(error: Exception) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise error

    return fail


def test_the_bandwidth_of_known_cards() -> None:
    """Source: data sheets, in GB/s."""
    for clock_mhz, bits, gb_s in ((10501, 384, 1008), (7501, 192, 360), (2619, 5120, 3352)):
        assert gpu_bandwidth(0, nvml(clock_mhz, bits)) / 1e9 == pytest.approx(gb_s, rel=0.005)


def test_what_an_h200_took() -> None:
    """Source: docs/gpu.md: Q4_K_M, 16.2 to 17.2 ms a frame, 9.9 GB."""
    speed = Speed(0.46 * 4.8e12, 2.5e-6 * 30 * (32 + 31 * 4), row=0.25)
    assert speed.frame_s(Weights(4_193_331_040, 5_709_955_200, 0, 0)) == pytest.approx(0.0165, rel=0.05)
    assert module._LAUNCHES_PER_LAYER * (32 + 31 * 4) == 4680


def test_this_machine_reads() -> None:
    assert 1e9 <= read_bandwidth(2) < 1e13


def test_a_speed_is_of_one_process(plan: Plan) -> None:
    spec = plan.reference.files.manifest.model_spec
    engine = EngineOptions(threads=1)
    one, two = (speed_of(spec, engine, count, on_gpu=True, nvml=nvml()) for count in (1, 2))
    assert isinstance(one, Speed)
    assert isinstance(two, Speed)
    assert (two.bytes_s, two.step_s) == (one.bytes_s / 2, 2 * one.step_s)


def test_of_the_one_step_stage_the_first_seeds_sound_is_kept(plan: Plan) -> None:
    found: Cost = estimate_cost(replace(plan, stages=("one-step",)))
    spoken_s = sum(len(prompt.text) for prompt in plan.corpus.prompts) / 14
    assert found.audio_bytes == pytest.approx(len(plan.candidates) * spoken_s * 48_000, abs=1)
    assert (found.logits_bytes, found.disk_bytes) == (0, found.audio_bytes)
