"""What a level takes of a GPU, measured from outside: a process of its own speaks, and NVML is read meanwhile.

The figure is the whole device's used memory, less what was used before the process began: what NVML says of single
processes is 0 or absent in containers and on Windows. So it holds everything that speaking costs, the driver's context
included, and whatever other programs did meanwhile: what can be noticed of that is noted.
"""

import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ...native.llama import KvType
from ...native.nvml import Nvml, NvmlMissing, opened_nvml
from .child import LOADED, SPOKEN

INTERVAL_S = 0.01
"""Between samples: half of the 20 ms that are allowed, because sleeping takes longer than it was told to."""
LONGEST_GAP_S = 0.02
STEADY_S = 1.0
"""The steady state is the median of the last second of speaking."""
SPEECH_S = 90.0
"""The longest audio of one sentence."""

_BEFORE_S = 0.5
_LEAST_SAMPLES = 5
_TIMEOUT_S = 1800.0
_CLOSING_S = 60.0
_ENDING_S = 1.0
"""How long a process that is no longer wanted may take to go by itself."""
_SETTLING_S = 2.0
"""How long the driver may take to give memory back after the process has gone."""
_QUIET_BYTES = 16 << 20
"""What may move without being worth a note: a desktop redraws its windows."""
_SHOWN = 300
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Measured:
    """What was found. Without figures `why_not` says why, beginning "not run: "."""

    peak_bytes: int | None = None
    steady_bytes: int | None = None
    why_not: str = ""
    notes: list[str] = field(default_factory=list)
    samples: int = 0


def child_command(bundle: Path, level: str, *, kv_type: KvType, context: int, seconds: float, layers: int) -> list[str]:
    """The command line of the process that is measured: see `child.py`."""
    module = __package__ + ".child"
    options = ["--kv-type", kv_type, "--context", str(context), "--seconds", str(seconds), "--gpu-layers", str(layers)]
    return [sys.executable, "-m", module, str(bundle), level, *options]


