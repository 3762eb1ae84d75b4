"""Speech to a sound file, chunk by chunk while it is being spoken. The formats are libsndfile's.

Knows no codec and no model; raw samples for a player are `pipe.py`'s.
"""

import logging
import os
import shutil
import struct
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import soundfile

from ...core.errors import MisoError
from ...core.files import PARTIAL_SUFFIX
from ...models.mimi import SAMPLE_RATE_HZ
from .samples import RATES_HZ, Resampler, Samples, checked, silence, to_pcm16

log = logging.getLogger(__name__)

_WRITABLE = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
ENDINGS = tuple(_WRITABLE)
"""Of the names of files that can be written."""
_OF_USE_WHEN_CUT = ("WAV", "OGG")
"""Formats of which any reader takes a file whose end is missing."""
_UNKNOWN_LENGTH = 1 << 40
"""libsndfile reports such lengths for files that were never finished."""
_LOOKED_AT_SAMPLES = 2400
_XING_BYTES = 64
"""Of the beginning of an MP3, where that header is: at offset 13 or 21."""
_FULL_DISK_BYTES = 1 << 20
_SYSTEM_ERROR = 2
"""Source: libsndfile's `SF_ERR_SYSTEM`."""


class SampleWriter(ABC):
    """What file and pipe share: any chunks in, another sample rate out, and what went past full scale counted.

    Attributes:
        samples_written: Samples handed on, at the output's rate.
        clipped: How many of them were limited to [-1, 1].
    """

    def __init__(self, sample_rate_hz: int, in_rate_hz: int) -> None:
        if sample_rate_hz not in RATES_HZ:
            raise ValueError(f"a sample rate of {sample_rate_hz} Hz cannot be written, expected 4000 to 192000")
        self.sample_rate_hz = sample_rate_hz
        self.samples_written = 0
        self.clipped = 0
        self._resampler = Resampler(in_rate_hz, sample_rate_hz)

    @property
    def seconds(self) -> float:
        """Length of what was written so far."""
        return self.samples_written / self.sample_rate_hz

    def write(self, samples: Samples) -> None:
        """Append samples `[n]` at the input's rate. Raises `ValueError` if they are not finite floats `[n]`."""
        self._take(self._resampler(checked(samples)))

    def _take(self, samples: Samples) -> None:
        if len(samples):
            self._emit(np.clip(samples, -1.0, 1.0))
            self.samples_written += len(samples)
            self.clipped += int(np.count_nonzero(np.abs(samples) > 1.0))

    @abstractmethod
    def _emit(self, samples: Samples) -> None:
        """Hand on samples at the output's rate, within [-1, 1]."""


