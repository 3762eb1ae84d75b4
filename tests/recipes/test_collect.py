"""However often a run is interrupted, and wherever, its files are those of a run that was not."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from miso_gguf.convert.imatrix import HALVES, imatrix_name
from miso_gguf.core.errors import MisoError
from miso_gguf.core.files import PARTIAL_SUFFIX
from miso_gguf.core.lock import locked
from miso_gguf.recipes import collect as collecting
from miso_gguf.recipes.collect import collect
from miso_gguf.recipes.collector import Collector
from miso_gguf.recipes.imatrix_file import ImatrixFile
from miso_gguf.recipes.plan import Collection
from miso_gguf.recipes.state import STATE_NAME, State, load, save
from miso_gguf.recipes.sums import empty_sums

Plan = Callable[..., Collection]
PROMPTS = 4
"""Of the fixture `plan`."""


def files_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole")
    found = collect(plan(out))
    assert not found.was_there
    assert found.frames == found.files["decoder"].chunks > 50
    return files_in(out)


def test_a_run_leaves_two_files(whole: dict[str, bytes]) -> None:
    assert set(whole) == {imatrix_name(part) for part in HALVES}


def test_it_is_deterministic_and_tells_how_far_it_is(plan: Plan, tmp_path: Path, whole: dict[str, bytes]) -> None:
    told: list[tuple[int, int]] = []
    collect(plan(tmp_path / "again"), lambda done, of: told.append((done, of)))
    assert files_in(tmp_path / "again") == whole
    assert told == [(done, PROMPTS) for done in range(PROMPTS + 1)]


def test_interrupted_after_every_clip(
    plan: Plan, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the next one, when part of it is in the sums."""
    hear = Collector.hear
    calls = 0

    def hear_two(*given: Any) -> int:
        nonlocal calls
        calls += 1
        frames = hear(*given)
        if calls % 2 == 0:
            raise KeyboardInterrupt
        return frames

    monkeypatch.setattr(Collector, "hear", hear_two)
    for run in range(1, PROMPTS):
        with pytest.raises(KeyboardInterrupt):
            collect(plan(tmp_path))
        assert set(files_in(tmp_path)) == {STATE_NAME}
        assert calls == 2 * run
    collect(plan(tmp_path))
    assert files_in(tmp_path) == whole


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_while_it_hears(speaking: Path, tmp_path: Path, whole: dict[str, bytes], plan: Plan) -> None:
    code = "import sys; from miso_gguf.recipes.cli import main; sys.argv[0] = 'miso-recipe'; main()"
    command = [sys.executable, "-c", code, "imatrix", str(speaking), "--out", str(tmp_path), "--prompts", str(PROMPTS)]
    process = subprocess.Popen([*command, "--threads", "1", "--gpu-layers", "0"])
    try:
        while not (tmp_path / STATE_NAME).exists() and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not {imatrix_name(part) for part in HALVES} & set(files_in(tmp_path)), "it was done before it was killed"
    collect(plan(tmp_path))
    found = files_in(tmp_path)
    assert {name: found[name] for name in whole} == whole


@pytest.mark.parametrize("part", HALVES)
def test_a_full_disk_while_a_file_is_written(
    plan: Plan, tmp_path: Path, whole: dict[str, bytes], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ImatrixFile.write

    def failing(file: ImatrixFile, path: Path) -> None:
        if file.part == part:
            raise OSError(28, "No space left on device", str(path))
        write(file, path)

    with monkeypatch.context() as patched:
        patched.setattr(ImatrixFile, "write", failing)
        with pytest.raises(OSError, match=r"No space .* run again") as raised:
            collect(plan(tmp_path))
        assert raised.value.filename == str(tmp_path)
    monkeypatch.setattr(collecting, "Collector", None)  # all was heard
    collect(plan(tmp_path))
    assert files_in(tmp_path) == whole


def test_done_is_done(plan: Plan, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / STATE_NAME).write_bytes(b"left over")
    monkeypatch.setattr(collecting, "Collector", None)
    found = collect(plan(tmp_path))
    assert found.was_there
    assert files_in(tmp_path) == whole


@pytest.mark.parametrize("other", [{"prompts": 3}, {"seeds": 2}, {"level": "q4_k_m"}, {"corpus": "builtin:4"}])
def test_another_run_is_told_apart(plan: Plan, tmp_path: Path, whole: dict[str, bytes], other: dict[str, Any]) -> None:
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MisoError, match=r"backbone\.imatrix\.gguf: is of another run .*what is said.* --fresh"):
        collect(plan(tmp_path, **other))
    assert files_in(tmp_path) == whole


