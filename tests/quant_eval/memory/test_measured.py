"""Measuring with a GPU that is made up: the processes are real, what they take of it is what they say in a file."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from builders import MICRO, Built
from miso_gguf.models.levels import Q8_0
from miso_gguf.native.nvml import Nvml
from miso_gguf.quant_eval.memory import measured
from miso_gguf.quant_eval.memory.child import random_prompt
from miso_gguf.quant_eval.memory.measured import Measured, child_command, measured_vram

MIB = 1 << 20
BASE = 700


class FakeNvml:
    """Two GPUs. Used are `BASE` MiB and the number in the file `taken`, which is acknowledged."""

    class NVMLError(Exception):
        """As of pynvml."""

    def __init__(self, directory: Path) -> None:
        self.taken = directory / "taken"
        self.open = 0
        self.other_pids: list[int] = []
        self.drift: Callable[[int], int] = lambda _reads: 0
        self.reads = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "1.2.3"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"Card %d" % handle

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return b"GPU-%d%d" % (handle + 1, handle)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        self.reads += 1
        level = self.taken.read_text() if self.taken.exists() else ""
        if level:
            self.taken.with_name(f"seen-{level}").touch()
        return SimpleNamespace(total=8000 * MIB, used=(BASE + int(level or 0) + self.drift(self.reads)) * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Sequence[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.other_pids]


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(measured, "_BEFORE_S", 0.03)
    monkeypatch.setattr(measured, "_SETTLING_S", 0.03)
    # The last sample alone: how long the steady state lasts is not the process's to say here.
    monkeypatch.setattr(measured, "STEADY_S", 0.0)
    # The machine may be busy.
    monkeypatch.setattr(measured, "LONGEST_GAP_S", 60.0)
    return FakeNvml(tmp_path)


TAKE = """
import json, os, sys, time
from pathlib import Path
taken = Path(sys.argv[1])
def take(level):
    partial = taken.with_name("partial")
    partial.write_text(str(level))
    partial.replace(taken)
    while not taken.with_name(f"seen-{level}").exists():
        time.sleep(0.001)
def say(**event):
    print(json.dumps(event), flush=True)
