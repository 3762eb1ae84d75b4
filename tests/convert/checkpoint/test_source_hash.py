"""Hashing while converting: equal to hashlib, never far ahead, and never waiting for ever."""

import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.convert.checkpoint import source_hash
from miso_gguf.convert.checkpoint.source_hash import SourceHasher
from miso_gguf.core.errors import CheckpointError
from miso_gguf.core.files import file_sha256

BLOCK, AHEAD = 16, 64
_PATIENCE_S = 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_hash, "_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(source_hash, "_AHEAD_BYTES", AHEAD)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_files(directory: Path, contents: list[bytes]) -> list[Path]:
    paths = [directory / f"{index}.bin" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


class Reads:
    """Counts the bytes read through `Path.open`, and lets a test wait for a number of them."""

    def __init__(self) -> None:
        self.total = 0
        self.fail_at: int | None = None
        self._changed = threading.Condition()

    def wait_for(self, total: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.total >= total, _PATIENCE_S), (self.total, total)

    def readinto(self, handle: Any, block: bytearray) -> int:
        if self.fail_at is not None and self.total >= self.fail_at:
            raise OSError(errno.EIO, "Input/output error")
        count: int = handle.readinto(block)
        with self._changed:
            self.total += count
            self._changed.notify_all()
        return count


class _Handle:
    def __init__(self, reads: Reads, handle: Any) -> None:
        self._reads, self._handle = reads, handle

    def __enter__(self) -> "_Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def readinto(self, block: bytearray) -> int:
        return self._reads.readinto(self._handle, block)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counter = Reads()
    original: Callable[..., Any] = Path.open

    def counted(self: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        handle = original(self, mode, *args, **keywords)
        return _Handle(counter, handle) if mode == "rb" else handle

    monkeypatch.setattr(Path, "open", counted)
    return counter


@pytest.fixture
def start() -> Iterator[Callable[[list[Path]], SourceHasher]]:
    """Hashers that are stopped after the test, whatever becomes of it."""
    hashers: list[SourceHasher] = []

    def start(files: list[Path]) -> SourceHasher:
        hashers.append(SourceHasher(files))
        hashers[-1].start()
        return hashers[-1]

    yield start
    for hasher in hashers:
        hasher.stop()


Start = Callable[[list[Path]], SourceHasher]


def result_of(hasher: SourceHasher) -> list[str]:
    """`result()`, which must not hang."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(hasher.result())
        except BaseException as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    assert found, "result() waits for ever"
    if isinstance(found[0], BaseException):
        raise found[0]
    digests: list[str] = found[0]
    return digests


@settings(max_examples=examples(40), deadline=None)
@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 300)), max_size=5),
)
def test_equals_hashlib_whatever_is_reported(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], reports: list[tuple[int, int]]
) -> None:
    paths = write_files(tmp_path_factory.getbasetemp(), contents)
    hasher = SourceHasher(paths)
    hasher.start()
    for file, offset in reports:
        hasher.reached(min(file, len(paths) - 1), offset)
    assert result_of(hasher) == [sha256(content) for content in contents]
    assert [file_sha256(path) for path in paths] == [sha256(content) for content in contents]
    hasher.stop()


def test_stays_within_its_window(tmp_path: Path, reads: Reads, start: Start) -> None:
    contents = [bytes(range(100)), b"x" * 200, b"y" * 50]
    hasher = start(write_files(tmp_path, contents))

    def settles_at(total: int) -> None:
        reads.wait_for(total)
        hasher.join(0.05)  # time enough to go on, if it did
        assert (reads.total, hasher.is_alive()) == (total, True)

    settles_at(AHEAD)
    hasher.reached(0, 16)
    settles_at(80)
    # Going back, and what is not in a file, change nothing.
    hasher.reached(0, 0)
    hasher.reached(-1, 0)
    settles_at(80)
    # 100 of the first file, then blocks of 16 of the second from its beginning.
    hasher.reached(1, 20)
    settles_at(100 + 96)
    assert result_of(hasher) == [sha256(content) for content in contents]
    assert reads.total == 350


def test_stop_ends_it(tmp_path: Path, reads: Reads, start: Start) -> None:
    hasher = start(write_files(tmp_path, [bytes(1000)]))
    reads.wait_for(AHEAD)
    hasher.stop()
    assert not hasher.is_alive()
    assert reads.total == AHEAD
    assert result_of(hasher) == []
    hasher.stop()


def test_a_file_that_has_grown_or_shrunk(tmp_path: Path, start: Start) -> None:
    paths = write_files(tmp_path, [b"a" * 100, b"b" * 100, b"c" * 100])
    hasher = SourceHasher(paths)
    paths[0].write_bytes(b"a" * 300)
    paths[1].write_bytes(b"b" * 10)
    paths[2].write_bytes(b"c" * 5000)
    hasher.start()
    assert result_of(hasher) == [sha256(b"a" * 300), sha256(b"b" * 10), sha256(b"c" * 5000)]


def test_a_file_that_vanishes(tmp_path: Path, reads: Reads, start: Start) -> None:
    paths = write_files(tmp_path, [bytes(100), bytes(100)])
    hasher = start(paths)
    reads.wait_for(AHEAD)
    paths[1].unlink()
    with pytest.raises(
        CheckpointError, match=r"1\.bin: cannot be read while it is hashed \(No such file or directory\)"
    ):
        result_of(hasher)


def test_a_disk_that_fails(tmp_path: Path, reads: Reads, start: Start) -> None:
    reads.fail_at = 48
    hasher = start(write_files(tmp_path, [bytes(100)]))
    with pytest.raises(CheckpointError, match=r"0\.bin: cannot be read while it is hashed \(Input/output error\)"):
        result_of(hasher)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none: cannot be read while it is hashed \(No such file or directory\)"):
        SourceHasher([tmp_path / "none"])
