"""Uploaded voices outlive the process, whatever ends it; no request leaves their directory."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from voicing import voice

from miso_gguf.runtime.voice import Voice
from miso_gguf.serve.errors import ApiError
from miso_gguf.serve.voices.store import ID, VoiceStore


def names(store: VoiceStore) -> set[str]:
    return {each.name for each in store.all()}


def test_a_voice_is_there_until_it_is_deleted(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path / "a" / "b", most=9)
    kept = store.add(voice(3))
    assert ID.fullmatch(kept.id)
    assert kept.as_dict() == {"object": "audio.voice", "id": kept.id, "name": "voice 3", "created_at": kept.created_at}
    path = tmp_path / "a" / "b" / f"{kept.id}.safetensors"
    assert kept.created_at == int(path.stat().st_mtime)
    again = VoiceStore(tmp_path / "a" / "b", most=9)
    assert again.all() == [kept] == store.all()
    assert again.get(kept.id) == kept
    assert again.load(kept.id).digest == voice(3).digest
    again.delete(kept.id)
    assert not path.exists()
    for use in (store.get, store.load, store.delete):
        with pytest.raises(ApiError, match="the id voice_") as caught:
            use(kept.id)
        assert caught.value.status == 404
    assert store.all() == []


def test_another_process_is_seen_and_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = VoiceStore(tmp_path, most=9), VoiceStore(tmp_path, most=9)
    kept = theirs.add(voice(1))
    assert ours.all() == [kept]
    with monkeypatch.context() as patch:
        patch.setattr(Voice, "load", lambda _path: pytest.fail("nothing has changed"))
        assert ours.all() == [kept]
    voice(2).save(tmp_path / f"{kept.id}.safetensors")
    assert names(ours) == {"voice 2"}
    theirs.delete(kept.id)
    assert ours.all() == []


def test_what_is_damaged_is_left_out_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = VoiceStore(tmp_path, most=9)
    broken, whole = store.add(voice(1)), store.add(voice(2))
    path = tmp_path / f"{broken.id}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "voice_0.safetensors").write_text("of nobody")
    (tmp_path / f"{whole.id}.safetensors.bak").write_text("of nobody")
    for _ in range(3):
        assert store.all() == [whole]
    assert [record.message.split(":")[0] for record in caplog.records] == ["an uploaded voice is left out"]
    with pytest.raises(ApiError):
        store.load(broken.id)
    store.delete(broken.id)


def test_a_directory_that_is_gone_has_no_voices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = VoiceStore(tmp_path / "voices", most=9)
    kept = store.add(voice(1))
    (tmp_path / "voices").rename(tmp_path / "elsewhere")
    assert store.all() == []
    assert "cannot be read" in caplog.text
    (tmp_path / "elsewhere").rename(tmp_path / "voices")
    assert store.all() == [kept]


def test_what_cannot_be_read_for_a_while_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a process has no descriptor left: nothing is taken for absent or damaged for ever."""
    kept = VoiceStore(tmp_path, most=9).add(voice(1))
    store = VoiceStore(tmp_path, most=9)
    with monkeypatch.context() as short:
        short.setattr(Voice, "load", mock.Mock(side_effect=ValueError("too many open files")))
        assert store.all() == []
    assert store.all() == [kept]
    with monkeypatch.context() as short:
        short.setattr(Path, "iterdir", mock.Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
        for use in (store.all, lambda: store.add(voice(1)), lambda: store.check_room("voice 1")):
            with pytest.raises(ApiError, match="voices cannot be read") as caught:
                use()
            assert (caught.value.status, caught.value.code) == (503, "storage")
    assert store.all() == [kept]


def test_limits_and_names_are_kept(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path, most=2)
    store.add(voice(1, "Anna"))
    with pytest.raises(ApiError, match="'ANNA' already") as caught:
        store.add(voice(2, "ANNA"))
    assert (caught.value.status, caught.value.param) == (400, "name")
    first = store.add(voice(2))
    with pytest.raises(ApiError, match="keeps 2 uploaded voices") as caught:
        store.check_room("another")
    assert (caught.value.status, caught.value.code) == (403, "voice_limit")
    store.delete(first.id)
    store.add(voice(3))


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: voices cannot be kept there \(File exists\)"):
        VoiceStore(tmp_path / "file", most=1)


def test_a_disk_that_is_full_is_no_fault_of_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VoiceStore(tmp_path, most=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ApiError, match="the server's log says why") as caught:
            store.add(voice())
    assert caught.value.status == 507
    assert [*tmp_path.iterdir()] == []
    store.add(voice())


@pytest.mark.skipif(sys.platform == "win32", reason="directories are not synced there")
def test_what_is_said_to_be_done_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, synced, fsync = VoiceStore(tmp_path, most=1), list[str](), os.fsync

    def seen(handle: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    kept = store.add(voice())
    assert synced == ["file", "directory"]
    store.delete(kept.id)
    assert synced == ["file", "directory", "directory"]


@settings(max_examples=examples(50))
@given(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(["../victim", "victim", "..", "", "/etc/passwd", "voice_" + "A" * 24, "voice_" + "٣" * 24]),
        st.from_regex(r"voice_[0-9a-f]{24}\s", fullmatch=True),
    )
)
def test_no_path_of_a_request_reaches_the_disk(tmp_path_factory: pytest.TempPathFactory, id: str) -> None:
    base = tmp_path_factory.getbasetemp() / "traversal"
    base.mkdir(exist_ok=True)
    voice().save(base / "victim.safetensors")
    store = VoiceStore(base / "voices", most=1)
    for use in (store.get, store.load, store.delete):
        with pytest.raises(ApiError) as caught:
            use(id)
        assert caught.value.status == 404
        caught.value.message.encode()
    assert (base / "victim.safetensors").exists()


def test_threads_race_and_every_voice_is_whole(tmp_path: Path) -> None:
    store, most = VoiceStore(tmp_path, most=12), 12
    added, one_name, refused, failures = list[str](), list[str](), list[ApiError](), list[BaseException]()

    def add(number: int, name: str | None = None) -> str | None:
        try:
            return store.add(voice(number, name)).id
        except ApiError as error:
            refused.append(error)
            return None

    def run(thread: int) -> None:
        try:
            for number in range(6):
                one_name.extend(filter(None, [add(999, "the same")]))
                kept = add(100 * thread + number)
                there = store.all()
                assert len(there) <= most
                for each in there:
                    with suppress(ApiError):  # deleted meanwhile
                        assert store.load(each.id).name == each.name
                if kept is not None and number % 2:
                    store.delete(kept)
                elif kept is not None:
                    added.append(kept)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {error.code for error in refused} <= {"name_taken", "voice_limit"}
    assert len(one_name) == 1
    assert {each.id for each in store.all()} == {*added, *one_name}


_SAVES = """
import os, signal, sys
from pathlib import Path
from unittest import mock
from voicing import voice
from miso_gguf.serve.voices.store import VoiceStore
store = VoiceStore(Path(sys.argv[1]), most=1 << 20)
def end(*_): os.kill(os.getpid(), signal.SIGKILL)
print(store.add(voice(0)).id, flush=True)
if sys.argv[2] == "written": os.fsync = end
if sys.argv[2] == "synced": Path.replace = end
if sys.argv[2] == "half":
    real = open
    class Half:
        def __init__(self, file): self.file = file
        def write(self, data): self.file.write(data[:len(data) // 2]); self.file.flush(); end()
    import contextlib, miso_gguf.core.files as files
    whole = files.open_whole
    @contextlib.contextmanager
    def half(path):
        with whole(path) as file: yield Half(file)
    files.open_whole = half
number = 1
while True:
    print(store.add(voice(number)).id, flush=True)
    number += 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    "moment", ["half", *(pytest.param(moment, marks=pytest.mark.long) for moment in ("written", "synced", "after 30"))]
)
def test_killed_while_it_saves_a_voice_is_whole_or_absent(moment: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _SAVES, str(tmp_path), moment]
    said = list[str]()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.strip())
            if moment.startswith("after") and len(said) > int(moment.split()[1]):
                process.kill()
                break
        said += [line.strip() for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -signal.SIGKILL
    partial = [*tmp_path.glob("*.miso-partial")]
    assert len(partial) == (moment in ("half", "written", "synced")) or moment.startswith("after")
    store = VoiceStore(tmp_path, most=9)
    there = {each.id: each for each in store.all()}
    assert {*said} <= {*there}, "what was said to be kept is kept"
    assert len(there) - len(said) in (0, 1)
    for id, each in there.items():
        assert store.load(id).digest == voice(int(each.name.split()[1])).digest
    assert [*tmp_path.glob("*.miso-partial")] == partial, "another process may be writing it"
    for path in partial:
        os.utime(path, (1, 1))
    assert len(VoiceStore(tmp_path, most=9).all()) == len(there)
    assert not [*tmp_path.glob("*.miso-partial")]
