"""Instruments over clips: paired with the reference, gated, controlled, resumed; what fails is not run."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from miso_gguf.core.arrays import F32Array
from miso_gguf.quant_eval.corpus import Prompt
from miso_gguf.quant_eval.gates.config import Gate, Gates
from miso_gguf.quant_eval.gates.controls import gate_controls
from miso_gguf.quant_eval.instruments.instrument import Heard
from miso_gguf.quant_eval.metric import FREE
from miso_gguf.quant_eval.run.record import Record
from miso_gguf.quant_eval.run.record_store import Records
from miso_gguf.quant_eval.run.stages import FLOOR, TARGET
from miso_gguf.quant_eval.scoring.clips import Sounds
from miso_gguf.quant_eval.scoring.controls import CLIPS, LADDER_DB, noisy
from miso_gguf.quant_eval.scoring.scored import Scored, score_clips, steps
from miso_gguf.quant_eval.scoring.scores import Scores

PROMPTS, SEEDS = 6, (0, 1)
GATES = Gates((Gate("wer", "at_most", {"q8_0": 1.8, "q4_0": 5.0}),), {})
LEVEL_OF = {"fp16": 0.0, "q8_0": 0.01, "q4_0": 0.04}
"""What is added to all samples of a level's clips: as much more is its score, times 100."""


class Evaluation:
    """Finished free runs: clip (level, prompt, seed) is a square wave of 0.25 + prompt / 100, and the level's share."""

    def __init__(self, out: Path, context: Callable[[int], list[Any]] = lambda _prompt: []) -> None:
        candidates = [SimpleNamespace(name=name, key=f"{name}-0123") for name in LEVEL_OF]
        prompts = [Prompt(f"p{n}", "list", f"Sentence {n}.", 0) for n in range(PROMPTS)]
        self.plan: Any = SimpleNamespace(
            reference=candidates[0],
            candidates=candidates,
            seeds=SEEDS,
            corpus=SimpleNamespace(prompts=prompts),
            records=out / "records",
            audio=out / "clips",
            fingerprint="f",
            finer=None,
            controls=True,
            stages_of=lambda _candidate, _prompt: (FREE,),
        )
        self.plan.audio.mkdir(parents=True)
        self.records: list[Record] = []
        for n, prompt in enumerate(prompts):
            for seed in SEEDS:
                detail = {"codes": [[1]], "ended": "eos", "context": context(n)}
                self.records.append(Record(TARGET, "fp16", prompt.id, seed, {}, detail=detail))
                for level in candidates:
                    wave = np.full(2400, 0.25 + n / 100 + seed / 1000 + LEVEL_OF[level.name])
                    wave[1::2] *= -1
                    path = self.plan.audio / f"{level.key}-{prompt.id}-{seed}.wav"
                    soundfile.write(path, wave, 24000, subtype="FLOAT")
                    self.records.append(Record(FREE, level.name, prompt.id, seed, {"dur_ratio": 0.5}))
            self.records.append(Record(FLOOR, "fp16", prompt.id, 0, {}))

    def scored(self, *wanted: str, levels: tuple[str, ...] = (), progress: Any = lambda _done: None) -> Scored:
        return score_clips(self.plan, self.records, [], wanted, levels, GATES, progress)


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return Evaluation(tmp_path)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the user's: `loud` hears how loud a clip is, in percent."""
    module = ModuleType("my_ears")
    module.calls = []  # type: ignore[attr-defined]

    def loud(samples: F32Array, text: str, reference: F32Array) -> float:
        module.calls.append((text, len(reference)))
        return 100 * float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))

    module.loud = loud  # type: ignore[attr-defined]
    module.deaf = lambda samples, text, reference: 50.0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_ears", module)
    return module


def values(scored: Scored, stage: str, level: str, key: str = "wer") -> list[float]:
    return [r.values[key] for r in scored.records if (r.stage, r.level) == (stage, level) and key in r.values]


