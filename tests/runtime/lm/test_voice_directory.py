"""States of voices on disk: what is not whole, not one's own or another's is passed over, and no disk is no error."""

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from miso_gguf.native.device import Device
from miso_gguf.native.llama import LlamaOptions
from miso_gguf.runtime.bundle import open_level
from miso_gguf.runtime.lm import voice_directory as module
from miso_gguf.runtime.lm.voice_directory import VoiceDirectory, state_identity

KEYS = [b"a voice", b"and another"]
STATE = bytes(range(256)) * 8


def write(path: Path, keys: list[bytes] = KEYS, state: bytes = STATE, **options: int) -> Path:
    """Keep a state, and wait for it: the file that appears."""
    before = set(path.glob("*"))
    directory = VoiceDirectory(path, b"model", **options)
    directory.save(keys, state)
    directory.close()
    (new,) = set(path.glob("*")) - before
    return new


def test_another_process_reads_what_one_has_written(tmp_path: Path) -> None:
    file = write(tmp_path / "some" / "voices")
    directory = VoiceDirectory(file.parent, b"model")
    assert not directory.holds(KEYS)
    assert directory.load(KEYS) == STATE
    assert directory.holds(KEYS)
    for other in ([b"a voice"], KEYS[::-1], [b"a voiceand another"], [b"a voic", b"eand another"], []):
        assert directory.load(other) is None
    assert VoiceDirectory(file.parent, b"another model").load(KEYS) is None
    assert len(file.stem) == 64
    if os.name == "posix":
        assert (file.parent.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


def flipped(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def linked(file: Path) -> None:
    target = file.with_name("elsewhere")
    file.rename(target)
    file.symlink_to(target)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the state": (lambda file: flipped(file, -1), "its sha256 is another"),
    "the sha256": (lambda file: flipped(file, 50), "its sha256 is another"),
    "the magic": (lambda file: flipped(file, 0), "not whole, or not of this voice and model"),
    "the format": (lambda file: flipped(file, 8), "not whole, or not of"),
    "the key": (lambda file: flipped(file, 12), "not whole, or not of"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "not whole, or not of"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"0"), "not whole, or not of"),
    "no header": (lambda file: file.write_bytes(b"miso-kv"), "7 bytes"),
    "empty": (lambda file: file.write_bytes(b""), "0 bytes"),
    "a link": (linked, "symbolic link"),
    "a pipe": (pipe, "not a file"),
    "a folder": (folder, "Is a directory"),
    "others may write it": (lambda file: file.chmod(0o620), "others own it or may write it"),
}


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and modes")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_of_no_use_is_passed_over_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    file = write(tmp_path)
    damage, reason = DAMAGES[name]
    damage(file)
    directory = VoiceDirectory(tmp_path, b"model")
    with caplog.at_level(logging.WARNING):
        assert directory.load(KEYS) is directory.load(KEYS) is None
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    assert not directory.holds(KEYS)
    if file.is_dir():
        return
    directory.save(KEYS, STATE)
    directory.close()
    assert directory.load(KEYS) == STATE
    assert not file.is_symlink()


def test_another_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 12345, raising=False)
    assert VoiceDirectory(tmp_path, b"model").load(KEYS) is None
    assert "others own it" in caplog.text


def test_a_file_of_another_voice_under_this_ones_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, other = write(tmp_path), write(tmp_path, [b"other"])
    other.replace(file)
    assert VoiceDirectory(tmp_path, b"model").load(KEYS) is None
    assert "not of this voice and model" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    directory = VoiceDirectory(tmp_path, b"model")
    directory.save(KEYS, STATE)
    directory.close()
    assert [os.strerror(number) in record.getMessage() for record in caplog.records] == [True]
    assert list(tmp_path.iterdir()) == []
    assert directory.load(KEYS) is None


def test_a_path_that_is_no_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    directory = VoiceDirectory(path, b"model")
    assert directory.load(KEYS) is None
    directory.save(KEYS, STATE)
    directory.close()
    assert len(caplog.records) == 2
    assert path.read_text() == "mine"


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    """Of other names nothing is touched; of ours what a killed process left goes when it is old."""
    size = module._HEADER.size + len(STATE)
    files = [write(tmp_path, [bytes([number])], most_bytes=3 * size) for number in range(3)]
    for age, file in enumerate(files):
        os.utime(file, (1e9 + age, 1e9 + age))
    mine, old, fresh = (tmp_path / name for name in ("mine.txt", f"{'a' * 64}.miso-kv.01234567.miso-partial", "x"))
    fresh = old.with_name(old.name.replace("0123", "3210"))
    for file in (mine, old, fresh):
        file.write_bytes(STATE * 9)
    os.utime(old, (1e9, 1e9))
    os.utime(mine, (1e9, 1e9))
    assert VoiceDirectory(tmp_path, b"model").load([b"\0"]) == STATE
    new = write(tmp_path, most_bytes=3 * size)
    assert set(tmp_path.iterdir()) == {files[0], files[2], new, mine, fresh}
    directory = VoiceDirectory(tmp_path, b"model", size - 1)
    directory.save([b"too large"], STATE)
    directory.close()
    assert not directory.holds([b"too large"])


def test_what_cannot_be_deleted_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / f"{'0' * 64}.miso-kv"
    folder.mkdir()
    os.utime(folder, (1, 1))
    size = module._HEADER.size + len(STATE)
    oldest = write(tmp_path, [b"0"])
    os.utime(oldest, (2, 2))
    new = write(tmp_path, [b"1"], most_bytes=folder.stat().st_size + size)
    assert set(tmp_path.iterdir()) == {folder, new}
    assert not caplog.records


def test_many_may_write_at_once(tmp_path: Path) -> None:
    directories = [VoiceDirectory(tmp_path, b"model", 3 * (module._HEADER.size + len(STATE))) for _ in range(4)]
    for number in range(8):
        for directory in directories:
            directory.save([bytes([number])], STATE)
    for directory in directories:
        directory.close()
    assert len(list(tmp_path.iterdir())) == 3
    loaded = [directories[0].load([bytes([number])]) for number in range(8)]
    assert loaded.count(STATE) == 3
    assert loaded.count(None) == 5


def test_what_a_state_depends_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [open_level(bundle, key) for key in ("f32", "q8_0")]
    options = LlamaOptions(threads=1)
    gpu = Device(0, "CUDA0", "card", "gpu")
    found = [state_identity(levels[0], options, None, 64) for _ in range(2)]
    assert found[0] == found[1]
    changed = [
        {"kv_type": "q8_0"}, {"exact": True}, {"repack": True}, {"threads": 2}, {"gpu_layers": 0}, {"sequences": 2},
    ]  # fmt: skip
    found += [state_identity(levels[0], replace(options, **change), None, 64) for change in changed]  # type: ignore[arg-type]
    found.append(state_identity(levels[1], options, None, 64))
    found.append(state_identity(levels[0], options, gpu, 64))
    found.append(state_identity(levels[0], options, None, 128))
    for name in ("build_text", "__version__"):
        monkeypatch.setattr(module, name, (lambda: "another") if name == "build_text" else "another")
        found.append(state_identity(levels[0], options, None, 64))
    assert len(set(found[1:])) == len(found) - 1
