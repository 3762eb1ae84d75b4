"""The benchmark of the batcher, rehearsed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_rehearsal(bundle: Path) -> None:
    small = "--threads 1 --sequences 1 --sequences 2 --utterances 4 --frames 2 --rounds 1 --prompt-rows 200"
    command = [sys.executable, "benchmarks/batch.py", str(bundle), "--quant", "f32", *small.split()]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    record = json.loads(done.stdout.splitlines()[-1])
    one, two = record["sizes"]
    assert (one["sequences"], two["sequences"]) == (1, 2)
    assert one["frames"] == two["frames"] == one["steps"] + record["utterances"]
    assert one["steps"] == one["steps_in_waves"]
    assert min(min(size["sum_of_calls_s"].values()) for size in record["sizes"]) > 0
    assert record["gap"]["most_chunks_between_frames"] == 1
