"""Everything that a GPU would be asked, asked of the CPU."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from miso_gguf.native import messages
from miso_gguf.native.llama import load_library
from miso_gguf.native.llama_log import captured_log

ROOT = Path(__file__).parents[2]


def test_rehearsal(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu", "rehearse", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    record = json.loads((tmp_path / "rehearsal/gpu.json").read_text())
    for entry in record["codes"]:
        assert entry["device"] == "CPU"
        assert entry["sentences_equal"] == entry["sentences"]
        assert entry["logits"]["max_abs_error"] == 0
        assert entry["depth_graph_splits"] == 1
    (speed,) = record["speed"]
    assert [each["batch"] for each in speed["batches"]] == [1, 2]
    assert min(speed["parts_ms"].values()) > 0
    assert set(speed["first_audio_ms"]) == {"no voice", "new voice", "kept voice"}
    assert [entry["codec_threads"] for entry in record["codec"]] == [1, 2]
    assert [(each["level"], each["kv_type"]) for each in record["memory"]["levels"]][:2] == [
        ("q4_k_m", "f16"),
        ("q4_k_m", "q8_0"),
    ]
    table = (tmp_path / "rehearsal/gpu.md").read_text()
    assert "not run" in table
    assert "A rehearsal on a CPU" in table


def test_ggmls_debugging_is_heard_only_by_who_asks() -> None:
    load_library()
    forward = messages._LOG_CALLBACK
    heard = {}
    for level in (logging.DEBUG, messages.TRACE):
        with captured_log(level) as lines:
            forward(1, b"CUDA graph warmup complete\n", None)
            forward(2, b"something else\n", None)
        heard[level] = lines
        forward(1, b"afterwards\n", None)
    assert heard == {
        logging.DEBUG: ["something else"],
        messages.TRACE: ["CUDA graph warmup complete", "something else"],
    }


def test_what_cannot_be_done_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu", "codes", str(tmp_path / "nowhere"), "--gpu-layers", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "DEBUG"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere/tiny: no such directory" in done.stderr
    assert done.stderr.count("\n") == 1
