"""The default number of threads, on machines made of files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from miso_gguf.native import threads as threads_module
from miso_gguf.native.threads import default_threads

Machine = Callable[..., int]


@pytest.fixture
def threads_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The default on a machine whose /sys holds these files, for a process that may use these CPUs."""

    def threads(files: dict[str, str], cpus: set[int], group: str = "0::/\n") -> int:
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        own = tmp_path / "cgroup"
        own.write_text(group)
        monkeypatch.setattr(threads_module, "_SYSTEM", tmp_path / "sys")
        monkeypatch.setattr(threads_module, "_OWN_GROUP", own)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus, raising=False)
        return default_threads()

    return threads


def siblings(*cores: str) -> dict[str, str]:
    """Cores as lists of their logical CPUs, "0,4" or "1"."""
    return {
        f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": core for core in cores for cpu in core.split(",")
    }


def test_physical_cores(threads_of: Machine) -> None:
    """Four CPUs on two cores, one that says nothing of itself, and one that the process may not use."""
    cores = siblings("0,2", "1,3", "5")
    assert threads_of(cores, {0, 1, 2, 3, 4}) == 3
    assert threads_of(cores, {2}) == 1


def test_a_machine_that_says_nothing(threads_of: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of({}, {0, 1, 2}) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1


def test_of_a_hybrid_processor_the_fast_cores(threads_of: Machine) -> None:
    hybrid = siblings("0,1", "2,3", "4", "5", "6", "7") | {
        "devices/cpu_core/cpus": "0-3",
        "devices/cpu_atom/cpus": "4-7",
    }
    assert threads_of(hybrid, set(range(8))) == 2
    assert threads_of(hybrid, {4, 5, 6}) == 3, "bound to the slow ones, it uses those"


def test_of_several_sockets_the_one_with_most_cores(threads_of: Machine) -> None:
    sockets = {f"devices/system/cpu/cpu{cpu}/topology/physical_package_id": str(cpu // 4) for cpu in range(8)}
    machine = siblings("0,1", "2,3", "4", "5", "6,7") | sockets
    assert threads_of(machine, set(range(8))) == 3
    assert threads_of(machine, {0, 1, 2, 3, 4}) == 2


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8), ("nonsense", 8)],
)
def test_no_more_than_the_quota(threads_of: Machine, limit: str, expected: int) -> None:
    assert threads_of({"fs/cgroup/cpu.max": limit}, set(range(8))) == expected


def test_the_tightest_quota_on_the_way(threads_of: Machine) -> None:
    limits = {
        "fs/cgroup/pods/cpu.max": "300000 100000",
        "fs/cgroup/pods/one/cpu.max": "max 100000",
        "fs/cgroup/other/cpu.max": "100000 100000",
    }
    assert threads_of(limits, set(range(8)), "1:cpu:/\n0::/pods/one\n") == 3
