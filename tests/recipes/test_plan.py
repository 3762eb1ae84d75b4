"""What is planned: sums of F32 arithmetic, known by all that they depend on and by nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miso_gguf.recipes import plan as planning
from miso_gguf.recipes.plan import Collection


def test_sums_are_of_f32_arithmetic_and_nothing_is_taken_from_a_cache(
    plan: Callable[..., Collection], tmp_path: Path
) -> None:
    engine = plan(tmp_path).engine
    assert (engine.exact, engine.voice_cache_bytes) == (True, 0)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("device", lambda _layers: "another"),
        ("instructions", lambda: "none"),
        ("code_sha256", lambda _folders: "0" * 64),
        ("versions", lambda: dict.fromkeys(planning._LIBRARIES, "0")),
    ],
)
def test_the_machine_and_the_source_are_part_of_the_identity(
    plan: Callable[..., Collection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: Any
) -> None:
    before = plan(tmp_path).identity
    assert plan(tmp_path / "elsewhere", threads=2).identity == before
    monkeypatch.setattr(planning, name, other)
    assert plan(tmp_path).identity != before


def test_so_many_of_no_corpus_is_refused(plan: Callable[..., Collection], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts=3 .* name a corpus too \(auto"):
        plan(tmp_path, recordings=tmp_path, prompts=3)
