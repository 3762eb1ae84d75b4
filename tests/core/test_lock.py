"""A lock file: one holder at a time, whoever deletes it when; never what a link of its name points to."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from miso_gguf.core import lock
from miso_gguf.core.lock import locked


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(BlockingIOError), locked(path):
        pytest.fail("two inside")
    assert not path.exists()
    with locked(path):
        pass


def test_the_file_is_deleted_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holds it, B opens it, A deletes it and is done, B locks what is not there any more, and C makes a new one."""
    path = tmp_path / "lock"
    first = locked(path)
    first.__enter__()
    original: Callable[[int], None] = lock._lock
    opened: list[int] = []

    def lock_late(descriptor: int) -> None:
        if not opened:
            first.__exit__(None, None, None)
        opened.append(os.fstat(descriptor).st_ino)
        original(descriptor)

    monkeypatch.setattr(lock, "_lock", lock_late)
    with locked(path):
        assert len(opened) == 2
        with pytest.raises(BlockingIOError), locked(path):
            pytest.fail("two inside")
    assert not path.exists()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("victim")], ids=["directory", "link"])
def test_what_is_no_file_is_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "lock"
    make(path)
    before = path.lstat().st_ino
    with pytest.raises(OSError, match=r".*") as refused, locked(path):
        pytest.fail("locked")
    assert not isinstance(refused.value, BlockingIOError)
    assert path.lstat().st_ino == before
    assert not (tmp_path / "victim").exists()


def test_a_file_that_somebody_else_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        path.unlink()
        path.write_text("theirs")
    assert path.read_text() == "theirs"