def test_a_clip_is_worth_what_it_is_above_the_reference_of_its_prompt_and_seed(
    evaluation: Evaluation, mine: ModuleType
) -> None:
    scored = evaluation.scored("wer=my_ears:loud")
    for level, added in LEVEL_OF.items():
        assert values(scored, FREE, level) == pytest.approx([100 * added] * 12, abs=1e-4)
    assert values(scored, FREE, "fp16") == [0.0] * 12, "the self control is exact"
    assert values(scored, FLOOR, "fp16") == pytest.approx([0.1] * 6, abs=1e-4), "seed 1 less seed 0"
    extra = scored.extras[0]
    assert (extra.name, extra.unit, extra.by, extra.why_not) == ("wer", "%", "my_ears:loud", None)
    assert {level: each.value for level, each in extra.values.items()} == pytest.approx(
        {level: 27.55 + 100 * added for level, added in LEVEL_OF.items()}, abs=1e-3
    )
    assert {level: each.value for level, each in extra.differences.items()} == pytest.approx({"q8_0": 1, "q4_0": 4})
    assert extra.without == {"fp16": 0, "q8_0": 0, "q4_0": 0}
    assert [(each.name, each.why_not) for each in scored.extras[1:]] == [
        (name, "not run: not asked for") for name in ("speaker_similarity", "dnsmos", "plcmos", "utmos")
    ]
    assert all(record.values["dur_ratio"] == 0.5 for record in scored.records if record.stage == FREE)


def test_another_name_is_shown_and_no_metric(evaluation: Evaluation, mine: ModuleType) -> None:
    scored = evaluation.scored("loudness=my_ears:loud", levels=("q4_0",))
    assert scored.extras[0].differences["q4_0"].value == pytest.approx(4, abs=1e-4)
    assert scored.records == evaluation.records
    assert scored.damaged == []


def test_the_weakest_noise_that_is_beyond_a_margin_twice_must_fail_it(evaluation: Evaluation, mine: ModuleType) -> None:
    scored = evaluation.scored("wer=my_ears:loud", levels=("q8_0", "q4_0"))
    # 27.5 % and noise of x dB below: sqrt(1 + 10^(-x / 10)) times as loud. 3.6 and 10 points more take 5 dB and 0 dB.
    assert [(each.level, each.name) for each in scored.damaged] == [
        ("q8_0", "6 clips in noise, 5 dB below the speech"),
        ("q4_0", "6 clips in noise, 0 dB below the speech"),
    ]
    controls = gate_controls(["q8_0", "q4_0"], GATES, [], scored.damaged)
    assert [control.behaved for control in controls] == [True, True]
    assert controls[0].found.startswith("FAIL: ")


def test_the_clips_in_noise_are_of_prompts_from_all_over(
    tmp_path: Path, mine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", 10)
    monkeypatch.setattr("miso_gguf.quant_eval.scoring.controls.CLIPS", 5)
    (damaged,) = Evaluation(tmp_path).scored("wer=my_ears:loud", levels=("q4_0",)).damaged
    assert list(damaged.measured["wer"].prompts) == ["p0", "p2", "p4", "p6", "p8"]


def test_an_instrument_that_is_deaf_does_not_behave(evaluation: Evaluation, mine: ModuleType) -> None:
    scored = evaluation.scored("wer=my_ears:deaf", levels=("q4_0",))
    (control,) = gate_controls(["q4_0"], GATES, [], scored.damaged)
    assert not control.behaved
    assert control.found.endswith("my_ears:deaf is deaf to noise on this model's speech: louder noise changes no more")


def test_an_instrument_without_a_score_in_noise_does_not_behave(evaluation: Evaluation, mine: ModuleType) -> None:
    """A clip is a square wave: of samples of many sizes it is in noise."""
    mine.picky = lambda samples, text, reference: 1.0 if len(np.unique(np.abs(samples))) < 5 else None  # type: ignore[attr-defined]
    scored = evaluation.scored("wer=my_ears:picky", levels=("q4_0",))
    (control,) = gate_controls(["q4_0"], GATES, [], scored.damaged)
    assert not control.behaved
    assert control.found == "not measured; my_ears:picky has no score in noise"


def test_noise_in_which_few_clips_have_a_score_is_passed_over(evaluation: Evaluation, mine: ModuleType) -> None:
    """Louder than 38 % there is none: at 0 dB, which is surely beyond the margin, all are, and at 5 dB none."""
    mine.short = lambda samples, text, reference: (  # type: ignore[attr-defined]
        value if (value := mine.loud(samples, text, reference)) < 38 else None
    )
    scored = evaluation.scored("wer=my_ears:short", levels=("q4_0",))
    assert [each.name for each in scored.damaged] == ["6 clips in noise, 5 dB below the speech"]
    assert scored.damaged[0].unseen.startswith("my_ears:short is deaf")


def test_noise_is_as_loud_as_it_says_and_always_the_same() -> None:
    samples = np.sin(np.arange(48_000, dtype=np.float32))
    noise = noisy(samples, 10, "a") - samples
    power = np.mean(np.square(noise, dtype=np.float64)) / np.mean(np.square(samples, dtype=np.float64))
    assert 10 * np.log10(power) == pytest.approx(-10, abs=0.1)
    assert np.array_equal(noisy(samples, 10, "a") - samples, noise)
    assert not np.array_equal(noisy(samples, 10, "b") - samples, noise)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda *_: 1 / 0, "not run: wer failed on fp16, 'Sentence 0.': division by zero"),
        (lambda *_: float("nan"), "not run: wer failed on fp16, 'Sentence 0.': gave nan: expected a finite number"),
        (
            lambda *_: sys.exit("two\n\x1b[31mlines"),
            "not run: wer failed on fp16, 'Sentence 0.': 'two\\n\\x1b[31mlines'",
        ),
        (lambda *_: sys.exit("no licence"), "not run: wer failed on fp16, 'Sentence 0.': no licence"),
        (lambda *_: None, "not run: no prompt has words in letters that the recogniser knows"),
    ],
)
def test_what_fails_leaves_no_number_behind(
    function: Any, reason: str, evaluation: Evaluation, mine: ModuleType
) -> None:
    mine.fails = function  # type: ignore[attr-defined]
    scored = evaluation.scored("wer=my_ears:fails", levels=("q4_0",))
    assert (scored.extras[0].values, scored.extras[0].why_not) == ({}, reason)
    assert (scored.records, scored.damaged) == (evaluation.records, [])


