"""People's speech in an evaluation: real recordings beside a corpus, judged by metrics of their own."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from evaluations import FRAMES, GATES, KLD, THERE, observations, results

from builders import Built
from miso_gguf.quant_eval.accepting import accept, gate
from miso_gguf.quant_eval.evaluation import Wanted, evaluate_plan
from miso_gguf.quant_eval.gates.accepted import accept_into, load_accepted
from miso_gguf.quant_eval.gates.history import judge_history, noise_between_machines
from miso_gguf.quant_eval.gates.judge import judge
from miso_gguf.quant_eval.gates.observed import observed_of
from miso_gguf.quant_eval.metric import RECORDINGS
from miso_gguf.quant_eval.metrics.table import METRICS, TWINS
from miso_gguf.quant_eval.recordings import RecordingsError, read_recordings, recordings_sha256
from miso_gguf.quant_eval.report import html, markdown
from miso_gguf.quant_eval.results import Results
from miso_gguf.quant_eval.run.plan import Asked, Plan, plan_run
from miso_gguf.quant_eval.run.record_store import Records
from miso_gguf.quant_eval.run.runner import evaluate
from miso_gguf.quant_eval.stats.estimates import FEWEST_PROMPTS

PEOPLE = Path(__file__).parents[1] / "data" / "recordings"
TITLE = "On its own speech, and on people's"


@pytest.fixture(scope="module")
def plan_of(built: Built) -> Callable[..., Plan]:
    bundle = built.tiny("fp16", "q4_0")

    def made(out: Path, **changes: object) -> Plan:
        asked = Asked(out, recordings=PEOPLE, prompts=5, seeds=2, controls=False, threads=1, gpu_layers=0)
        return plan_run(bundle, ["q4_0"], "fp16", replace(asked, **changes))  # type: ignore[arg-type]

    return made


@pytest.fixture(scope="module")
def report(plan_of: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the logits alone, which take no time."""
    out = tmp_path_factory.mktemp("people")
    results = evaluate_plan(plan_of(out, stages=("logits",), seeds=1), Wanted(vram=False))
    (out / "results.json").write_text(results.model_dump_json())
    return out


@pytest.fixture(scope="module")
def people(report: Path) -> Results:
    return Results.model_validate_json((report / "results.json").read_bytes())


# What is measured


def test_every_teacher_forced_metric_has_a_twin_and_no_other() -> None:
    assert {key for key, metric in METRICS.items() if metric.stage != "free"} == {
        *TWINS,
        *(twin.key for twin in TWINS.values()),
        *("eos_shift", "eos_shift_before", "eos_early"),
    }
    twin = METRICS["kld_cb0_recorded"]
    assert (twin.label, twin.needs, twin.is_per_frame) == ("KLD, semantic, on recordings", RECORDINGS, True)
    assert twin == replace(
        METRICS["kld_cb0"], key=twin.key, label=twin.label, definition=twin.definition, needs=RECORDINGS
    )


def test_people_are_judged_beside_the_model(people: Results) -> None:
    assert (people.corpus.name, people.corpus.prompts) == ("tiny:5 + recordings", 10)
    assert people.corpus.categories["recording"] == 5
    by_key = {metric.metric: metric.estimate for metric in people.metrics if metric.level == "q4_0"}
    for key in ("kld_cb0", "kld_rest", "kld_deployed", "top1"):
        assert (by_key[key].prompts, by_key[f"{key}_recorded"].prompts) == (5, 5)
    # The tiny model has never heard a person: what it makes of one is the less sure, and the easier hurt.
    assert by_key["kld_cb0_recorded"].low > 20 * by_key["kld_cb0"].high
    assert [gate.metric for gate in people.gates] == ["kld_cb0", "kld_cb0_recorded", "top1", "top1_recorded"]
    assert not people.missing
    assert people.controls[0].found == "equal in every clip"


def test_the_report_shows_both(people: Results, tmp_path: Path) -> None:
    written = markdown.report(people)
    section = written.split(f"## {TITLE}")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| Q4_0")]
    assert [row.split("|")[2].split("<br>")[0].strip() for row in rows] == [
        *("KLD, semantic", "KLD, acoustic", "Top-1 agreement"),
    ]
    for metric in ("kld_cb0", "kld_cb0_recorded"):
        value = next(m.estimate.value for m in people.metrics if (m.level, m.metric) == ("q4_0", metric))
        assert f"{value:.5f}" in rows[0]
    assert TITLE in html.page(_undrawn(people), tmp_path).replace("&#39;", "'")


