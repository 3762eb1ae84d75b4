"""The table of metrics against constructed truth, of one construction."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_last_line_is_the_table_as_json() -> None:
    command = [sys.executable, "benchmarks/prosody_truth.py", "--only", "200 ms later"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    records = json.loads(done.stdout.splitlines()[-1])
    lag, absent = records[0], records[-1]
    assert lag == {
        "construction": "200 ms later, equally long",
        "metric": "lag",
        "truth": 200.0,
        "tolerance": 0.0,
        "measured": 200.0,
        "is_right": True,
    }
    assert absent.keys() == {"construction", "metric", "measured", "is_right"}
    assert absent["measured"] is None
