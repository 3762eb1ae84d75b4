"""The benchmark of the batcher, rehearsed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def record_of(bundle: Path, arguments: str) -> dict[str, Any]:
    command = [sys.executable, "benchmarks/batch.py", str(bundle), "--quant", "f32", *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def test_one_sequence_has_nobody_beside_a_prompt(bundle: Path) -> None:
    record = record_of(bundle, "--threads 1 --sequences 1 --utterances 1 --frames 1 --rounds 1 --codec-threads 2")
    assert (record["codec_threads"], record["gap"]) == (2, None)


def test_rehearsal(bundle: Path) -> None:
    small = "--threads 1 --sequences 1 --sequences 2 --utterances 4 --frames 2 --rounds 1 --prompt-rows 200"
    record = record_of(bundle, small)
    one, two = record["sizes"]
    assert (one["sequences"], two["sequences"]) == (1, 2)
    assert one["frames"] == two["frames"] == one["steps"] + record["utterances"]
    assert one["steps"] == one["steps_in_waves"]
    assert min(min(size["sum_of_calls_s"].values()) for size in record["sizes"]) > 0
    assert record["gap"]["most_chunks_between_frames"] == 1