def test_clips_without_a_value_are_counted_and_take_no_part(evaluation: Evaluation, mine: ModuleType) -> None:
    mine.some = lambda samples, text, reference: None if text == "Sentence 3." else mine.loud(samples, text, reference)  # type: ignore[attr-defined]
    scored = evaluation.scored("wer=my_ears:some")
    assert scored.extras[0].without == {"fp16": 2, "q8_0": 2, "q4_0": 2}
    assert scored.extras[0].values["q4_0"].clips == 10
    assert len(values(scored, FREE, "q4_0")) == 10


def test_a_level_without_a_score_has_no_difference(evaluation: Evaluation, mine: ModuleType) -> None:
    """What it says of a sentence has none, and what the reference says has one: that is no score of 0."""
    mine.some = lambda samples, text, reference: (  # type: ignore[attr-defined]
        None
        if text == "Sentence 3." and not np.array_equal(samples, reference)
        else mine.loud(samples, text, reference)
    )
    scored = evaluation.scored("wer=my_ears:some")
    assert values(scored, FREE, "q4_0") == pytest.approx([4] * 10, abs=1e-4)
    assert (scored.extras[0].differences["q4_0"].clips, scored.extras[0].without["q4_0"]) == (10, 2)


def test_the_finer_plan_is_scored_too(evaluation: Evaluation, mine: ModuleType, tmp_path: Path) -> None:
    finer = Evaluation(tmp_path / "f32")
    evaluation.plan.finer = finer.plan
    scored = score_clips(evaluation.plan, evaluation.records, finer.records, ["wer=my_ears:loud"], (), GATES)
    found = [record.values["wer"] for record in scored.finer if (record.stage, record.level) == (FREE, "q4_0")]
    assert found == pytest.approx([4] * 12, abs=1e-4)
    assert values(scored, FREE, "q4_0") == pytest.approx([4] * 12, abs=1e-4)


def test_without_free_runs_there_is_nothing_to_score(evaluation: Evaluation, mine: ModuleType) -> None:
    evaluation.records = [record for record in evaluation.records if record.stage == TARGET]
    (extra, *_) = evaluation.scored("wer=my_ears:loud").extras
    assert extra.why_not == "not run: there are no clips, for nothing was spoken freely"


def test_utmos_only_by_a_function(evaluation: Evaluation, mine: ModuleType) -> None:
    (extra, *_) = evaluation.scored("utmos").extras
    assert extra.why_not == "not run: no package brings UTMOS: pass utmos=MODULE:FUNCTION with a function of your own"
    assert values(evaluation.scored("utmos=my_ears:loud"), FREE, "q4_0", "utmos") == pytest.approx([4] * 12, abs=1e-4)


def test_progress_counts_every_score_and_no_more(evaluation: Evaluation, mine: ModuleType) -> None:
    told: list[int] = []
    evaluation.scored("wer=my_ears:deaf", "loudness=my_ears:loud", levels=("q4_0",), progress=told.append)
    asked = 3 * 12 + CLIPS * len(LADDER_DB)
    assert steps(evaluation.plan, ["a", "b"]) == 2 * asked
    first = 3 * 12 + 6 * len(LADDER_DB)
    assert told == [*range(1, first + 1), *range(asked + 1, asked + 3 * 12 + 1)]


