"""The whole 8B model, synthetic, through the real commands: minutes, and 70 GB of disk.

`MISO_FULL_SIZE=DIR make test-slow` keeps the 32.8 GB checkpoint in DIR and uses it again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from miso_gguf.models.flavors import MISO_8B
from miso_gguf.models.mimi import MIMI
from miso_gguf.models.synthetic import CHECKPOINT_NAME, write_synthetic

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "full_size.py"
BACKBONE_GB = {"fp16": 13.99, "q8_0": 7.43, "q4_k_m": 4.20, "q4_0": 3.94}
DECODER_GB = {"fp16": 1.01, "q8_0": 0.535, "q4_k_m": 0.371, "q4_0": 0.360}


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    checkpoint = Path(os.environ.get("MISO_FULL_SIZE", tmp_path / "checkpoint"))
    if not (checkpoint / CHECKPOINT_NAME).exists():
        write_synthetic(checkpoint, MISO_8B, MIMI)
    out = tmp_path / "bundle"
    levels = [word for level in BACKBONE_GB for word in ("--quant", level)]
    run = [sys.executable, str(BENCHMARK), str(checkpoint), str(out), *levels]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["peak_anonymous_bytes"] <= 2e9
    for level, sizes in result["sizes"].items():
        assert sizes["backbone_bytes"] / 1e9 == pytest.approx(BACKBONE_GB[level], rel=0.005)
        assert sizes["decoder_bytes"] / 1e9 == pytest.approx(DECODER_GB[level], rel=0.005)
    command = Path(sys.executable).with_name("miso-convert")
    found = subprocess.run([command, "verify", out, checkpoint, "--json"], capture_output=True, text=True, check=False)
    print(done.stdout, found.stdout)
    assert found.returncode == 0
    assert json.loads(found.stdout)["ok"]