def test_nothing_is_said_of_recordings_without_any(people: Results, tmp_path: Path) -> None:
    own = [metric for metric in people.metrics if not METRICS[metric.metric].needs]
    without = people.model_copy(update={"metrics": own})
    assert TITLE not in markdown.report(without)
    assert TITLE not in html.page(_undrawn(without), tmp_path).replace("&#39;", "'")


def _undrawn(results: Results) -> Results:
    """Without what makes plots, which take seconds."""
    levels = [level.model_copy(update={"memory": None}) for level in results.levels]
    shown = [metric for metric in results.metrics if metric.metric.startswith("top1")]
    return results.model_copy(update={"levels": levels, "codebooks": [], "attribution": [], "metrics": shown})


def test_recordings_are_heard_once_and_coded_where_a_turn_has_one(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    """Whatever the seed: teacher forcing says the same."""
    corpus = tmp_path / "mine.jsonl"
    voice = PEOPLE / "austen-0880.flac"
    corpus.write_text(f'{{"id": "a", "text": "We are here.", "speaker": 3, "before": [[3, "He was.", "{voice}"]]}}')
    plan = plan_of(tmp_path / "out", corpus=str(corpus), recordings=_some(tmp_path), stages=("logits", "one-step"))
    assert [plan.seeds_for(prompt) for prompt in plan.corpus.prompts] == [(0, 1), (0,)]
    assert plan.clips() == 3 + 2 * 3
    done: list[int] = []
    evaluate(plan, progress=done.append)
    assert done[-1] == plan.clips()
    with Records.open(plan.records, plan.fingerprint) as records:
        kept = list(records)
    targets = [record for record in kept if record.stage == "target"]
    assert [(record.prompt, record.seed) for record in targets] == [("a", 0), ("a", 1), ("austen-0930.flac", 0)]
    heard = [record.detail["context"] for record in targets[:2]]
    assert heard[0] == heard[1], "one voice for both seeds"
    ((speaker, text, codes),) = heard[0]
    assert (speaker, text, len(codes)) == (3, "He was.", 38)
    found = {(record.prompt, key) for record in kept for key in record.values if record.stage in plan.stages}
    assert not {key for prompt, key in found if prompt == "austen-0930.flac" and not key.endswith("_recorded")}
    assert not {key for prompt, key in found if prompt == "a" and key.endswith("_recorded")}
    assert {twin.key for twin in TWINS.values()} <= {key for _, key in found}


def _some(tmp_path: Path, name: str = "austen-0930") -> Path:
    """A directory of one of them."""
    directory = tmp_path / "voices"
    directory.mkdir()
    for path in PEOPLE.glob(f"{name}.*"):
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


# What is asked for


def test_what_is_heard_follows_from_what_is_asked(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    both, alone, own = (
        plan_of(tmp_path),
        plan_of(tmp_path, corpus="none", prompts=None),
        plan_of(tmp_path, recordings=None),
    )
    assert [plan.corpus.name for plan in (both, alone, own)] == ["tiny:5 + recordings", "recordings", "tiny:5"]
    assert both.corpus.prompts == own.corpus.prompts + alone.corpus.prompts
    assert len({plan.corpus.sha256 for plan in (both, alone, own)}) == 3
    assert len({plan.fingerprint for plan in (both, alone, own)}) == 3
    assert alone.corpus.sha256 == recordings_sha256(read_recordings(PEOPLE, 2048)), "as miso-recipe names them"
    assert [plan.stages for plan in (both, alone)] == [("logits", "one-step", "free"), ("logits", "one-step")]
    assert [plan.given for plan in (both, own)] == [{RECORDINGS}, frozenset()]
    with pytest.raises(ValueError, match="corpus none leaves nothing to say: name a corpus, or give recordings"):
        plan_of(tmp_path, corpus="none", recordings=None)
    with pytest.raises(ValueError, match="prompts=5 is so many of a corpus, and only recordings are heard"):
        plan_of(tmp_path, corpus="none")
    with pytest.raises(ValueError, match="nothing is spoken freely beside recordings: add --stages logits,one-step"):
        plan_of(tmp_path, stages=("free",))


def test_a_recording_that_is_called_as_a_prompt_is(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text('{"id": "Austen-0880.FLAC", "text": "We are here."}')
    with pytest.raises(RecordingsError, match=r"austen-0880\.flac is called as a prompt of mine: rename the recording"):
        plan_of(tmp_path, corpus=str(corpus), prompts=None)


def test_damages_are_heard_on_enough_of_both(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    """Or a gate on people's speech would never be seen to fail."""
    directory = tmp_path / "voices"
    directory.mkdir()
    for number in range(24):
        sound = 0.1 * np.random.default_rng(number).standard_normal(9_600)
        soundfile.write(directory / f"{number:02}.wav", sound, 24_000)
        (directory / f"{number:02}.txt").write_text("We are here.")
    plan = plan_of(tmp_path, recordings=directory, prompts=40, controls=True)
    damaged = plan.damages[0].candidate
    hurt = [prompt for prompt in plan.corpus.prompts if plan.seeds_of(damaged, prompt) == (0,)]
    assert Counter(prompt.is_recording for prompt in hurt) == {False: 12, True: 8}
    assert [int(prompt.id[:2]) for prompt in hurt if prompt.is_recording] == list(range(0, 24, 3)), "evenly"
    assert FEWEST_PROMPTS <= 8
    few = plan_of(tmp_path, recordings=directory, prompts=2, controls=True)
    assert few.controls, "enough recordings to judge by"


# A regression that people's speech alone shows


def test_what_gets_worse_on_recordings_only_fails(report: Path, tmp_path: Path) -> None:
    """Ten times the KLD on people's speech, and not a digit of the model's own: by history and by margin."""
    accepted = tmp_path / "accepted.json"
    accept(report, accepted, force=True)
    assert gate(report, accepted).verdict == "PASS"
    name = "observations.json"
    worse = tmp_path / "worse"
    worse.mkdir()
    (worse / "results.json").write_bytes((report / "results.json").read_bytes())
    observed = load_accepted(accepted).entries[0].accepted
    stored = observed.levels["q4_0"]["kld_cb0_recorded"]
    hurt = stored.model_copy(update={"values": [None if value is None else 10 * value for value in stored.values]})
    levels = {"q4_0": {**observed.levels["q4_0"], "kld_cb0_recorded": hurt}}
    (worse / name).write_text(observed.model_copy(update={"levels": levels}).model_dump_json())
    said = gate(worse, accepted)
    assert said.verdict == "FAIL"
    assert [each.metric for each in said.gates if each.verdict == "FAIL"] == ["kld_cb0_recorded"]
    values = observed.model_copy(update={"levels": levels})
    measured = {key: found for key in levels["q4_0"] if (found := values.metric("q4_0", key)) is not None}
    verdicts = {each.metric: each.verdict for each in judge("q4_0", measured, GATES.only(["logits"], [RECORDINGS]))}
    assert verdicts == {
        "kld_cb0": "PASS", "kld_cb0_recorded": "FAIL", "top1": "PASS", "top1_recorded": "PASS",
    }  # fmt: skip


def test_recordings_are_seen_where_two_machines_are_compared(tmp_path: Path) -> None:
    """Their clips are in no metric of the model's own speech."""
    measured = {"kld_cb0": observations(KLD[:10], FRAMES[:10])}
    recorded = observations(KLD[10:], FRAMES[10:])
    recorded = replace(recorded, prompts=np.char.add("people-", recorded.prompts))
    here = observed_of(results(), {"q4_0": {**measured, "kld_cb0_recorded": recorded}})
    more = replace(recorded, values=1.02 * recorded.values)
    there = observed_of(results(THERE), {"q4_0": {**measured, "kld_cb0_recorded": more}})
    path = tmp_path / "accepted.json"
    for each in (here, there):
        accept_into(path, each, lambda _held: "PASS")
    accepted = load_accepted(path)
    noise = noise_between_machines(accepted, "q4_0", "kld_cb0_recorded")
    assert noise == pytest.approx(0.02 * recorded.mean, rel=0.5)
    assert noise_between_machines(accepted, "q4_0", "kld_cb0") == 0
    assert {each.verdict for each in judge_history(here, accepted, GATES)} == {"PASS"}
