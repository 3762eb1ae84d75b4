"""The whole evaluation on the tiny model: right verdicts, the same records however it is done, and exit codes."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sample_study import answers_of

from builders import Built
from miso_gguf.console import run
from miso_gguf.models.manifest import Manifest, read_manifest
from miso_gguf.quant_eval.cli import cli
from miso_gguf.quant_eval.evaluation import Wanted, evaluate_plan
from miso_gguf.quant_eval.listening.kept import load_sounds
from miso_gguf.quant_eval.listening.study import load_key
from miso_gguf.quant_eval.metric import RECORDINGS
from miso_gguf.quant_eval.metrics.table import METRICS
from miso_gguf.quant_eval.results import Results
from miso_gguf.quant_eval.run.damage import damaged
from miso_gguf.quant_eval.run.plan import Asked, Plan, plan_compare, plan_run
from miso_gguf.quant_eval.run.record_store import RecordError, Records
from miso_gguf.quant_eval.run.runner import evaluate
from miso_gguf.runtime.bundle import open_level

LEVELS = ("fp16", "q8_0", "q4_0")
PROMPTS, SEEDS = 8, 2


def asked(out: Path, **changes: object) -> Asked:
    return replace(Asked(out, prompts=PROMPTS, seeds=SEEDS, threads=1), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.tiny(*LEVELS)


@pytest.fixture(scope="module")
def report(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation, by the command."""
    out = tmp_path_factory.mktemp("report")
    assert miso_eval("run", bundle, *few(out), "--no-vram") == 0
    return out


@pytest.fixture(scope="module")
def results(report: Path) -> Results:
    return Results.model_validate_json((report / "results.json").read_bytes())


def few(out: Path) -> list[object]:
    return ["--prompts", PROMPTS, "--seeds", SEEDS, "--threads", 1, "--no-controls", "--out", out]


def miso_eval(*arguments: object) -> int:
    return run(cli, [str(argument) for argument in arguments], "miso-eval")


def mean(results: Results, level: str, metric: str) -> float:
    return next(m.estimate.value for m in results.metrics if (m.level, m.metric) == (level, metric))


# The verdicts


def test_fp16_equals_itself_exactly(results: Results) -> None:
    perfect = {"top1": 100.0, "lf0_corr": 1.0}
    own = [m for m in results.metrics if m.level == "fp16" and m.metric != "first_divergence"]
    assert {m.metric for m in own} >= {"kld_cb0", "kld_rest", "top1", "flip_rate", "lf0_rmse", "dur_ratio", "mcd"}
    assert {m.metric: m.estimate.value for m in own} == {m.metric: perfect.get(m.metric, 0.0) for m in own}
    assert [control.found for control in results.controls] == ["equal in every clip"]
    fp16 = next(level for level in results.levels if level.level == "fp16")
    assert not [gate for gate in results.gates if gate.level == "fp16"], "it is not judged by that"
    assert fp16.verdict is None
    assert str(fp16.why_not_judged).startswith("not run: no F32 level in the bundle")


def test_levels_order_as_they_should(results: Results) -> None:
    for metric in ("kld_cb0", "kld_rest"):
        assert 0 == mean(results, "fp16", metric) < mean(results, "q8_0", metric) < mean(results, "q4_0", metric)


def test_each_half_has_its_share(results: Results) -> None:
    for part in results.attribution:
        if part.level in ("q8_0", "q4_0"):
            halves = part.backbone_only.value, part.decoder_only.value
            assert 0 < min(halves) <= max(halves) < 1.5 * part.both.value
            assert sum(halves) == pytest.approx(part.both.value, rel=0.7)
    assert {part.level for part in results.attribution} == {"q8_0", "q4_0"}


def test_the_noise_floor_is_above_the_levels(results: Results) -> None:
    floor = next(m.noise_floor for m in results.metrics if (m.level, m.metric) == ("q8_0", "semantic_wed"))
    assert floor is not None
    assert floor.value > mean(results, "q8_0", "semantic_wed")


def test_clips_are_there_to_be_heard(results: Results, report: Path) -> None:
    assert {clip.level for clip in results.clips} == {"q8_0", "q4_0"}
    for clip in results.clips:
        for name in (clip.audio, clip.reference_audio):
            samples, rate_hz = soundfile.read(report / "clips" / name)
            assert rate_hz == 24000
            assert np.abs(samples).max() > 0.05


def test_what_can_be_listened_to_is_kept(report: Path) -> None:
    """One-step clips of the first seed alone, aligned with the reference's; a listening test is made of them."""
    sounds = load_sounds(report)
    assert (sounds.reference, sounds.levels) == ("fp16", ["q8_0", "q4_0"])
    kept = Counter((each.stage, each.level, each.seed) for each in sounds.sounds)
    stages = [("one-step", 0), ("free", 0), ("free", 1)]
    assert kept == {(stage, level, seed): PROMPTS for stage, seed in stages for level in LEVELS}
    files = {path.name for path in (report / "clips").iterdir()}
    assert files == {each.audio for each in sounds.sounds}
    lengths: dict[str, set[int]] = {}
    for each in sounds.sounds:
        if each.stage == "one-step":
            info = soundfile.info(report / "clips" / each.audio)
            assert (info.samplerate, info.subtype, info.channels) == (24_000, "PCM_16", 1)
            lengths.setdefault(each.prompt, set()).add(info.frames)
    assert {len(found) for found in lengths.values()} == {1}


