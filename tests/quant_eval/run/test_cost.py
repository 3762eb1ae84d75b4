"""The estimate: all that costs something is in it, and a GPU is no host."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from miso_gguf.native.nvml import Nvml
from miso_gguf.quant_eval.corpus import Prompt, Turn
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


def parts_of(plan: Plan, **more: Any) -> dict[str, float]:
    return {part.name: part.seconds for part in estimate_cost(plan, **more).parts}


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
    assert "fp16 against f32" in parts_of(f32)
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
        parts = parts_of(replace(plan, damages=damages))
        assert parts["damaged levels"] == pytest.approx(cost.wall_s - base)
        assert {name: parts[name] for name in parts_of(plan)} == parts_of(plan), "and no other part"
    assert "damaged levels" not in parts_of(plan)


def test_what_the_reference_does_alone(plan: Plan) -> None:
    alone = replace(plan, candidates=())
    assert time_of(alone) > 2 * time_of(replace(alone, seeds=()))


def test_damaged_clips_cost_what_praat_does(plan: Plan) -> None:
    assert time_of(replace(plan, controls=True)) > time_of(plan)
    after = replace(plan, controls=True)
    clip_s = sum(len(prompt.text) for prompt in plan.corpus.prompts) / 14 / 2
    judged = len(plan.candidates) - 1
    remade = 4 * judged + 4 * (judged + 1)
    expected = remade * (clip_s * (cost_module._REMADE_S + 2 * cost_module._VOICE_S) + clip_s**2 * cost_module._WARP_S)
    assert parts_of(after)["damaged clips"] == pytest.approx(expected), "two prompts with two seeds: all four clips"
    silent = replace(plan, stages=("logits",))
    assert time_of(replace(silent, controls=True)) == pytest.approx(time_of(silent))


CONSTANTS = {
    "CODEC_FRAME": "codec",
    "CODEC_BYTE": "codec",
    "LOGIT": "comparing logits",
    "CONTOURS": "prosody",
    "VOICE": "prosody",
    "WARP": "prosody",
    "LOADED": "loading",
    "STATISTICS": "statistics",
    "REPORTS": "reports",
}


@pytest.mark.parametrize("constant", CONSTANTS)
def test_each_constant_counts_in_its_part(constant: str, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = parts_of(plan)
    monkeypatch.setattr(cost_module, f"_{constant}_S", 1e3 * getattr(cost_module, f"_{constant}_S"))
    after = parts_of(plan)
    part = CONSTANTS[constant]
    assert after.pop(part) > before.pop(part) + 1
    assert after == before


def test_the_time_is_the_sum_of_the_parts_the_largest_first(plan: Plan) -> None:
    cost = estimate_cost(plan)
    seconds = [part.seconds for part in cost.parts]
    assert cost.wall_s == pytest.approx(sum(seconds))
    assert seconds == sorted(seconds, reverse=True)
    assert cost.to_dict()["parts"][0] == {"name": cost.parts[0].name, "seconds": seconds[0]}
    assert json.loads(json.dumps(cost.to_dict()))["wall_s"] == cost.wall_s


def test_instruments_hear_clips_of_middling_length(plan: Plan) -> None:
    """Seven of them, of two prompts."""
    heard_s = 7 * sum(len(prompt.text) for prompt in plan.corpus.prompts) / 2 / 14
    parts = parts_of(plan, instruments={"wer": 0.5, "dnsmos": 2.0}, scores=7)
    assert parts == pytest.approx({**parts_of(plan), "wer": 0.5 * heard_s, "dnsmos": 2.0 * heard_s})
    assert parts_of(plan, instruments={"wer": 0.5}, scores=0) == parts_of(plan)


def test_every_process_loads_every_level(plan: Plan) -> None:
    """Side by side, so that it takes as long as in one; the reference twice, to speak and to be held against itself."""
    files = [each.files for each in (plan.reference, *plan.candidates)]
    size = sum(path.stat().st_size for each in files for path in (each.backbone, each.decoder, each.embeddings))
    expected = 3 * cost_module._LOADED_S + size / cost_module._LOADED_BYTES_S
    assert parts_of(plan)["loading"] == pytest.approx(expected)
    assert parts_of(plan, processes=2)["loading"] == pytest.approx(expected)


def test_memory_is_loading_and_on_a_gpu_a_minute_and_a_half_of_speech(plan: Plan) -> None:
    assert "memory" not in parts_of(plan)
    host = parts_of(plan, vram=True)["memory"]
    card = Speed.of_gpu(1e12, plan.reference.files.manifest.model_spec)
    found = parts_of(plan, vram=True, speed=card)["memory"]
    said_s = 90 * 12.5 * sum(card.frame_s(Weights.of(each.files)) for each in plan.candidates)
    assert found == pytest.approx(2 * host + said_s)


def test_the_turns_before_are_spoken_by_the_reference_alone(plan: Plan) -> None:
    first, *others = plan.corpus.prompts
    first = replace(first, text="x" * 14)
    talk = replace(first, before=(Turn(0, "y" * 28),))
    logits = replace(plan, stages=("logits",), candidates=plan.candidates[:1])

    def spoken(prompt: Prompt) -> float:
        return parts_of(replace(logits, corpus=replace(plan.corpus, prompts=(prompt, *others))), speed=speed)[
            "speaking"
        ]

    speed = Speed(1e12, step_s=1.0, macs_s=1e30)
    assert spoken(talk) - spoken(first) == pytest.approx(2 * 2 * 12.5, rel=0.01), "two seeds, two seconds"


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


def test_what_is_heard_is_said_and_replayed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_module, "recorded_s", lambda _path: 2.0)
    level, prompts = plan.reference.files, plan.corpus.prompts
    engine = EngineOptions(threads=1, gpu_layers=0)
    speech_s, takes = hearing_cost(level, prompts, engine)
    heard_s, recorded = hearing_cost(level, [replace(prompt, audio=Path("it.wav")) for prompt in prompts], engine)
    _, twice = hearing_cost(level, [*prompts, *prompts], engine)
    assert speech_s == pytest.approx(sum(len(prompt.text) for prompt in prompts) / 14)
    assert isinstance(takes, float)
    assert isinstance(recorded, float)
    assert heard_s == 2 * len(prompts), "as long as it is"
    assert 0 < recorded < takes * heard_s / speech_s, "a recording is not spoken"
    assert isinstance(twice, float)
    loading_s = cost_module._load_s(level)
    assert twice - loading_s == pytest.approx(2 * (takes - loading_s))


def test_hearing_copies_what_goes_into_every_matrix(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tiny model: its rows have 4 * (3 * 256 + 768) numbers, its frames 8 times 2 * (3 * 256 + 512)."""
    monkeypatch.setattr(cost_module, "_HEARD_S", 1.0)
    prompt = replace(plan.corpus.prompts[0], text="x" * 28, before=())
    engine = EngineOptions(threads=1, gpu_layers=0)
    frames, rows = 2 * 12.5, 28 / 4
    _, takes = hearing_cost(plan.reference.files, [prompt], engine)
    assert takes == pytest.approx((frames + rows) * 4 * 1536 + frames * 8 * 2 * 1280, rel=0.01)


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
        assert why in unknown.why_not
        assert unknown.parts == ()
        assert unknown.clips == fast.clips
    few = replace(on_gpu, engine=EngineOptions(threads=1, gpu_layers=1))
    assert estimate_cost(few, nvml=nvml()).wall_s is None
    assert "1 of 4 layers on a GPU" in estimate_cost(few, nvml=nvml()).why_not


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
