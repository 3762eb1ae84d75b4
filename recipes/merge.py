"""Several importance matrices of one model as one: as if all had been heard in one run, to float32's rounding.

The order in which they are named changes no bit.
"""

import hashlib
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..convert.imatrix import HALVES, imatrix_name
from ..core.errors import MisoError
from .collect import Collected, alone_in, check_same, write_all
from .imatrix_file import Entry, ImatrixFile, read_imatrix_file


def merge(directories: Sequence[Path], out: Path) -> Collected:
    """Add up the files of several directories and write the sums into `out`.

    Raises:
        ValueError: There are not two or more.
        FileNotFoundError: A directory lacks one of the files.
        MisoError: They are of different models, or one is there twice; or `out` has files of something else.
    """
    begin = time.monotonic()
    if len(directories) < 2:
        raise ValueError(f"a merge takes two directories or more, not {len(directories)}")
    paths = {part: out / imatrix_name(part) for part in HALVES}
    merged = {part: _merged([each / imatrix_name(part) for each in directories]) for part in HALVES}
    with alone_in(out):
        found = {part: read_imatrix_file(path) for part, path in paths.items() if path.exists()}
        check_same(out, found, {part: file.identity for part, file in merged.items()})
        if len(found) == len(paths):
            return Collected(found, paths)
        write_all(merged, out)
    return Collected(merged, paths, merged["decoder"].chunks, silent=0, wall_s=time.monotonic() - begin)


def _merged(paths: Sequence[Path]) -> ImatrixFile:
    """One part. Sums are taken in the order of what the files are known by, not of how they were named."""
    read = sorted(((read_imatrix_file(path), path) for path in paths), key=lambda each: each[0].identity)
    files, first = [file for file, _ in read], read[0][0]
    for file, path in read[1:]:
        if fault := _differs(file, first):
            raise MisoError(f"{path}: is of another {fault} than {read[0][1]}: merge what is of one model")
    identities = [file.identity for file in files]
    for before, after in pairwise(read):
        if before[0].identity == after[0].identity:
            raise MisoError(f"{after[1]}: is the same as {before[1]}, and would count twice: name it once")
    return ImatrixFile(
        part=first.part,
        fingerprint=first.fingerprint,
        identity=hashlib.sha256("\n".join(identities).encode()).hexdigest(),
        datasets=tuple(dict.fromkeys(each for file in files for each in file.datasets)),
        clips=sum(file.clips for file in files),
        chunks=sum(file.chunks for file in files),
        chunk_rows=first.chunk_rows,
        entries={name: _added([file.entries[name] for file in files]) for name in first.entries},
    )


def _differs(file: ImatrixFile, first: ImatrixFile) -> str:
    """In what the two cannot be added, in a word."""
    if file.part != first.part:
        return "part"
    if file.fingerprint != first.fingerprint:
        return "checkpoint"
    if _shapes(file) != _shapes(first):
        return "shape"
    return ""


def _shapes(file: ImatrixFile) -> dict[str, tuple[int, ...]]:
    return {
        name: entry.sums.shape if entry.step_sums is None else entry.step_sums.shape
        for name, entry in file.entries.items()
    }


def _added(entries: Sequence[Entry]) -> Entry:
    sums, count = np.sum([entry.sums for entry in entries], axis=0), sum(entry.count for entry in entries)
    steps = [(e.step_sums, e.step_counts) for e in entries if e.step_sums is not None and e.step_counts is not None]
    if not steps:
        return Entry(sums, count)
    return Entry(sums, count, np.sum([each for each, _ in steps], axis=0), np.sum([each for _, each in steps], axis=0))
