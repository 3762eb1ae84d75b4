"""The default numbers of threads, on machines made of files."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from miso_gguf.native import threads as threads_module
from miso_gguf.native.threads import MOST_THREADS, default_threads, default_workers

Machine = Callable[..., int]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this one a machine whose /sys holds these files, for a process that may use these CPUs."""

    def make(files: dict[str, str], cpus: set[int], group: str = "0::/\n") -> None:
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        own = tmp_path / "cgroup"
        own.write_text(group)
        monkeypatch.setattr(threads_module, "_SYSTEM", tmp_path / "sys")
        monkeypatch.setattr(threads_module, "_OWN_GROUP", own)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus, raising=False)

    return make


@pytest.fixture
def threads_of(machine: Callable[..., None]) -> Machine:
    """The default for ggml on such a machine."""

    def threads(*of_what: object) -> int:
        machine(*of_what)
        return default_threads()

    return threads


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this one a machine without Linux's system calls and files, of which psutil knows this."""

    def make(physical: int | None, logical: int | None, affinity: list[int] | None) -> None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: logical)
        monkeypatch.setattr(threads_module, "_SYSTEM", Path("/nowhere"))
        monkeypatch.setattr(threads_module, "_OWN_GROUP", Path("/nowhere/cgroup"))
        process = SimpleNamespace() if affinity is None else SimpleNamespace(cpu_affinity=lambda: affinity)
        known = SimpleNamespace(Process=lambda: process, cpu_count=lambda logical: logical or physical)
        monkeypatch.setattr(threads_module, "psutil", known)

    return make


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


def test_a_machine_that_says_nothing(threads_of: Machine) -> None:
    assert threads_of({}, {0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("physical", "logical", "affinity", "threads", "workers"),
    [
        (8, 16, None, 8, 16),  # a Mac, or rather an old one
        (8, 16, list(range(16)), 8, 16),  # Windows
        (8, 16, [0, 1, 2], 3, 3),  # and `start /affinity 7`
        (None, 4, None, 4, 4),
        (None, None, None, 1, 1),
    ],
)
def test_not_on_linux(
    elsewhere: Callable[..., None],
    physical: int | None,
    logical: int | None,
    affinity: list[int] | None,
    threads: int,
    workers: int,
) -> None:
    elsewhere(physical, logical, affinity)
    assert (default_threads(), default_workers()) == (threads, workers)


def test_the_psutil_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Linux's system calls this machine has as many cores as CPUs, or fewer."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(threads_module, "_OWN_GROUP", Path("/nowhere"))
    assert 1 <= default_threads() <= default_workers() <= min(os.cpu_count() or 1, MOST_THREADS)


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


def of_version_1(quota: object, period: object = 100_000) -> dict[str, str]:
    """The files of a group with that quota."""
    return {"cpu.cfs_quota_us": str(quota), "cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [(200_000, 100_000, 2), (125_000, 50_000, 2), (1000, 100_000, 1), (-1, 100_000, 8), (200_000, 0, 8), ("", "", 8)],
)
@pytest.mark.parametrize(
    ("mount", "controllers"),
    [("cpu", "cpu"), ("cpu,cpuacct", "cpu,cpuacct"), ("cpu", "cpuacct,cpu"), ("cpuacct,cpu", "cpuacct,cpu")],
)
def test_a_quota_of_version_1(
    threads_of: Machine, quota: object, period: object, expected: int, mount: str, controllers: str
) -> None:
    """In a container: the path of its group is the host's, and its files are at the top of what is mounted."""
    limits = {f"fs/cgroup/{mount}/{name}": text for name, text in of_version_1(quota, period).items()}
    group = f"3:memory:/docker/a:b\n2:{controllers}:/docker/a:b\n1:name=systemd:/docker/a:b\n0::/\n"
    assert threads_of(limits, set(range(8)), group) == expected


def test_the_tightest_quota_of_version_1(threads_of: Machine) -> None:
    quotas = {"": -1, "/pods": 500_000, "/pods/one": 700_000, "/pods/other": 100_000, "/cpu": 100_000}
    limits = {
        f"fs/cgroup/cpu,cpuacct{group}/{name}": text
        for group, quota in quotas.items()
        for name, text in of_version_1(quota).items()
    }
    assert threads_of(limits, set(range(8)), "4:cpu,cpuacct:/pods/one\n1:cpuset:/cpu\n") == 5


def test_both_versions_at_once(threads_of: Machine) -> None:
    """Version 2 beside version 1, or with a controller of its own: either may have the quota."""
    limits = {f"fs/cgroup/cpu/pods/{name}": text for name, text in of_version_1(400_000).items()}
    group = "1:cpu:/pods\n0::/pods\n"
    assert threads_of(limits, set(range(8)), group) == 4
    assert threads_of({"fs/cgroup/unified/pods/cpu.max": "300000 100000"}, set(range(8)), group) == 3


@pytest.mark.parametrize("group", ["", "nonsense", "1:cpu\n", "0::\n", "0::/../../sibling\n", "1:cpu:/no/such/group\n"])
def test_groups_that_say_nothing(threads_of: Machine, group: str) -> None:
    assert threads_of({}, set(range(8)), group) == 8


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 6), ("250000 100000", 3), ("10000 100000", 1), ("900000 100000", 6)]
)
def test_workers_are_all_cpus_within_the_quota(machine: Callable[..., None], limit: str, expected: int) -> None:
    """Second threads of a core and slow cores too."""
    hybrid = siblings("0,1", "2,3", "4", "5") | {"devices/cpu_core/cpus": "0-3"}
    machine(hybrid | {"fs/cgroup/cpu.max": limit}, set(range(6)))
    assert default_workers() == expected


def test_no_more_than_ggml_has_room_for(machine: Callable[..., None]) -> None:
    machine({}, set(range(1000)))
    assert (default_threads(), default_workers()) == (MOST_THREADS, MOST_THREADS)
