"""Merged files are what one run would have heard, whatever their order; what does not belong together is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from miso_gguf.convert.imatrix import HALVES, imatrix_name
from miso_gguf.core.errors import MisoError
from miso_gguf.core.lock import locked
from miso_gguf.quant_eval.corpus import load_corpus
from miso_gguf.recipes.collect import Collected, collect
from miso_gguf.recipes.imatrix_file import Entry, ImatrixFile, read_imatrix_file
from miso_gguf.recipes.merge import merge
from miso_gguf.recipes.plan import Collection

Make = Callable[..., Collection]


def corpus(path: Path, numbers: range) -> str:
    """A part of the tiny corpus as a file."""
    chosen = load_corpus("tiny").prompts[numbers.start : numbers.stop]
    lines = [json.dumps({"id": each.id, "text": each.text, "speaker": each.speaker}) for each in chosen]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def halves(plan: Make, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    tmp_path = tmp_path_factory.mktemp("halves")
    ranges = (range(2), range(2, 3), range(3, 5))
    plans = [
        plan(tmp_path / f"part-{number}", corpus=corpus(tmp_path / f"{number}.jsonl", each))
        for number, each in enumerate(ranges)
    ]
    for each in plans:
        collect(each)
    return [each.out for each in plans]


def test_parts_are_the_whole(plan: Make, halves: list[Path], tmp_path: Path) -> None:
    whole = collect(plan(tmp_path / "whole", prompts=5, corpus=corpus(tmp_path / "all.jsonl", range(5))))
    merged = merge(halves, tmp_path / "merged")
    for part in HALVES:
        found, expected = read_imatrix_file(merged.paths[part]), whole.files[part]
        assert (found.clips, found.chunks, found.chunk_rows) == (5, expected.chunks, expected.chunk_rows)
        assert found.entries.keys() == expected.entries.keys()
        for name, entry in expected.entries.items():
            other = found.entries[name]
            assert other.count == entry.count
            np.testing.assert_allclose(other.sums, entry.sums, rtol=3e-7)
            if entry.step_sums is not None and entry.step_counts is not None:
                assert other.step_counts is not None
                assert other.step_sums is not None
                assert other.step_counts.tolist() == entry.step_counts.tolist()
                np.testing.assert_allclose(other.step_sums, entry.step_sums, rtol=3e-7)


def test_the_order_changes_no_bit(halves: list[Path], tmp_path: Path) -> None:
    bytes_of = set()
    for number, order in enumerate(permutations(halves)):
        merged = merge(order, tmp_path / str(number))
        bytes_of.add(tuple(path.read_bytes() for path in merged.paths.values()))
    assert len(bytes_of) == 1
    assert merge(halves, tmp_path / "0").was_there
    with pytest.raises(MisoError, match=r"is of another run \(\w+, now \w+\): give another --out$"):
        merge(halves[:2], tmp_path / "0")


def test_not_into_a_directory_that_another_run_writes_to(tmp_path: Path) -> None:
    parts = [made(tmp_path / name) for name in ("one", "other")]
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / ".collecting.lock"), pytest.raises(MisoError, match="another run is writing to it"):
        merge(parts, tmp_path / "out")
    with pytest.raises(MisoError, match="is of another run"):
        merge(parts, parts[0])


def test_files_that_came_from_different_runs_can_be_merged_again(tmp_path: Path) -> None:
    """Of a directory that somebody has put together: each part goes by its own identity."""
    parts = [made(tmp_path / name) for name in ("one", "other", "third")]
    name = imatrix_name("decoder")
    (parts[1] / name).write_bytes((parts[2] / name).read_bytes())
    assert not merge(parts[:2], tmp_path / "out").was_there
    assert merge(parts[:2], tmp_path / "out").was_there


def made(directory: Path, **changes: object) -> Path:
    """A pair of small files."""
    directory.mkdir()
    for part in HALVES:
        steps = np.ones((2, 3)), np.full(2, 4.0)
        file = ImatrixFile(part, "f" * 64, directory.name, (directory.name,), 1, 4, 2, {"m": Entry.of(*steps)})
        replace(file, **changes).write(directory / imatrix_name(part))  # type: ignore[arg-type]
    return directory


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    found: Collected = merge([one, other], tmp_path / "both")
    assert found.files["decoder"].datasets == ("one", "other")
    assert found.files["decoder"].entries["m"].step_sums is not None
    faults: dict[str, dict[str, object]] = {
        "checkpoint": {"fingerprint": "e" * 64},
        "part": {"part": "backbone"},
        "shape": {"entries": {"m": Entry.of(np.ones((2, 4)), np.ones(2))}},
    }
    for fault, changes in faults.items():
        with pytest.raises(MisoError, match=f"is of another {fault} than"):
            merge([one, made(tmp_path / f"z-{fault}", **changes)], tmp_path / "out")
    with pytest.raises(MisoError, match="is of another shape than"):
        merge([one, made(tmp_path / "z-names", entries={"n": Entry.of(np.ones((2, 3)), np.ones(2))})], tmp_path / "out")
    with pytest.raises(MisoError, match="would count twice: name it once"):
        merge([one, other, one], tmp_path / "out")
    with pytest.raises(ValueError, match="two directories or more, not 1"):
        merge([one], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*no such file"):
        merge([one, tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
