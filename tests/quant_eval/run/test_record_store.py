"""The store of records: nothing that was appended is lost, whatever happens after, and nothing else is believed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.quant_eval.run.record import Record, RecordKey
from miso_gguf.quant_eval.run.record_store import RecordError, Records, plan_fingerprint, read_records

PLAN = plan_fingerprint(bundle="b", corpus="c", settings={"top_k": 50})


def record(index: int, level: str = "q8_0", **fields: Any) -> Record:
    values = {"kld_cb0": 0.1 * index, "top1": 97.5}
    return Record("logits", level, f"p{index:02d}", 7, values, {"kld_cb0": 40.0}, {"counts": [index, 2]}, **fields)


def records(count: int) -> list[Record]:
    return [record(index) for index in range(count)]


def written(directory: Path, count: int) -> Path:
    """A store that was closed properly; its one part."""
    with Records.open(directory, PLAN) as store:
        for each in records(count):
            store.append(each)
    return directory / "records-main.jsonl"


def test_what_is_appended_is_there_and_after_opening_again(tmp_path: Path) -> None:
    first = record(1, files={"audio": "clips/p01.wav"})
    with Records.open(tmp_path / "new" / "store", PLAN) as store:
        assert (len(store), list(store), store.get(first.key)) == (0, [], None)
        store.append(first)
        assert store.get(RecordKey("logits", "q8_0", "p01", 7)) is first
    with Records.open(tmp_path / "new" / "store", PLAN) as store:
        assert list(store) == [first]
        assert first.key in store
        assert RecordKey("logits", "q8_0", "p01", 8) not in store


def test_each_record_is_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, sync = os.write, os.fsync

    def noted_write(fd: int, data: bytes) -> int:
        calls.append("write")
        return write(fd, data)

    def noted_sync(fd: int) -> None:
        calls.append("fsync")
        sync(fd)

    monkeypatch.setattr(os, "write", noted_write)
    monkeypatch.setattr(os, "fsync", noted_sync)
    with Records.open(tmp_path, PLAN) as store:
        calls.clear()
        store.append(record(1))
        assert calls == ["write", "fsync"]
        assert len((tmp_path / "records-main.jsonl").read_bytes().splitlines()) == 2


def test_the_order_is_that_of_the_keys(tmp_path: Path) -> None:
    kinds = [
        ("logits", "q8_0", "b", 2),
        ("free", "q8_0", "a", 1),
        ("logits", "fp16", "a", 10),
        ("logits", "q8_0", "b", 1),
    ]
    with Records.open(tmp_path, PLAN) as store:
        for stage, level, prompt, seed in kinds:
            store.append(Record(stage, level, prompt, seed, {}))
        assert [tuple(each.key) for each in store] == sorted(kinds)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A part with three records."""
    return written(tmp_path_factory.mktemp("whole"), 3).read_bytes()


@given(st.data())
@settings(max_examples=examples(80), deadline=None)
def test_cut_anywhere_the_whole_lines_are_there(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """What a kill or a full disk leaves: then the store opens, goes on, and is what it would have been."""
    directory = tmp_path_factory.mktemp("store")
    path = directory / "records-main.jsonl"
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = max(0, whole[:cut].count(b"\n") - 1)
    with Records.open(directory, PLAN) as store:
        assert list(store) == records(kept)
        for each in records(3):
            store.append(each)
    assert path.read_bytes() == whole


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_no_changed_byte_is_believed(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("store")
    path = directory / "records-main.jsonl"
    content = bytearray(whole)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        store = Records.open(directory, PLAN)
    except RecordError:
        return
    # Only where the last newline went, which looks like a line that was never finished.
    with store:
        assert list(store) == records(2)


@given(
    st.dictionaries(st.text(min_size=1), st.floats(allow_nan=False, allow_infinity=False)),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(), st.lists, max_leaves=5),
)
@settings(max_examples=examples(30), deadline=None)
def test_any_values_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, float], detail: object
) -> None:
    directory = tmp_path_factory.mktemp("store")
    kept = Record("free", "q4_0", "\N{SNOWMAN}\n\u2028", 2**64 - 1, values, {}, {"x": detail})
    with Records.open(directory, PLAN) as store:
        store.append(kept)
    with Records.open(directory, PLAN) as store:
        assert list(store) == [kept]


