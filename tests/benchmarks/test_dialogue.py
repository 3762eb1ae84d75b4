"""The benchmark of a dialogue, rehearsed: what it says of the rows that are computed."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dialogue
import pytest
from click.testing import CliRunner
from dialogue import TURNS, Setup, Side, sides, spoken

from miso_gguf import SpeechOptions


class HerePool:
    """Stands in for a process of its own."""

    def __init__(self, _method: str) -> None: ...

    def Pool(self, _processes: int) -> "HerePool":
        return self

    def __enter__(self) -> "HerePool":
        return self

    def __exit__(self, *_: object) -> None: ...

    def apply(self, function: Any, arguments: Sequence[Any]) -> Any:
        return function(*arguments)


@pytest.fixture
def setup(bundle: Path) -> Setup:
    options = SpeechOptions(max_seconds=0.4, split_sentences=False)
    return Setup(bundle, "q4_k_m", 1, 0, voice_s=1.2, turns=len(TURNS), options=options)


def values(turns: list[dict[str, Any]], name: str) -> list[Any]:
    return [turn[name] for turn in turns]


def test_a_turn_computes_only_what_is_new(setup: Setup, tmp_path: Path) -> None:
    before, after, kept = (spoken(setup, side) for side in sides(tmp_path))
    assert values(before["turns"], "computed") == values(before["turns"], "rows")
    first, *later = after["turns"]
    assert first["computed"] == first["rows"]
    # The turn before is said already, but was no prompt yet: its text, its frames and their end; and the text.
    text_rows = kept["turns"][0]["computed"]
    voice_rows = first["rows"] - text_rows
    said_rows = 0
    for earlier, turn in pairwise(after["turns"]):
        segment_rows = text_rows + earlier["frames"] + 1
        said_rows += segment_rows
        text_rows = turn["computed"] - segment_rows
        assert text_rows > 0
        assert turn["rows"] == voice_rows + said_rows + text_rows
    assert values(kept["turns"], "computed")[1:] == values(later, "computed")
    for name in ("rows", "frames", "codes_sha256"):
        assert values(kept["turns"], name) == values(after["turns"], name) == values(kept["whole"], name)


def test_without_a_directory_nothing_is_kept(setup: Setup) -> None:
    side = Side("after")
    assert spoken(setup, side)["turns"][0]["computed"] == spoken(setup, side)["turns"][0]["computed"] > 30


def test_command(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue, "get_context", HerePool)
    out = tmp_path / "dialogue.json"
    command = [bundle, "--threads", 1, "--voice-seconds", 0.4, "--turns", 2, "--max-seconds", 0.16, "--out", out]
    done = CliRunner().invoke(dialogue.main, list(map(str, command)), catch_exceptions=False)
    assert done.exit_code == 0
    record = json.loads(done.stdout.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert record["is_whole_as_live"]
    assert record["is_kept_as_computed"]
    assert record["voice_states_bytes"] > 0
    assert values(record["sides"][0]["turns"], "frames") == [2, 2]
