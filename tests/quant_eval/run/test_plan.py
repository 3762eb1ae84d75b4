"""What a plan is of: the reference against something finer, and records that are of the machine and the code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from miso_gguf.quant_eval.run import plan as module
from miso_gguf.quant_eval.run.plan import Asked, Plan, plan_run
from miso_gguf.quant_eval.run.source_hash import MEASURING, code_sha256


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "out", prompts=2, seeds=2, controls=False, threads=1)


def names(plan: Plan) -> list[str]:
    return [each.name for each in plan.candidates]


def test_fp16_is_held_against_f32_where_that_is_there(bundle: Path, asked: Asked) -> None:
    plan = plan_run(bundle, [], "fp16", asked)
    assert names(plan) == ["fp16", "q8_0", "q4_k_m"]
    finer = plan.finer
    assert finer is not None
    assert (finer.reference.name, names(finer), finer.finer) == ("f32", ["fp16"], None)
    assert finer.candidates == (plan.reference,)
    assert (finer.out, finer.damages) == (asked.out / "f32", ())
    assert (finer.corpus, finer.seeds, finer.stages) == (plan.corpus, plan.seeds, plan.stages)
    assert finer.fingerprint != plan.fingerprint
    # Each plan: the reference speaks, then each candidate is held against it.
    assert plan.clips() == 2 * 2 * (1 + 3) + finer.clips()
    assert finer.clips() == 2 * 2 * (1 + 1)


@pytest.mark.parametrize(
    ("levels", "reference", "candidates"),
    [
        (["fp16", "q8_0"], "fp16", ["fp16", "q8_0"]),
        (["f32", "q8_0"], "q8_0", ["f32", "q8_0"]),
        ([], "f32", ["f32", "fp16", "q8_0", "q4_k_m"]),
    ],
)
def test_or_not(levels: list[str], reference: str, candidates: list[str], bundle: Path, asked: Asked) -> None:
    plan = plan_run(bundle, levels, reference, asked)
    assert (names(plan), plan.finer) == (candidates, None)


def test_f32_that_was_asked_for_by_name(bundle: Path, asked: Asked) -> None:
    plan = plan_run(bundle, ["q8_0", "f32"], "fp16", asked)
    assert names(plan) == ["fp16", "q8_0"]
    assert plan.finer is not None


def test_records_are_of_machine_and_code(bundle: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another GPU, another instruction set, other code they would be other records."""

    def found() -> tuple[str, str, dict[str, str]]:
        plan = plan_run(bundle, [], "fp16", asked)
        assert plan.finer is not None
        return plan.fingerprint, plan.finer.fingerprint, plan.settings

    before = found()
    assert found() == before
    for name, given in (
        ("device", lambda _layers: "Card 4000"),
        ("instructions", lambda: "AVX9"),
        ("code_sha256", lambda parts: f"{parts}"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, given)
            after = found()
        assert not set(after[:2]) & set(before[:2]), name
        assert after[2] != before[2], "logits too are kept under it"
    with monkeypatch.context() as patch:
        patch.setattr(module, "code_sha256", lambda parts: "other" if parts == MEASURING else code_sha256(parts))
        after = found()
    assert not set(after[:2]) & set(before[:2])
    assert after[2] == before[2], "how F0 is measured changes no logits"


def test_beside_recordings_nothing_is_spoken_freely(bundle: Path, asked: Asked, tmp_path: Path) -> None:
    corpus = tmp_path / "mine.jsonl"
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(24_000), 24_000)
    corpus.write_text('{"text": "Hello there.", "audio": "a.wav"}\n')
    of_people = replace(asked, corpus=str(corpus))
    assert plan_run(bundle, [], "fp16", of_people).stages == ("logits", "one-step")
    with pytest.raises(ValueError, match="every prompt of the corpus is a recording"):
        plan_run(bundle, [], "fp16", replace(of_people, stages=("free",)))
    with corpus.open("a") as file:
        file.write('{"text": "And again."}\n')
    assert plan_run(bundle, [], "fp16", of_people).stages == ("logits", "one-step", "free")