# The voice


def test_the_voice_is_what_the_speaker_said_before(tmp_path: Path, mine: ModuleType, monkeypatch: Any) -> None:
    """Of prompts 1 to 5; of prompt 0 another speaker said it. Each code is decoded to as many samples."""
    turns = [[0, "One.", [[2], [3]]], [1, "Not I.", [[9]]], [0, "Two.", [[4]]]]
    evaluation = Evaluation(tmp_path, lambda n: turns if n else [[1, "Not I.", [[9]]]])
    monkeypatch.setattr(Sounds, "_decoded", lambda _self, codes: np.repeat(codes.ravel(), 100).astype(np.float32))
    given = []

    def alike(samples: F32Array, text: str, voice: F32Array) -> float:
        given.append((text, voice.tolist()))
        return 0.5

    mine.alike = alike  # type: ignore[attr-defined]
    (extra, *_) = [
        each
        for each in evaluation.scored("speaker_similarity=my_ears:alike").extras
        if each.name == "speaker_similarity"
    ]
    expected = np.repeat([2.0, 3.0, 4.0], 100).tolist()
    assert given == [(f"Sentence {n}.", expected) for n in range(1, 6) for _ in range(2 * 3)]
    assert extra.without == dict.fromkeys(LEVEL_OF, 2)


def test_without_any_voice_similarity_is_not_run(evaluation: Evaluation, mine: ModuleType) -> None:
    (extra, *_) = evaluation.scored("speaker_similarity=my_ears:loud").extras
    assert extra.why_not is not None
    assert extra.why_not.startswith("not run: no prompt has a turn of its speaker before it")
    assert mine.calls == []


# What is kept


class Counting:
    """Its score is what it was made with."""

    name, unit, range, cost_s, is_kept = "wer", "%", (0.0, 100.0), 0.0, True

    def __init__(self, value: float | None, by: str = "ear 1.0") -> None:
        self.value, self.by, self.asked = value, by, 0

    def available(self) -> str | None:
        return None

    def score(self, heard: Heard) -> float | None:
        self.asked += 1
        return self.value


@pytest.mark.parametrize("part", ["quant_eval/instruments", "quant_eval/scoring"])
def test_scores_of_other_source_are_not_taken(
    part: str, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(text: str) -> None:
        monkeypatch.setattr(
            "miso_gguf.quant_eval.scoring.scores.code_sha256", lambda parts: text if part in parts else ""
        )

    sounds = Sounds(evaluation.plan, evaluation.records)
    clip = sounds.clips[0]
    with Records.open(evaluation.plan.records, "f") as store:
        source("old")
        assert Scores(Counting(1.0), store).of(clip, lambda: sounds.heard(clip)) == 1
        source("new")
        assert Scores(Counting(2.0), store).of(clip, lambda: sounds.heard(clip)) == 2


@pytest.mark.parametrize("value", [12.5, None])
def test_a_score_is_asked_for_once_and_kept_for_the_next_run(evaluation: Evaluation, value: float | None) -> None:
    sounds = Sounds(evaluation.plan, evaluation.records)
    clip = sounds.clips[0]

    def heard() -> Heard:
        return sounds.heard(clip)

    with Records.open(evaluation.plan.records, "f") as store:
        first = Counting(value)
        scores = Scores(first, store)
        assert [scores.of(clip, heard), scores.of(clip, heard)] == [value, value]
        assert first.asked == 1
    with Records.open(evaluation.plan.records, "f") as store:
        again, newer = Counting(99.0), Counting(99.0, "ear 1.1")
        assert Scores(again, store).of(clip, heard) == value
        assert again.asked == 0
        assert Scores(again, store).of(clip, heard, "-noise+10") == 99, "another sound"
        assert Scores(newer, store).of(clip, heard) == 99, "another version is another measurement"
        other = Counting(7.0)
        other.name = "plcmos"
        assert Scores(other, store).of(clip, heard) == 7, "another instrument of one package"
        files = replace(clip, key=f"{clip.level}-4567")
        assert Scores(Counting(8.0), store).of(files, heard) == 8, "a level of other files"
        functions = [Counting(each) for each in (1.0, 2.0)]
        for function in functions:
            function.is_kept = False
        assert [Scores(each, store).of(clip, heard) for each in functions] == [1, 2], "it may have changed"
