"""The benchmark of the server, rehearsed: whether all is answered and right; how fast it was is not judged here."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"
SPEC = importlib.util.spec_from_file_location("serve_benchmark", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

GOOD: dict[str, Any] = {
    **{"clients": 4, "share": 0.93, "ttfa_beyond_frames": {"p50": 1.0, "p95": 2.0}},
    **{"continuity": 1.0, "refused": 0, "lost": 0, "wrong": 0},
}


def failing(record: dict[str, Any], later_ms: float = 15.0) -> list[str]:
    return [gate["gate"] for gate in benchmark.gates([record], later_ms) if not gate["holds"]]


@pytest.mark.parametrize(
    ("worse", "gate"),
    [
        ({"share": 0.929}, "share of the batcher alone"),
        ({"ttfa_beyond_frames": {"p50": 1.0, "p95": 2.01}}, "TTFA p95 beyond its turns, frames"),
        ({"continuity": 0.99}, "continuity"),
        ({"refused": 1}, "refused"),
        ({"lost": 1}, "lost"),
        ({"wrong": 1}, "wrong"),
    ],
)
def test_gates(worse: dict[str, Any], gate: str) -> None:
    assert failing(GOOD) == []
    assert failing(GOOD | worse) == [gate]
    assert failing(GOOD, later_ms=15.1) == ["TTFA later than the library, ms"]


def test_rehearsal(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "serve.json"
    small = "--threads 1 --streams 2 --clients 3 --seconds 0.2 --frame-ms 4 --chunk-ms 1"
    short = "--frames-a-row 0.3 --crowd 1 --rounds 1 --most-seconds 1"
    command = [str(bundle), *small.split(), *short.split(), "--out", str(out)]
    done = CliRunner().invoke(benchmark.main, command)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    record = json.loads(done.stdout.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert [side["clients"] for side in record["paced"]] == [3]
    for side in record["paced"]:
        assert (side["refused"], side["lost"], side["wrong"]) == (0, 0, 0)
        assert side["frames"] == side["batcher_alone"]["frames"] > side["requests"] > 0
        assert side["requests"] == side["batcher_alone"]["requests"]
        assert side["audio_ttfp_ms"]["p50"] > record["frame_ms"] + record["chunk_ms"]
    own = record["own"]
    answered = [own["one_at_a_time"], own["all_streams"], *own["arriving"]]
    assert all((load["refused"], load["lost"]) == (0, 0) and load["frames"] > 0 for load in answered)
    assert own["ttfa"]["http_ms"] > 0
    assert done.exit_code == (0 if all(gate["holds"] for gate in record["gates"]) else 1)