"""


def run(nvml: FakeNvml, script: str, **options: float) -> Measured:
    command = [sys.executable, "-c", TAKE + script, str(nvml.taken)]
    found = measured_vram(Path("bundle"), "q8_0", nvml=lambda: nvml, command=command, **options)  # type: ignore[arg-type]
    assert nvml.open == 0
    return found


SPEAKS = """
take(100); say(event="loaded"); take(340); take(250); say(event="spoken")
sys.stdin.read()
taken.unlink()
"""


def test_peak_and_steady_state_over_the_baseline(gpu: FakeNvml) -> None:
    found = run(gpu, SPEAKS)
    assert (found.peak_bytes, found.steady_bytes) == (340 * MIB, 250 * MIB)
    assert (found.why_not, found.notes) == ("", [])
    assert found.samples >= 3


def test_lines_that_are_none_of_ours_are_passed_over(gpu: FakeNvml) -> None:
    found = run(gpu, "print('ggml_cuda_init: found 1 device'); print(3); print('{'); print('[]')\n" + SPEAKS)
    assert found.peak_bytes == 340 * MIB


def test_the_process_gets_the_gpu_that_is_measured(gpu: FakeNvml) -> None:
    found = run(gpu, "say(error=os.environ['CUDA_VISIBLE_DEVICES'])\nsys.stdin.read()", gpu=1)
    assert found.why_not == "not run: GPU-21"


@pytest.mark.parametrize(
    ("visible", "index", "expected"),
    [
        ("1", 0, "GPU-21"),
        ("1,0", 1, "GPU-10"),
        ("GPU-2", 0, "GPU-21"),
        ("1,GPU-1", 1, "GPU-10"),
        (" 0 , 1 ", 0, "GPU-10"),
    ],
)
def test_visible_devices_are_respected(
    gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, index: int, expected: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert measured._uuid(gpu, measured._handle(gpu, index)) == expected


@pytest.mark.parametrize(("visible", "left"), [("", 0), ("-1", 0), ("0,7,1", 1), ("MIG-3", 0)])
def test_gpus_that_are_hidden(gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, left: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = run(gpu, SPEAKS, gpu=1)
    expected = f"not run: no GPU 1: NVML knows 2, and CUDA_VISIBLE_DEVICES={visible!r} leaves {left}"
    assert found == Measured(why_not=expected)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("take(5); os.kill(os.getpid(), 9)", "died while loading (by signal 9)"),
        ("say(event='loaded'); take(5); os.kill(os.getpid(), 9)", "died while speaking (by signal 9)"),
        ("say(event='loaded'); sys.exit('CUDA error: no memory')", "speaking (exit code 1: CUDA error: no memory)"),
        ("sys.exit(0)", "died while loading (exit code 0)"),
        ("os.close(1); time.sleep(60)", "died while loading (it closed its output)"),
        ("say(error='this llama-cpp-python finds no GPU'); sys.exit(2)", "not run: this llama-cpp-python finds no GPU"),
    ],
)  # fmt: skip
def test_a_process_that_dies_gives_no_figure(gpu: FakeNvml, script: str, reason: str) -> None:
    found = run(gpu, script)
    assert (found.peak_bytes, found.steady_bytes) == (None, None)
    assert found.why_not.startswith("not run: ")
    assert found.why_not.endswith(reason)


def test_a_process_that_hangs_is_ended(gpu: FakeNvml, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    found = run(
        gpu, f"Path({str(pid)!r}).write_text(str(os.getpid())); say(event='loaded'); time.sleep(600)", timeout_s=1.5
    )
    assert found.why_not.startswith("not run: the process that is measured was still ")
    assert found.why_not.endswith(" after 2 s")
    if pid.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_a_process_that_does_not_start(gpu: FakeNvml, tmp_path: Path) -> None:
    found = measured_vram(Path("b"), "q8_0", nvml=lambda: gpu, command=[str(tmp_path / "nothing")])
    assert found.why_not.startswith("not run: the process that is measured does not start")


def test_a_process_that_takes_nothing_of_the_gpu(gpu: FakeNvml) -> None:
    found = run(gpu, "take(0); say(event='loaded'); say(event='spoken'); sys.stdin.read()")
    assert found.peak_bytes is None
    assert found.why_not.startswith("not run: the GPU's used memory never rose")


def test_other_programs_are_noted(gpu: FakeNvml) -> None:
    gpu.other_pids = [1, 2]
    gpu.drift = lambda reads: 20 * (reads % 2)
    found = run(gpu, SPEAKS)
    assert found.notes[0].startswith("2 other process(es) had the GPU open before")
    assert found.notes[1] == "the GPU was not quiet before: its used memory moved by 20 MiB"


def test_memory_that_stays_used_is_noted(gpu: FakeNvml) -> None:
    found = run(gpu, SPEAKS.replace("taken.unlink()", "taken.write_text('30')"))
    assert found.peak_bytes == 340 * MIB
    assert found.notes[0].startswith("afterwards the GPU's used memory was 30 MiB from what it was before")


def test_samples_that_come_late_are_noted(gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LONGEST_GAP_S", 0.0)
    (note,) = run(gpu, SPEAKS).notes
    assert "a shorter peak may have been missed" in note


def test_a_driver_that_fails_meanwhile(gpu: FakeNvml) -> None:
    def fail(reads: int) -> int:
        if reads > 12:
            raise FakeNvml.NVMLError("GPU is lost")
        return 0

    gpu.drift = fail
    begin = time.perf_counter()
    found = run(gpu, "say(event='loaded'); time.sleep(600)")
    assert found == Measured(why_not="not run: the NVIDIA driver does not answer (GPU is lost)")
    assert time.perf_counter() - begin < 60


def test_without_a_driver() -> None:
    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:
            raise FakeNvml.NVMLError("NVML Shared Library Not Found")

    found = measured_vram(Path("b"), "q8_0", nvml=lambda: NoDriver(Path()), command=["never"])
    assert found == Measured(why_not="not run: no NVIDIA GPU, or no driver for it (NVML Shared Library Not Found)")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = measured_vram(Path("b"), "q8_0", command=["never"])
    assert found.why_not == "not run: nvidia-ml-py is not installed: pip install 'miso-gguf[eval]'"


def test_the_last_second(gpu: FakeNvml) -> None:
    """The samples between two times, and one where there is none."""
    samples = measured._Gpu(gpu, 0)
    samples.times, samples.used = [1.0, 2.0, 2.5, 3.0, 3.5], [10, 20, 30, 40, 50]
    assert samples.since(2.0, 3.0) == [20, 30, 40]
    assert samples.since(0, 3.2) == [10, 20, 30, 40]
    assert samples.since(3.6, 4.0) == [50]


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle([Q8_0], MICRO)


def child(bundle: Path, level: str = "q8_0", layers: int = 0) -> list[str]:
    return child_command(bundle, level, kv_type="f16", context=2048, seconds=0.32, layers=layers)


def test_the_process_itself(gpu: FakeNvml, bundle: Path) -> None:
    """The real one, on the CPU: it loads, speaks and goes."""
    start = []

    def rise(reads: int) -> int:
        start.append(reads)
        return 50 if reads > 20 else 0

    gpu.drift = rise
    found = measured_vram(bundle, "q8_0", nvml=lambda: gpu, command=child(bundle))
    assert found.why_not == ""
    assert (found.peak_bytes, found.steady_bytes) == (50 * MIB, 50 * MIB)


@pytest.mark.parametrize(
    ("level", "layers", "reason"),
    [
        ("q4_0", 0, "has no level q4_0, only q8_0"),
        ("q8_0", -1, "this llama-cpp-python finds no GPU: reinstall it with"),
    ],
)
def test_the_process_itself_when_it_cannot(gpu: FakeNvml, bundle: Path, level: str, layers: int, reason: str) -> None:
    found = measured_vram(bundle, level, nvml=lambda: gpu, command=child(bundle, level, layers))
    assert found.peak_bytes is None
    assert reason in found.why_not


@pytest.mark.parametrize("positions", [1, 2, 923])
def test_the_longest_prompt(positions: int) -> None:
    rows = random_prompt(MICRO, positions).rows
    assert rows.shape == (positions, MICRO.codebooks + 1)
    spoken = rows[:, -1] < 0
    assert spoken.sum() == positions // 2
    assert rows[spoken, :-1].min(initial=1) >= 1
    assert (rows[~spoken, :-1] == -1).all()
    assert rows.max() < max(MICRO.text_vocab, MICRO.audio_vocab)


def test_pynvml_has_what_we_ask_for() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in [name for name in dir(Nvml) if name.startswith("nvml")]:
        assert callable(getattr(pynvml, name))
    assert issubclass(pynvml.NVMLError, Exception)