class AudioWriter(SampleWriter):
    """Writes a sound file while the samples come, in the format that its name's ending (one of `ENDINGS`) says.

    A context manager. The file has its name only when it is closed: until then it is `.NAME.miso-partial` beside it.
    After an exception, and Ctrl-C, it is a valid file of what was written by then. If that is nothing there is none,
    nor if writing failed, unless the format bears to be cut: of a WAV or OGG on a full disk there is what had room.

    Args:
        path: The file to write; one that is there is replaced at the end.
        sample_rate_hz: Of the file.
        in_rate_hz: Of the samples.

    Raises:
        ValueError: The name's ending or the sample rate is not one that can be written. Said at once, not at the end.
        FileNotFoundError: The directory does not exist.
        MisoError: The file cannot be created; later, from `write` and `close`: the disk is full.
    """

    def __init__(
        self, path: str | os.PathLike[str], sample_rate_hz: int = SAMPLE_RATE_HZ, *, in_rate_hz: int = SAMPLE_RATE_HZ
    ) -> None:
        super().__init__(sample_rate_hz, in_rate_hz)
        self.path = Path(path)
        self._format, self._subtype = _checked_format(self.path)
        # Renaming over a link would put the file in the link's place.
        self._target = Path(os.path.realpath(self.path))
        if not self._target.parent.is_dir():
            raise FileNotFoundError(f"{self.path}: no directory {self._target.parent}. Create it, or write elsewhere.")
        if self._target.exists() and not self._target.is_file():
            raise ValueError(f"{self.path}: is there already and is not a file. Choose another name.")
        self._partial = self._target.with_name(f".{self._target.name}{PARTIAL_SUFFIX}")
        self._file: Any = self._open()
        self._inode = self._partial.stat().st_ino
        self._done = False
        self.is_kept = False
        """Whether the file has its name."""

    def _open(self) -> Any:
        try:
            # Another writer's file of this name stays the other's, which then notices.
            self._partial.unlink(missing_ok=True)
            self._partial.open("xb").close()
        except OSError as error:
            raise MisoError(f"{self.path}: cannot be created ({error.strerror}). Write elsewhere.") from error
        try:
            # By name, so that no Python runs inside libsndfile: Ctrl-C there would be swallowed.
            return soundfile.SoundFile(
                str(self._partial), "w", self.sample_rate_hz, 1, subtype=self._subtype, format=self._format
            )
        except soundfile.LibsndfileError as error:
            failure = self._failure(error)
            self._partial.unlink(missing_ok=True)
            if error.code == _SYSTEM_ERROR:
                raise failure from error
            raise ValueError(
                f"{self.path}: {self._format} cannot be written at {self.sample_rate_hz} Hz. "
                "24000 and 48000 work in every format."
            ) from error

    def _emit(self, samples: Samples) -> None:
        if self._done:
            raise ValueError(f"{self.path}: is finished, nothing can be added")
        try:
            self._file.write(to_pcm16(samples) if self._subtype == "PCM_16" else samples)
        except (soundfile.LibsndfileError, AssertionError) as error:  # the latter for a short write
            raise self._given_up(error) from error

    def close(self) -> None:
        """Finish the file and give it its name. Raises `MisoError` if it did not get to the disk whole."""
        if self._done:
            return
        try:
            self._take(self._resampler.rest())
            if not self.samples_written:
                # Without a sample FLAC and MP3 write no header.
                log.warning("%s: nothing was said, the file holds 80 ms of silence", self.path)
                self._take(silence(80, self.sample_rate_hz))
            self._file.close()
            with self._partial.open("rb+") as file:
                os.fsync(file.fileno())
                inode = os.fstat(file.fileno()).st_ino
            self._check_whole(inode)
            self._partial.replace(self._target)
            self._done = self.is_kept = True
        except (OSError, soundfile.LibsndfileError) as error:
            raise self._given_up(error) from error
        except BaseException:
            self.discard()
            raise

    def _given_up(self, error: BaseException | None) -> MisoError:
        """Writing failed: what got to the disk has the file's name if it is of use. What to say of it."""
        failure = self._failure(error)
        if self._done or self._format not in _OF_USE_WHEN_CUT:
            self.discard()
            return failure
        try:
            with suppress(soundfile.LibsndfileError):
                self._file.close()
            with soundfile.SoundFile(str(self._partial)) as file:
                frames = file.frames
                is_readable = 0 < frames < _UNKNOWN_LENGTH and len(file.read(dtype="int16")) == frames
            if is_readable and self._partial.stat().st_ino == self._inode:
                self._partial.replace(self._target)
                self._done, self.is_kept, self.samples_written = True, True, frames
                return self._failure(error, is_kept=True)
        except (OSError, soundfile.LibsndfileError):
            log.debug("%s: what there is of it cannot be read", self.path, exc_info=True)
        self.discard()
        return failure

    def _check_whole(self, inode: int) -> None:
        """A lost write while libsndfile closes is reported by nobody: the file is asked how long it is."""
        if inode != self._inode:
            raise MisoError(f"{self.path}: another program was writing it at the same time. Use different names.")
        with soundfile.SoundFile(str(self._partial)) as file:
            frames = file.frames
            # More than was counted is no fault: Ctrl-C may come between writing and counting.
            whole = self.samples_written <= frames < _UNKNOWN_LENGTH
            if whole and self._format == "MP3":
                # Reading its end after a seek makes the decoder complain on stderr.
                whole = self._partial.stat().st_size >= _mp3_size_bytes(self._partial)
            elif whole:
                start = max(0, frames - _LOOKED_AT_SAMPLES)
                file.seek(start)
                whole = len(file.read(frames - start)) == frames - start
        if not whole:
            raise self._given_up(None)

    def discard(self) -> None:
        """Drop what was written. Does nothing after `close`."""
        if self._done:
            return
        self._done = True
        try:
            self._file.close()
        except soundfile.LibsndfileError:
            log.debug("%s: not closed cleanly", self.path, exc_info=True)
        if self._partial.exists() and self._partial.stat().st_ino == self._inode:
            self._partial.unlink()

    def _frames(self) -> int:
        """What was written so far: an interrupt may come between writing and counting, soundfile's own counting too."""
        with suppress(soundfile.LibsndfileError):  # FLAC and MP3 cannot be asked
            return int(self._file.seek(0, soundfile.SEEK_CUR))
        return int(self._file.frames)

    def _failure(self, error: BaseException | None, *, is_kept: bool = False) -> MisoError:
        directory, kept = self._target.parent, "its end is missing" if is_kept else "nothing was kept"
        if not directory.is_dir():
            return MisoError(f"{self.path}: its directory was deleted meanwhile, nothing was kept.")
        if shutil.disk_usage(directory).free < _FULL_DISK_BYTES:
            return MisoError(f"{self.path}: the disk is full, {kept}. Free some space, or write elsewhere.")
        reason = getattr(error, "strerror", None) or "over a quota, or over a limit on file sizes?"
        return MisoError(f"{self.path}: could not be written whole ({reason}), {kept}. Write elsewhere.")

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        if not self._done:
            self.samples_written = self._frames()
            if self.samples_written:
                self.close()
                # Or between writing and soundfile's own counting.
                self.samples_written = soundfile.info(str(self._target)).frames
            else:
                self.discard()


def _mp3_size_bytes(path: Path) -> int:
    """How long an MP3 says that it is. Source: the Xing header, which LAME writes last, into the first frame."""
    with path.open("rb") as file:
        head = file.read(_XING_BYTES)
    start = max(head.find(b"Xing"), head.find(b"Info"))
    flags, _, size_bytes = struct.unpack_from(">III", head, start + 4) if start >= 0 else (0, 0, 0)
    return int(size_bytes) if flags & 3 == 3 else 0


def _checked_format(path: Path) -> tuple[str, str]:
    """libsndfile's names for what the path's ending asks for."""
    known = soundfile.available_formats()
    working = {
        suffix: names
        for suffix, names in _WRITABLE.items()
        if names[0] in known and names[1] in soundfile.available_subtypes(names[0])
    }
    suffix = path.suffix.lower()
    if suffix in working:
        return working[suffix]
    if suffix in _WRITABLE:
        raise ValueError(
            f"{path}: this libsndfile ({soundfile.__libsndfile_version__}) cannot write {suffix}. "
            f"It can write {', '.join(working)}; `pip install -U soundfile` brings a newer one."
        )
    raise ValueError(f"{path}: cannot tell the format from {suffix or 'no ending'!r}. Use {', '.join(working)}.")
