"""What was measured so far, kept so that a killed run goes on where it stopped: one record a clip, in JSON lines.

A store is a directory of parts. A process appends to a part of its own, and reads all of them; each line goes to disk
before `append` returns. It does not know what the values mean.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...core.closing import Closing
from ...core.errors import MisoError
from ...core.files import sync_directory
from ...core.lock import locked
from .record import Record, RecordKey

SCHEMA_VERSION = 2
_PREFIX, _SUFFIX = "records-", ".jsonl"
_HEADER_START = b'{"miso_records":'


class RecordError(MisoError):
    """The stored records cannot be used: damaged, contradictory, or of another plan."""


def plan_fingerprint(**plan: Any) -> str:
    """Identifies what records may be mixed: hashes of bundle and corpus, settings. Any JSON; the order is no matter."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Records(Closing):
    """An open store. A context manager. One thread at a time; other processes may have other parts of it open."""

    def __init__(self, directory: Path, fingerprint: str, part: str) -> None:
        """See `open`."""
        self.directory, self._fingerprint = directory, fingerprint
        self._path = directory / f"{_PREFIX}{part}{_SUFFIX}"
        self._lock = ExitStack()
        self._file: int | None = None
        self._records: dict[RecordKey, Record] = {}
        try:
            self._lock.enter_context(locked(directory / f".{part}.lock"))
        except BlockingIOError as error:
            raise RecordError(
                f"{self._path}: another run is writing to it. Wait for it, or give another --out"
            ) from error
        try:
            self.refresh()
            self._end = _cut_torn_end(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
            if not self._end:
                self._write(_header(fingerprint))
                sync_directory(directory)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, directory: Path, fingerprint: str, *, part: str = "main") -> "Records":
        """Open the store in `directory`, or begin one.

        A last line that was not written whole is dropped. `part` is the name of this process's own file, a plain word.

        Raises:
            RecordError: If another process has this part open, a line is damaged, two records contradict each other, or
                the records are of another plan than `fingerprint`.
            ValueError: If `part` is no plain word.
            OSError: If it cannot be read or written.
        """
        if not part.isalnum():
            raise ValueError(f"a part is called by letters and digits, not {part!r}")
        directory.mkdir(parents=True, exist_ok=True)
        return cls(directory, fingerprint, part)

    def close(self) -> None:
        """Close this process's part. Idempotent. What was read can still be asked for."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._lock.close()

    def refresh(self) -> None:
        """Read what all processes have written by now. Raises as `open`."""
        found: dict[RecordKey, Record] = {}
        for path in _parts(self.directory):
            for number, record in _read(path, self._fingerprint):
                _add(found, record, f"{path}, line {number}")
        self._records = found

    def append(self, record: Record) -> None:
        """Keep `record`: when this returns, it is on disk. One that is there already is not written again.

        Raises:
            RecordError: If a different record of the same clip is there, or the store is closed.
            OSError: If it could not be written (a full disk): nothing of it is kept, and all that was there is.
        """
        if self._file is None:
            raise RecordError(f"{self._path}: is closed: nothing more can be kept in it")
        if record.key in self._records:
            _add(self._records, record, "this run")
            return
        self._write(_line(record))
        self._records[record.key] = record

    def get(self, key: RecordKey) -> Record | None:
        """The record of `key`, if there is one."""
        return self._records.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """All of them by key: in the same order, whoever wrote them and when."""
        return iter([self._records[key] for key in sorted(self._records)])

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except BaseException as error:
            try:
                os.ftruncate(self._file, self._end)
            except OSError:
                # What follows half a line would be damaged with it. Opening the store again drops the half.
                self.close()
            if isinstance(error, OSError):
                raise OSError(
                    error.errno,
                    f"{error.strerror}: a record could not be kept, the {len(self)} before it are safe: "
                    "make room and run again to go on",
                    str(self._path),
                ) from error
            raise
        self._end += len(line)


def read_records(directory: Path) -> list[Record]:
    """What is in the store of a finished run, whatever its plan was, in the order of the keys.

    Nothing is locked, and nothing written.

    Raises:
        FileNotFoundError: If there is no store.
        RecordError: As `Records.open`.
    """
    found: dict[RecordKey, Record] = {}
    if not (parts := _parts(directory)):
        raise FileNotFoundError(f"{directory}: holds no records; `miso-eval run` keeps them in --out, in records/")
    for path in parts:
        for number, record in _read(path, None):
            _add(found, record, f"{path}, line {number}")
    return [found[key] for key in sorted(found)]


def _parts(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(f"{_PREFIX}*{_SUFFIX}") if path.is_file())


def _header(fingerprint: str) -> bytes:
    return (
        json.dumps({"miso_records": SCHEMA_VERSION, "fingerprint": fingerprint}, separators=(",", ":")).encode() + b"\n"
    )


def _line(record: Record) -> bytes:
    text = json.dumps(asdict(record), separators=(",", ":"), allow_nan=False)
    return f'{{"crc32":"{zlib.crc32(text.encode()):08x}","record":{text}}}\n'.encode()


def _cut_torn_end(path: Path) -> int:
    """Drop what comes after the last whole line; how many bytes are left."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    return end


def _read(path: Path, fingerprint: str | None) -> Iterator[tuple[int, Record]]:
    """Line numbers and records of one part. What comes after the last whole line may still be being written."""
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()
    if not lines:
        if not torn.startswith(_HEADER_START) and not _HEADER_START.startswith(torn):
            raise RecordError(f"{path}: is no file of records, and would be overwritten. Give another --out")
        return
    _check_header(lines[0], path, fingerprint, len(lines) - 1)
    for number, line in enumerate(lines[1:], 2):
        yield number, _parsed(line, f"{path}, line {number}")


def _check_header(line: bytes, path: Path, fingerprint: str | None, count: int) -> None:
    """`fingerprint` is of the plan that the records must be of; None for any."""
    try:
        header = json.loads(line)
        version, found = header["miso_records"], header["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}, line 1: is damaged. Give another --out, or {_FRESH}") from error
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path}: is of version {version!r}, this program writes {SCHEMA_VERSION}. Give another --out, or {_FRESH}"
        )
    if fingerprint is not None and found != fingerprint:
        raise RecordError(
            f"{path}: its {count} records are of another plan ({str(found)[:12]}, now {fingerprint[:12]}): the bundle, "
            "the corpus, the settings, the device, a library or the source that measures has changed since. "
            f"Give another --out, or {_FRESH}"
        )


def _parsed(line: bytes, where: str) -> Record:
    try:
        entry = json.loads(line)
        record = Record(**entry["record"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{where}: is damaged. {_REMEDY}") from error
    if _line(record) != line + b"\n":
        raise RecordError(f"{where}: is damaged: its checksum says that it was changed. {_REMEDY}")
    return record


def _add(records: dict[RecordKey, Record], record: Record, where: str) -> None:
    """Raises `RecordError` if there is another record of the same clip."""
    known = records.setdefault(record.key, record)
    if known != record:
        raise RecordError(
            f"{where}: {record.name} was measured twice, with different results. {_REMEDY} If it comes again, the "
            "machine computes differently from time to time: use fewer threads"
        )


_FRESH = "start again with --fresh, which forgets them"
_REMEDY = f"Delete the line to measure that clip again, or {_FRESH}."