def test_a_state_of_another_run_or_a_damaged_one_is_refused_and_forgotten(
    plan: Plan, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    def stop(done: int, _all: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(plan(tmp_path), stop)
    with pytest.raises(MisoError, match=r"collecting\.npz: is of another run .* --fresh"):
        collect(plan(tmp_path, prompts=3))
    state = tmp_path / STATE_NAME
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(MisoError, match=r"collecting\.npz: is damaged.*--fresh"):
        collect(plan(tmp_path))
    collect(plan(tmp_path), fresh=True)
    assert files_in(tmp_path) == whole


def test_a_state_may_be_damaged_anywhere(plan: Plan, tmp_path: Path) -> None:
    """In a sum, in an array's header (which may then ask for less than there is), and in the archive's directory, which
    says of what kind each entry is: encrypted, or compressed in many ways.
    """
    collection = plan(tmp_path)
    spec = collection.candidate.files.manifest.model_spec
    state = State(empty_sums(spec), clips=1)
    save(tmp_path, collection.identity, state)
    path = tmp_path / STATE_NAME
    content = path.read_bytes()
    last, directory = content.rfind(b"PK\x03\x04"), content.find(b"PK\x01\x02")
    found = 0
    for place in (*range(0, last, last // 40), *range(last, last + 192), *range(directory, directory + 12)):
        for bit in range(place % 2, 8, 2):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                loaded = load(tmp_path, collection.identity, spec)
            except MisoError as error:
                found += "is damaged" in str(error)
            else:
                assert (loaded.clips, loaded.frames, loaded.silent) == (1, 0, 0)
                assert_state_is(loaded, state)
    assert found > 300


def assert_state_is(state: State, expected: State) -> None:
    for part, sums in expected.sums.items():
        for name, values in sums.arrays().items():
            np.testing.assert_array_equal(state.sums[part].arrays()[name], values)


def test_a_full_disk_while_a_clip_is_kept(
    plan: Plan, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def savez(file: BinaryIO, **_arrays: object) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    def fill(done: int, _all: int) -> None:
        if done == 2:
            monkeypatch.setattr(np, "savez", savez)

    with pytest.raises(OSError, match=r"No space .* the 2 before it are safe: make room and run again") as raised:
        collect(plan(tmp_path), fill)
    assert raised.value.filename == str(tmp_path / STATE_NAME)
    monkeypatch.undo()
    collect(plan(tmp_path))
    assert files_in(tmp_path) == whole


def test_what_was_half_written_is_cleared_away(plan: Plan, tmp_path: Path, whole: dict[str, bytes]) -> None:
    for name in (*whole, STATE_NAME):
        (tmp_path / f"{name}.0123abcd{PARTIAL_SUFFIX}").write_bytes(b"half")
    (tmp_path / f"other{PARTIAL_SUFFIX}").write_bytes(b"of somebody else")
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    assert collect(plan(tmp_path)).was_there
    assert set(files_in(tmp_path)) == {*whole, f"other{PARTIAL_SUFFIX}"}


def test_a_directory_that_is_none(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(MisoError, match=r"cannot be written to \(.*\): give another --out"):
            collect(plan(out))


def test_two_at_a_time(plan: Plan, tmp_path: Path) -> None:
    with locked(tmp_path / ".collecting.lock"), pytest.raises(MisoError, match="another run is writing"):
        collect(plan(tmp_path))


def test_where_nothing_is_said_nothing_is_known(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Collector, "hear", lambda *_: 0)
    with pytest.raises(MisoError, match="nothing was said in 4 clips"):
        collect(plan(tmp_path))


def test_clips_of_nothing_are_counted_apart(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hear, calls = Collector.hear, iter(range(2))
    monkeypatch.setattr(Collector, "hear", lambda *given: hear(*given) if next(calls) else 0)
    found = collect(plan(tmp_path, prompts=2))
    assert found.silent == 1
    assert {file.clips for file in found.files.values()} == {1}