def test_a_line_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (
        b"\0\0\0\n",
        b"[]\n",
        b'{"crc32":"0","record":{"stage":1}}\n',
        lines[2].replace(b"97.5", b"98.5"),
        b"\n",
    ):
        path.write_bytes(b"".join([*lines[:2], bad, *lines[3:]]))
        with pytest.raises(RecordError, match=r"records-main\.jsonl, line 3: is damaged.*Delete the line.*--fresh"):
            Records.open(tmp_path, PLAN)
        assert path.read_bytes().endswith(lines[3])
    # What the message says helps.
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with Records.open(tmp_path, PLAN) as store:
        assert list(store) == [record(0), record(2)]


def test_records_of_another_plan(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    before = path.read_bytes()
    other = plan_fingerprint(bundle="b", corpus="c", settings={"top_k": 51})
    with pytest.raises(RecordError, match=f"its 3 records are of another plan .{PLAN[:12]}, now {other[:12]}.*--fresh"):
        Records.open(tmp_path, other)
    assert path.read_bytes() == before
    path.unlink()  # as --fresh does
    with Records.open(tmp_path, other) as store:
        assert len(store) == 0
        store.append(record(9))
    with Records.open(tmp_path, other) as store:
        assert list(store) == [record(9)]


def test_another_version_of_the_format(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    path.write_bytes(path.read_bytes().replace(b'"miso_records":2', b'"miso_records":1'))
    with pytest.raises(RecordError, match="is of version 1, this program writes 2"):
        Records.open(tmp_path, PLAN)


@pytest.mark.parametrize("content", [b"my notes", b"my notes\nand more\n", b"\xff\xfe\n"])
def test_a_file_of_someone_else_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records-main.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"records-main\.jsonl"):
        Records.open(tmp_path, PLAN)
    assert path.read_bytes() == content


def test_the_fingerprint_is_of_the_plan_only() -> None:
    assert plan_fingerprint(a=1, b=[2.5, "x"]) == plan_fingerprint(b=[2.5, "x"], a=1)
    assert len({plan_fingerprint(a=1), plan_fingerprint(a=2), plan_fingerprint(b=1), plan_fingerprint(a="1")}) == 4
    with pytest.raises(ValueError, match="not JSON compliant"):
        plan_fingerprint(a=float("nan"))


def test_parts_of_several_processes_are_merged(tmp_path: Path) -> None:
    with Records.open(tmp_path, PLAN, part="w0") as one, Records.open(tmp_path, PLAN, part="w1") as two:
        one.append(record(2))
        two.append(record(1))
        two.append(record(2))  # measured twice, with the same result: harmless
        assert len(one) == 1
        one.refresh()
        assert list(one) == [record(1), record(2)]
    with Records.open(tmp_path, PLAN) as store:
        assert list(store) == [record(1), record(2)]


def test_a_finished_store_is_read_whatever_its_plan_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no records"):
        read_records(tmp_path)
    with Records.open(tmp_path, PLAN, part="w0") as one, Records.open(tmp_path, PLAN, part="w1") as two:
        one.append(record(2))
        two.append(record(1))
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert read_records(tmp_path) == [record(1), record(2)]
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    written(tmp_path / "other", 1).write_bytes(b"{}\n")
    with pytest.raises(RecordError):
        read_records(tmp_path / "other")


def test_a_line_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records-w0.jsonl"
    with Records.open(tmp_path, PLAN, part="w0") as one:
        one.append(record(1))
        with path.open("ab") as file:
            file.write(b'{"crc32":"12')
        unfinished = path.read_bytes()
        with Records.open(tmp_path, PLAN, part="w1") as two:
            assert list(two) == [record(1)]
    assert path.read_bytes() == unfinished


def test_a_part_has_one_writer(tmp_path: Path) -> None:
    with Records.open(tmp_path, PLAN), pytest.raises(RecordError, match="another run is writing to it"):
        Records.open(tmp_path, PLAN)
    Records.open(tmp_path, PLAN).close()


def test_records_that_contradict_each_other(tmp_path: Path) -> None:
    other = Record("logits", "q8_0", "p01", 7, {"kld_cb0": 0.5})
    with Records.open(tmp_path, PLAN, part="w0") as one, Records.open(tmp_path, PLAN, part="w1") as two:
        one.append(record(1))
        one.append(record(1))
        with pytest.raises(
            RecordError, match="logits of p01 at q8_0, seed 7 was measured twice, with different results"
        ):
            one.append(other)
        assert list(one) == [record(1)]
        two.append(other)
    with pytest.raises(
        RecordError, match=r"records-w1\.jsonl, line 2: logits of p01 at q8_0, seed 7 was measured twice"
    ):
        Records.open(tmp_path, PLAN)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Some bytes still fit: they must not be what the next record is glued to."""
    path = written(tmp_path, 2)
    before = path.read_bytes()
    write, left = os.write, [room]

    def full(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(fd, bytes(data[: left[0]]))
        left[0] -= count
        return count

    with Records.open(tmp_path, PLAN) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(
                OSError, match="No space left on device: a record could not be kept, the 2 before"
            ) as caught:
                store.append(record(5))
            assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert record(5).key not in store
        store.append(record(6))
    with Records.open(tmp_path, PLAN) as store:
        assert list(store) == [record(0), record(1), record(6)]


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Records.open(tmp_path, PLAN) as store, monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
        store.append(record(1))
    with Records.open(tmp_path, PLAN) as store:
        assert list(store) == [record(1)]


def test_a_disk_that_fails_altogether_closes_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Records.open(tmp_path, PLAN) as store:
        store.append(record(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            patch.setattr(os, "ftruncate", fail)
            with pytest.raises(OSError, match="Input/output error"):
                store.append(record(2))
        with pytest.raises(RecordError, match="is closed"):
            store.append(record(2))
        assert list(store) == [record(1)]


KILLED = """
import sys
from itertools import count
from pathlib import Path
from miso_gguf.quant_eval.run.record import Record
from miso_gguf.quant_eval.run.record_store import Records
with Records.open(Path(sys.argv[1]), sys.argv[2]) as store:
    for index in count(len(store)):
        store.append(Record("free", "q4_0", f"p{index:06d}", 0, {"x": index * 0.1}, {}, {"long": [index] * 2000}))
        print(index, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_killed_again_and_again(tmp_path: Path) -> None:
    acknowledged = -1
    for turn in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, PLAN], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * turn)
        process.send_signal(signal.SIGKILL)
        acknowledged = max(acknowledged, *map(int, process.stdout.read().split()), -1)
        process.wait()
        process.stdout.close()
    with Records.open(tmp_path, PLAN) as store:
        found = list(store)
    assert len(found) > acknowledged > 0
    assert [each.detail["long"][0] for each in found] == list(range(len(found)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": {"top1": float("nan")}}, "logits of p at q8_0, seed 1: value top1 is nan: leave out"),
        ({"values": {"top1": float("-inf")}}, "value top1 is -inf"),
        ({"values": {"top1": 1.0}, "weights": {"top1": float("inf")}}, "weight top1 is inf"),
        ({"values": {"top1": 1.0}, "weights": {"top1": -1.0}}, "weight -1.0 of top1: expected one >= 0"),
        (
            {"values": {"top1": 1.0}, "weights": {"kld_cb0": 1.0}},
            "of kld_cb0: expected one >= 0 of a value that exists",
        ),
        ({"detail": {"x": float("nan")}}, "detail must be JSON with finite numbers"),
        ({"detail": {"x": b"raw"}}, "detail must be JSON"),
        ({"files": {"audio": "/etc/passwd"}}, "file audio must be a path below the store"),
        ({"files": {"audio": "../x.wav"}}, "file audio must be a path below the store"),
        ({"stage": ""}, "the stage of a record must be a name, not ''"),
        ({"prompt": 3}, "the prompt of a record must be a name, not 3"),
        ({"seed": -1}, "the seed must be a whole number"),
        ({"seed": 2**64}, "the seed must be a whole number"),
        ({"seed": True}, "the seed must be a whole number, 0 to .*, not True"),
    ],
)
def test_what_is_no_record(fields: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {"stage": "logits", "level": "q8_0", "prompt": "p", "seed": 1, "values": {}, **fields}
    with pytest.raises(ValueError, match=message):
        Record(**whole)


def test_lines_are_plain_json(tmp_path: Path) -> None:
    """Others may read them, with any JSON parser."""
    header, line = written(tmp_path, 1).read_text("utf-8").splitlines()
    assert json.loads(header) == {"miso_records": 2, "fingerprint": PLAN}
    assert json.loads(line)["record"]["values"] == {"kld_cb0": 0.0, "top1": 97.5}


@pytest.mark.parametrize("part", ["", "../up", "a b", "x-y"])
def test_names_of_parts(tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match="letters and digits"):
        Records.open(tmp_path, PLAN, part=part)