def measured_vram(
    bundle: Path,
    level: str,
    *,
    kv_type: KvType = "f16",
    context: int = 2048,
    seconds: float = SPEECH_S,
    gpu: int = 0,
    nvml: Callable[[], Nvml] | None = None,
    command: Sequence[str] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Measured:
    """Peak and steady state of a level that speaks for `seconds` after the longest prompt that leaves room for it.

    It never raises for what the machine lacks, and never guesses: without a GPU, or when the process dies, there is no
    figure.

    Args:
        bundle: The directory that miso-convert wrote.
        level: To measure.
        kv_type: Type of the backbone's KV cache.
        context: Positions of prompt and speech together.
        seconds: Of audio.
        gpu: Which GPU of those that CUDA_VISIBLE_DEVICES leaves, numbered as NVML does, in the order of the bus.
        nvml: Opens NVML; by default the one installed.
        command: What to run instead of `child_command`.
        timeout_s: After which the process is ended.
    """
    command = command or child_command(bundle, level, kv_type=kv_type, context=context, seconds=seconds, layers=-1)
    try:
        with opened_nvml(nvml) as library:
            return _measured(library, _handle(library, gpu), command, timeout_s)
    except NvmlMissing as error:
        return Measured(why_not=f"not run: {error}")


def _handle(nvml: Nvml, gpu: int) -> Any:
    """The `gpu`-th of those that CUDA_VISIBLE_DEVICES leaves. Raises `NvmlMissing` if there is none."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    visible = os.environ.get(_VISIBLE)
    chosen = handles
    if visible is not None:
        chosen = []
        for entry in filter(None, map(str.strip, visible.split(","))):
            named = [handle for handle in handles if _uuid(nvml, handle).startswith(entry)]
            numbered = [handles[int(entry)]] if entry.isdecimal() and int(entry) < len(handles) else []
            if not (named or numbered):
                break  # CUDA, too, stops at the first that it does not know
            chosen += (numbered or named)[:1]
    if not 0 <= gpu < len(chosen):
        hidden = f", and {_VISIBLE}={visible!r} leaves {len(chosen)}" if visible is not None else ""
        raise NvmlMissing(f"no GPU {gpu}: NVML knows {len(handles)}{hidden}")
    return chosen[gpu]


def _uuid(nvml: Nvml, handle: Any) -> str:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else uuid


class _Gpu:
    """The used memory of one GPU over time."""

    def __init__(self, nvml: Nvml, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.times: list[float] = []
        self.used: list[int] = []

    def sample(self) -> int:
        """Read it once more, then wait for the next time."""
        used = int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        self.times.append(time.perf_counter())
        self.used.append(used)
        time.sleep(INTERVAL_S)
        return used

    def sample_for(self, seconds: float) -> list[int]:
        """What it was over that time, however slow the machine: some samples there are."""
        found: list[int] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(found) < _LEAST_SAMPLES:
            found.append(self.sample())
        return found

    def since(self, start: float, end: float) -> list[int]:
        """The samples between two times; the last one before `end` if there is none."""
        chosen = [used for at, used in zip(self.times, self.used, strict=True) if start <= at <= end]
        return chosen or self.used[-1:]

    def others(self) -> int:
        """How many processes have the GPU open."""
        return len(self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle))


def _measured(nvml: Nvml, handle: Any, command: Sequence[str], timeout_s: float) -> Measured:
    gpu, notes = _Gpu(nvml, handle), []
    others = gpu.others()
    if others:
        notes.append(f"{others} other process(es) had the GPU open before: what they did meanwhile is in the figures")
    before = gpu.sample_for(_BEFORE_S)
    idle = round(statistics.median(before))
    if max(before) - min(before) > _QUIET_BYTES:
        notes.append(f"the GPU was not quiet before: its used memory moved by {_mib(max(before) - min(before))}")
    gpu.times.clear()
    gpu.used.clear()
    # By its id, because CUDA numbers GPUs in another order than NVML.
    environment = {**os.environ, _VISIBLE: _uuid(nvml, handle)}
    spoken_at, why_not = _watch(gpu, command, environment, timeout_s)
    if spoken_at is None:
        return Measured(why_not=f"not run: {why_not}", notes=notes, samples=len(gpu.used))
    figures = gpu.since(0, spoken_at)
    steady = round(statistics.median(gpu.since(spoken_at - STEADY_S, spoken_at)))
    gaps = [later - earlier for earlier, later in zip(gpu.times, gpu.times[1:], strict=False)]
    late = sum(gap > LONGEST_GAP_S for gap in gaps)
    if late:
        notes.append(
            f"{late} of {len(gaps)} samples came more than {1000 * LONGEST_GAP_S:.0f} ms after the one before (at most "
            f"{1000 * max(gaps):.0f}): a shorter peak may have been missed"
        )
    after = round(statistics.median(gpu.sample_for(_SETTLING_S)[-20:]))
    if abs(after - idle) > _QUIET_BYTES:
        notes.append(
            f"afterwards the GPU's used memory was {_mib(after - idle)} from what it was before: another program "
            "changed it, and the figures may be off by as much. Measure again on a GPU that is idle"
        )
    if max(figures) <= idle:
        why_not = "the GPU's used memory never rose: the process did not compute on it"
        return Measured(why_not=f"not run: {why_not}", notes=notes, samples=len(figures))
    return Measured(max(figures) - idle, max(0, steady - idle), "", notes, len(figures))


def _watch(
    gpu: _Gpu, command: Sequence[str], environment: dict[str, str], timeout_s: float
) -> tuple[float | None, str]:
    """Run the process and sample until it has spoken; when that was, or why it was not."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        except OSError as error:
            return None, f"the process that is measured does not start ({error})"
        assert process.stdout is not None
        assert process.stdin is not None
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
        reader.start()
        end, stage, reason = time.perf_counter() + timeout_s, "loading", ""
        spoken_at: float | None = None
        try:
            while spoken_at is None and not reason:
                gpu.sample()
                if time.perf_counter() > end:
                    reason = f"the process that is measured was still {stage} after {timeout_s:.0f} s"
                while not lines.empty() and spoken_at is None and not reason:
                    line = lines.get()
                    if line is None:
                        reason = f"the process that is measured died while {stage} ({_exit(process, errors)})"
                        continue
                    event = _event(line)
                    if event.get("event") == LOADED:
                        stage = "speaking"
                    elif event.get("event") == SPOKEN:
                        spoken_at = time.perf_counter()
                    elif "error" in event:
                        reason = str(event["error"])
        finally:
            # It waits for its input to end: until then all of it is still in memory.
            _end(process, _CLOSING_S if spoken_at is not None else _ENDING_S)
            reader.join(_CLOSING_S)
            process.stdout.close()
    return spoken_at, reason


def _end(process: "subprocess.Popen[str]", patience_s: float) -> None:
    assert process.stdin is not None
    try:
        with suppress(OSError, subprocess.TimeoutExpired):
            process.stdin.close()
            process.wait(patience_s)
    finally:
        process.kill()  # nothing to one that has ended
        process.wait()


def _read_lines(stream: TextIO, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _event(line: str) -> dict[str, Any]:
    """A line of the process; what is none of ours says nothing."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _exit(process: "subprocess.Popen[str]", errors: TextIO) -> str:
    try:
        code = process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        return "it closed its output"
    errors.seek(0)
    said = errors.read().strip().splitlines()
    how = f"by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {said[-1][-_SHOWN:]}" if said else how


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
