"""What is written down of the machine: everything that computes, and nobody's name."""

import importlib.metadata
import json
import platform
import socket
import sys
from types import SimpleNamespace

import llama_cpp
import pytest

from miso_gguf import __version__
from miso_gguf.core.errors import MisoError
from miso_gguf.native.device import Device
from miso_gguf.native.nvml import NvmlMissing, opened_nvml
from miso_gguf.quant_eval import machine as module
from miso_gguf.quant_eval.machine import device, instructions, machine, versions


class FakeNvml:
    """One card."""

    class NVMLError(Exception):
        """As of pynvml."""

    def __init__(self) -> None:
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.1"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, _handle: int) -> str:
        return "Card 4000"

    def nvmlDeviceGetUUID(self, _handle: int) -> str:
        return "GPU-1"

    def nvmlDeviceGetMemoryInfo(self, _handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=8 * 10**9, used=0)

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: int) -> list[SimpleNamespace]:
        return []


def test_this_machine() -> None:
    found = machine()
    assert set(found) == {"cpu", "cores", "memory", "gpu", "nvidia", "device", "instructions", "os"}
    assert all(isinstance(value, str) and value for value in found.values())
    assert platform.system() in found["os"]
    assert found["memory"].endswith("GB")
    json.dumps(found)


def test_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instructions that llama.cpp itself prints; of a GPU its name; threads are no matter."""
    said = llama_cpp.llama_print_system_info().decode()
    known = {part.split("=")[0].split(":")[-1].strip() for part in said.split("|") if "=" in part}
    assert "OPENMP" in known
    assert set(instructions().split()) == known - {"OPENMP"}
    assert (device(0), machine(gpu_layers=0)["device"]) == ("CPU", "CPU")
    monkeypatch.setattr(module, "gpus", lambda: [Device(1, "CUDA0", " Card 4000", "gpu")])
    assert (device(0), device(None), device(3)) == ("CPU", "Card 4000", "Card 4000")

    def fail() -> None:
        raise MisoError("has no ggml_backend_get_features")

    monkeypatch.setattr(module, "cpu_features", fail)
    assert instructions() == "unknown"


def test_no_names_of_people_or_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    here = platform.uname()._replace(node="secret-host")
    monkeypatch.setattr(platform, "uname", lambda: here)
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME"):
        monkeypatch.setenv(name, "secret-user")
    assert "secret" not in json.dumps(machine())


def test_a_gpu_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    cards = [Device(1, "CUDA0", "Card 4000", "gpu"), Device(2, "CPU", " Chip 9 ", "cpu")]
    monkeypatch.setattr(module, "devices", lambda: cards)
    found = machine(lambda: nvml)
    assert (found["cpu"], found["gpu"]) == ("Chip 9", "CUDA0: Card 4000")
    assert found["nvidia"] == "Card 4000 (8.00 GB), driver 550.1"
    assert nvml.open == 0


def test_what_cannot_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MisoError("llama-cpp-python is not installed")

    monkeypatch.setattr(module, "devices", fail)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = machine()
    assert (found["memory"], found["gpu"]) == ("unknown", "unknown")
    assert found["cpu"]
    assert found["nvidia"].startswith("none: nvidia-ml-py is not installed: pip install")


def test_versions_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert (found["miso-gguf"], found["python"]) == (__version__, platform.python_version())
    for name in ("numpy", "onnxruntime", "llama-cpp-python", "praat-parselmouth"):
        assert found[name] == importlib.metadata.version(name)
    assert found["praat"][0].isdigit()
    monkeypatch.setattr(module, "_LIBRARIES", ("numpy", "no-such-library"))
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    assert versions()["no-such-library"] == versions()["praat"] == "not installed"


def test_nvml_is_shut_down_whatever_happens() -> None:
    nvml = FakeNvml()
    with pytest.raises(NvmlMissing, match=r"does not answer \(lost\)"), opened_nvml(lambda: nvml):
        raise FakeNvml.NVMLError("lost")
    with pytest.raises(ZeroDivisionError), opened_nvml(lambda: nvml):
        1 / 0  # noqa: B018
    assert nvml.open == 0