def test_a_listening_test_is_made_and_judged(report: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert miso_eval("abx", report, "--ratings", 2) == 0
    made = capfd.readouterr().out
    assert "Q4_0 beside F16: " in made
    assert "right answers show more than luck" in made
    key = load_key(report)
    paths = []
    for name, share in (("Ann", 1.0), ("Bo", 0.5)):
        paths.append(report / f"answers-{name}.json")
        paths[-1].write_text(json.dumps(answers_of(key, name, share, random.Random(name))))
    assert miso_eval("abx-result", report, *paths) == 0
    said = capfd.readouterr().out
    assert "Ann" in said
    assert "heard" in said
    assert miso_eval("abx-result", report / "abx-key.json", paths[0], "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert [each["is_heard"] for each in found["heard"]] == [True] * len({trial.level for trial in key.trials})
    assert {each["take"] for each in found["rated"]} == {"fp16", "q8_0", "q4_0", "anchor"}
    assert miso_eval("abx-result", report, paths[0], paths[0]) == 2
    assert "give one file of each listener" in capfd.readouterr().err


def test_reports_are_written(report: Path) -> None:
    for name in ("report.html", "report.md", "comment.md", "junit.xml", "results.json", "observations.json"):
        assert (report / name).stat().st_size > 500, name


# How it is done does not matter


def stable(plan: Plan) -> list[object]:
    """The records, without how long things took."""
    with Records.open(plan.records, plan.fingerprint) as store:
        return [
            replace(record, detail={k: v for k, v in record.detail.items() if k not in ("wall_s", "first_s")})
            for record in store
        ]


def small(bundle: Path, out: Path) -> Plan:
    return plan_run(bundle, ["fp16", "q4_0"], "fp16", asked(out, prompts=2, controls=False))


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    plan = small(bundle, tmp_path_factory.mktemp("whole"))
    evaluate(plan)
    return stable(plan)


@pytest.mark.parametrize("after", [1, 7])
def test_what_was_interrupted_goes_on(after: int, bundle: Path, whole: list[object], tmp_path: Path) -> None:
    plan = small(bundle, tmp_path)

    def stop(done: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(plan, progress=stop)
    assert 0 < len(stable(plan)) < len(whole)
    evaluate(plan)
    assert stable(plan) == whole


def test_two_processes_find_the_same(bundle: Path, whole: list[object], tmp_path: Path) -> None:
    plan = small(bundle, tmp_path)
    evaluate(plan, processes=2)
    assert stable(plan) == whole


def test_records_of_another_plan_are_refused(bundle: Path, tmp_path: Path) -> None:
    evaluate(replace(small(bundle, tmp_path), candidates=(), damages=(), stages=()))
    other = plan_run(bundle, ["fp16"], "fp16", asked(tmp_path, prompts=3, controls=False))
    with pytest.raises(RecordError, match="--fresh"):
        evaluate(other)


def test_recordings_are_replayed(bundle: Path, report: Path, tmp_path: Path) -> None:
    clip = next((report / "clips").glob("fp16-*.wav"))
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text(json.dumps({"text": "Hello there.", "audio": str(clip)}) + "\n")
    plan = plan_run(
        bundle, ["fp16", "q4_0"], "fp16", asked(tmp_path / "out", corpus=str(corpus), controls=False, seeds=1)
    )
    found = evaluate_plan(plan, Wanted(vram=False))
    assert mean(found, "q4_0", "kld_cb0_recorded") > 0
    assert {METRICS[m.metric].needs for m in found.metrics} == {RECORDINGS}, "nothing of an end, or of its own speech"
    assert not found.missing
    assert {(each.level, each.frames > 0) for each in found.codebooks} == {("fp16", True), ("q4_0", True)}
    assert [each.level for each in found.attribution] == ["q4_0"]
    assert found.controls[0].behaved


# Exit codes


STRICT_GATES = """schema_version = 1
[gates.kld_cb0]
kind = "at_most"
margins = { fp16 = 0.0, q8_0 = 0.0, q4_k_m = 0.0, q4_0 = 0.0 }
"""


def test_a_failed_gate_is_1(bundle: Path, report: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text(STRICT_GATES)
    arguments = ["run", bundle, *few(report), "--no-vram", "--gates", gates]
    assert miso_eval(*arguments) == 1
    assert miso_eval(*arguments[:-2]) == 0, "the same records, the default gates"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{bundle}", "--levels", "q4_k_m", "--out", "{tmp}"], "has no level q4_k_m"),
        (["run", "{bundle}", "--levels", "q9", "--out", "{tmp}"], "q9"),
        (["run", "{bundle}", "--stages", "logit", "--out", "{tmp}"], "unknown stage logit"),
        (["run", "{tmp}", "--out", "{tmp}/out"], "miso.json"),
        (
            ["run", "{bundle}", "--levels", "fp16", "--history", "{tmp}/none.json", "--out", "{tmp}"],
            "no accepted evaluation",
        ),
        (["gate", "{tmp}", "--accepted", "{tmp}/none.json"], "results.json is not there"),
        (["report", "{tmp}"], "results.json is not there"),
        (["prosody", "{tmp}/empty.wav", "{tmp}/empty.wav"], "empty.wav"),
        (["prosody", "{tmp}/none.wav", "{tmp}/none.wav"], "none.wav"),
    ],
)
def test_what_cannot_be_done_is_2_and_one_line(
    arguments: Sequence[str], message: str, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 24000)
    assert miso_eval(*(text.format(bundle=bundle, tmp=tmp_path) for text in arguments)) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert said[-1].startswith("miso-eval: error: ")


def test_prosody_of_two_files(report: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip = next((report / "clips").glob("fp16-*.wav"))
    assert miso_eval("prosody", clip, clip, "--json") == 0
    assert json.loads(capfd.readouterr().out)["free"]["dur_ratio"] == 0.0
    assert miso_eval("prosody", clip, clip) == 0
    assert "Duration" in capfd.readouterr().out


def test_a_changed_level_is_measured_again(bundle: Path, tmp_path: Path) -> None:
    """Records are of the files that were there: another mixture under the same name is another candidate."""
    quick = asked(tmp_path / "out", prompts=2, seeds=1, controls=False, stages=("logits",))
    same = evaluate_plan(plan_compare(bundle, bundle, "q4_0", quick), Wanted("compare", vram=False))
    damaged(open_level(bundle, "q4_0"), tmp_path / "new", strength=0.8)
    other = evaluate_plan(plan_compare(bundle, tmp_path / "new", "q4_0", quick), Wanted("compare", vram=False))
    assert mean(same, "new", "kld_cb0") == mean(same, "old", "kld_cb0") < mean(other, "new", "kld_cb0")
    assert any("new: level q4_0 of new" in note for note in other.notes)


def test_stages_that_were_not_asked_for_are_left_out(bundle: Path, tmp_path: Path) -> None:
    both = asked(tmp_path, prompts=2, seeds=1, controls=False, stages=("logits", "one-step"))
    evaluate(plan_run(bundle, ["fp16", "q4_0"], "fp16", both))
    plan = plan_run(bundle, ["fp16", "q4_0"], "fp16", replace(both, stages=("logits",)))
    found = evaluate_plan(plan, Wanted(vram=False))
    assert {METRICS[m.metric].stage for m in found.metrics} == {"logits"}


def test_the_manifest_is_read_once(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def noted(directory: Path) -> Manifest:
        read.append(directory)
        return read_manifest(directory)

    monkeypatch.setattr("miso_gguf.runtime.bundle.read_manifest", noted)
    wanted = asked(tmp_path, prompts=1, seeds=1, controls=False)
    evaluate_plan(plan_run(bundle, ["fp16", "q4_0"], "fp16", wanted), Wanted(vram=True))
    assert read == [bundle]


def test_nothing_to_judge_is_no_success(bundle: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text(STRICT_GATES)
    quick = ["run", bundle, "--prompts", 2, "--seeds", 1, "--threads", 1, "--no-controls", "--no-vram"]
    assert miso_eval(*quick, "--stages", "one-step", "--gates", gates, "--out", tmp_path / "out") == 2


def test_bad_files_are_found_out_before_the_work(bundle: Path, report: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    assert miso_eval("accept", report, other, "--force") == 0
    document = json.loads(other.read_text())
    document["entries"][0]["accepted"]["subject"]["model"] = "Another"
    other.write_text(json.dumps(document))
    gates = tmp_path / "gates.toml"
    gates.write_text('schema_version = 1\n[gates.kld_cb0]\nkind = "at_least"\nmargins = { fp16 = 0.1 }\n')
    for bad in (("--history", other), ("--gates", gates), ("--extra", "weer")):
        assert miso_eval("run", bundle, "--no-controls", "--out", tmp_path / "out", *bad) == 2
        assert not list((tmp_path / "out").glob("records/*")), bad


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["run", "none", "--out", "out"], 2)])
def test_without_the_extra_it_is_one_line(arguments: list[str], code: int) -> None:
    program = (
        "import sys\n"
        "for name in ('parselmouth', 'jinja2', 'matplotlib', 'pynvml'): sys.modules[name] = None\n"
        f"sys.argv = ['miso-eval', *{arguments}]\n"
        "from miso_gguf.quant_eval.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("pip install 'miso-gguf[eval]'" in done.stderr) == bool(code)
    assert "Traceback" not in done.stderr
