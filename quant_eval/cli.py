"""`miso-eval`: measure what a level costs in memory and prosody, judge it, report it."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..console import DONE, FAILED, NO, counted_bar, run, stderr, stdout, table
from ..models.levels import F32
from ..version import __version__
from .accepting import accept, gate, results_of
from .command_text import EXAMPLES, GATE_COLUMNS, cost_text, duration, gate_rows, history_line, result_lines
from .corpus import is_part
from .evaluation import Wanted, count, evaluate_plan
from .gates.judge import number
from .gates.observed import OBSERVATIONS_NAME
from .instruments.table import ROWS, costs_of, remarks
from .listening.answers import load_all
from .listening.judging import judge
from .listening.kept import SOUNDS_NAME
from .listening.making import make_study, write_study
from .listening.study import MOST_RATINGS, MOST_TRIALS, RATINGS, load_key
from .listening.study import Wanted as WantedStudy
from .listening.wording import HEARD_COLUMNS, RATED_COLUMNS, heard_rows, rated_rows, result_notes, study_lines
from .metric import FREE, LOGITS, ONE_STEP, STAGES
from .metrics.table import METRICS
from .prosody.pair import pair_report
from .report.headline import why_not_judged
from .report.plots import check_installed
from .report.write import JSON_NAME, write_reports
from .results import GateResult, Verdict
from .run.cost import estimate_cost
from .run.plan import COMPARED, REFERENCE, Asked, Plan, plan_compare, plan_run
from .run.verified_files import HASHES_NAME
from .said import AUTO, NO_CORPUS
from .scoring.scored import steps_of_one

_PATH = click.Path(path_type=Path)
_TRIALS, _RATINGS = click.IntRange(0, MOST_TRIALS), click.IntRange(0, MOST_RATINGS)
_QUICK_PROMPTS = 40
"""Of `--quick`. Teacher-forced stages have hundreds of frames a prompt."""
_PATIENCE_S = 2.0
"""With files that are hashed, before that is said."""
_EXTRA = (
    f"Also judge by an instrument: {', '.join(ROWS)}; wer=pocketsphinx (what measures it); NAME=MODULE:FUNCTION (your "
    "own). Repeatable."
)


def _options(command: Any) -> Any:
    options = (
        click.option("--out", type=_PATH, required=True, help="Directory of records, clips and reports; resumes."),
        click.option(
            "--corpus",
            default=AUTO,
            help="builtin, tiny, tiny-large, builtin:40 (a part), a JSONL file, or none [default: the model's].",
        ),
        click.option(
            "--recordings",
            type=_PATH,
            metavar="DIR",
            help="Sound files beside the corpus, each with its words in NAME.txt.",
        ),
        click.option("--prompts", type=click.IntRange(1), help="Only so many of the corpus."),
        click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Renditions a prompt."),
        click.option("--stages", default=",".join(STAGES), show_default=True, help="Comma-separated."),
        click.option(
            "--quick",
            is_flag=True,
            help="Stages logits and one-step, one seed, and 40 prompts unless --prompts or a part is named.",
        ),
        click.option("--temperature", default=0.9, show_default=True),
        click.option("--top-k", default=50, show_default=True),
        click.option("--gates", type=_PATH, help="Gates as TOML [default: those of the package]."),
        click.option("--controls/--no-controls", default=True, help="Also show that every gate can fail."),
        click.option("--ladder", is_flag=True, help="Also damage each half step by step: every metric must follow."),
        click.option("--vram/--no-vram", default=True, help="Account (and with a GPU measure) memory."),
        click.option("--extra", "extras", multiple=True, metavar="NAME", help=_EXTRA),
        click.option("--threads", type=click.IntRange(1), help="Of a process [default: cores / processes]."),
        click.option("--processes", type=click.IntRange(1), default=1, show_default=True),
        click.option("--gpu-layers", type=int, help="0: CPU only."),
        click.option("--fresh", is_flag=True, help="Forget what an earlier run has left in --out."),
        click.option("--strict", is_flag=True, help="INCONCLUSIVE is a failure too."),
        click.option("--dry-run", is_flag=True, help="Print what it will cost, by parts, and end."),
        click.option("--json", "as_json", is_flag=True, help="Print the results (of --dry-run the cost) as JSON."),
        click.option("--debug", is_flag=True, help="Show tracebacks and details."),
    )
    for option in reversed(options):  # click shows the last that was added first
        command = option(command)
    return command


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """What quantisation costs, in memory and in prosody, with verdicts."""


@cli.command("run")
@click.argument("bundle", type=_PATH)
@click.option("--levels", default="", help="Comma-separated [default: all that BUNDLE has].")
@click.option("--reference", default=REFERENCE, show_default=True, help="Level that the others are held against.")
@click.option("--history", type=_PATH, help="Accepted evaluations (`accept` writes them): worse is a failure.")
@_options
def run_command(bundle: Path, levels: str, reference: str, **options: Any) -> int:
    """Evaluate levels of BUNDLE against its reference level."""
    names = [name.strip() for name in levels.split(",") if name.strip()]
    return _evaluate(lambda asked: plan_run(bundle, names, reference, asked), "run", options)


@cli.command()
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH)
@click.option("--level", default=COMPARED, show_default=True)
@click.option("--reference-bundle", type=_PATH, help="Whose FP16 both are measured by [default: OLD's, or NEW's].")
@_options
def compare(old: Path, new: Path, level: str, reference_bundle: Path | None, **options: Any) -> int:
    """Whether the bundle NEW is worse than OLD at one level, both measured by FP16."""
    options["history"] = None  # a comparison has none
    return _evaluate(lambda asked: plan_compare(old, new, level, asked, reference_bundle), "compare", options)


def _stages(options: dict[str, Any]) -> tuple[str, ...]:
    """Those that were asked for."""
    return (LOGITS, ONE_STEP) if options["quick"] else tuple(name.strip() for name in options["stages"].split(","))


def _prompts(options: dict[str, Any]) -> int | None:
    """How many of the corpus, unless all."""
    is_cut = options["prompts"] is not None or is_part(options["corpus"]) or options["corpus"] == NO_CORPUS
    return _QUICK_PROMPTS if options["quick"] and not is_cut else options["prompts"]


def _evaluate(make: Any, kind: str, options: dict[str, Any]) -> int:
    check_installed()
    quick = options["quick"]
    stages = _stages(options)
    asked = Asked(
        out=options["out"],
        corpus=options["corpus"],
        recordings=options["recordings"],
        prompts=_prompts(options),
        seeds=1 if quick else options["seeds"],
        stages=stages,
        controls=options["controls"],
        ladder=options["ladder"],
        temperature=options["temperature"],
        top_k=options["top_k"],
        processes=options["processes"],
        threads=options["threads"],
        gpu_layers=options["gpu_layers"],
    )
    plan: Plan = make(asked)
    cost = estimate_cost(
        plan,
        options["processes"],
        vram=options["vram"],
        instruments=costs_of(options["extras"]),
        scores=steps_of_one(plan),
    )
    for remark in remarks(options["extras"], speaks=FREE in plan.stages):
        stderr.print(f"miso-eval: {remark}", style="red", highlight=False, markup=False)
    if options["dry_run"]:
        if options["as_json"]:
            stdout.print_json(json.dumps(cost.to_dict()))
        else:
            stdout.print(cost_text(cost), highlight=False, markup=False)
        return DONE
    stderr.print(cost_text(cost), highlight=False, markup=False)
    if options["fresh"]:
        _forget(options["out"])
    wanted = Wanted(
        kind, options["processes"], options["gates"], options["history"], options["vram"], options["extras"]
    )
    begin = time.monotonic()
    total = count(plan, wanted)
    with counted_bar("checking files", _PATIENCE_S) as hashing, counted_bar("evaluating") as done:
        results = evaluate_plan(plan, wanted, lambda number: done(number, total), hashing)
    write_reports(results, plan.audio, asked.out, strict=options["strict"])
    if options["as_json"]:
        stdout.print_json(results.model_dump_json())
    else:
        _show_gates(results.gates)
        if results.missing:
            stdout.print(table("Not measured", ("what was asked for",), [(each,) for each in results.missing]))
        for line, is_bad in result_lines(results):
            stdout.print(line, style="red" if is_bad else None, highlight=False, markup=False)
        written = f"{asked.out / 'report.html'}: written, {duration(time.monotonic() - begin)}"
        stdout.print(written, highlight=False, markup=False)
    return _exit_code(results.verdict, results.missing, why_not_judged(results), strict=options["strict"])


def _show_gates(gates: Sequence[GateResult]) -> None:
    if rows := gate_rows(gates):
        stdout.print(table("Gates", GATE_COLUMNS, rows, numeric=(2, 3, 4)))


def _exit_code(verdict: Verdict | None, missing: Sequence[str], not_judged: Sequence[str], *, strict: bool) -> int:
    """0: passed, or undecided inside the margins. 1: failed. 2: something is missing or nothing was judged; it is said.

    What failed is 1 also where something is missing.
    """
    if missing:
        stderr.print(f"miso-eval: not measured: {'; '.join(missing)}", style="red", highlight=False, markup=False)
    if verdict is None:
        why = "; ".join(not_judged) or "no gate is of a metric that was measured"
        stderr.print(f"miso-eval: nothing was judged: {why}", style="red", highlight=False, markup=False)
        return FAILED
    if verdict == "FAIL":
        return NO
    if missing or verdict == "MISSING":
        return FAILED
    return NO if strict and verdict == "INCONCLUSIVE" else DONE


def _forget(out: Path) -> None:
    """What an earlier run has left."""
    for path in (out, out / F32.key):
        for name in ("records", "logits", "clips", "damaged"):
            shutil.rmtree(path / name, ignore_errors=True)
    for name in (JSON_NAME, OBSERVATIONS_NAME, SOUNDS_NAME, HASHES_NAME):
        (out / name).unlink(missing_ok=True)


@cli.command()
@click.argument("reference", type=_PATH)
@click.argument("test", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def prosody(reference: Path, test: Path, as_json: bool, debug: bool) -> int:
    """Compare the prosody of two recordings of one text."""
    report = pair_report(reference, test)
    if as_json:
        stdout.print_json(json.dumps(report.to_dict()))
        return DONE
    sides = (report.reference, report.test)
    rows = [
        (key.replace("_", " "), *("-" if side.get(key) is None else f"{side[key]:.3f}" for side in sides))
        for key in {**report.reference, **report.test}
    ]
    stdout.print(table("Recordings", ("", reference.name, test.name), rows, numeric=(1, 2)))
    differences = [
        (METRICS[key].label, number(METRICS[key], value), METRICS[key].definition)
        for key, value in {**report.free, **(report.aligned or {})}.items()
    ]
    stdout.print(table("Differences", ("metric", "value", "definition"), differences, numeric=(1,)))
    if report.why_not_aligned:
        stdout.print(f"Not compared step by step: {report.why_not_aligned}.", highlight=False)
    return DONE


@cli.command("accept")
@click.argument("report", type=_PATH)
@click.argument("file", type=_PATH)
@click.option("--gates", type=_PATH, help="Gates as TOML [default: those of the package].")
@click.option("--force", is_flag=True, help="Whatever its verdict; FILE says so for ever.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def accept_command(report: Path, file: Path, gates: Path | None, force: bool, debug: bool) -> int:
    """Accept the evaluation in REPORT: add it to FILE, for its kind of machine.

    What is FAIL or MISSING is refused, exit code 2, without --force.
    """
    said = accept(report, file, gates, force=force)
    how = f"by force, with verdict {said.verdict or 'none'}: it says so for ever" if said.forced else f"{said.verdict}"
    stdout.print(f"{file}: accepted ({how}); commit it", highlight=False)
    return DONE


@cli.command("gate")
@click.argument("report", type=_PATH)
@click.option("--accepted", "file", type=_PATH, required=True, help="Written by `miso-eval accept`.")
@click.option("--gates", type=_PATH, help="Gates as TOML [default: those of the package].")
@click.option("--strict", is_flag=True, help="INCONCLUSIVE is a failure too.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def gate_command(report: Path, file: Path, gates: Path | None, strict: bool, debug: bool) -> int:
    """Hold the evaluation in REPORT against the accepted ones in FILE."""
    found = gate(report, file, gates)
    _show_gates(found.gates)
    for line in (*found.not_judged, *filter(None, [found.forced]), history_line(found.gates)):
        stdout.print(line, highlight=False, markup=False)
    if found.alone in ("FAIL", "MISSING"):
        stdout.print(f"the evaluation itself, without the history: {found.alone}", highlight=False, markup=False)
    return _exit_code(found.verdict, found.missing, found.not_judged, strict=strict)


@cli.command("report")
@click.argument("report", type=_PATH)
@click.option("--strict", is_flag=True, help="INCONCLUSIVE is a failure in JUnit.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def report_command(report: Path, strict: bool, debug: bool) -> int:
    """Write the reports in REPORT again, from its results.json."""
    results = results_of(report)
    for written in write_reports(results, report / "clips", report, strict=strict):
        stdout.print(str(written), highlight=False)
    return DONE


@cli.command("abx")
@click.argument("report", type=_PATH)
@click.option("--trials", type=_TRIALS, help="Of each level [default: enough for a listener right in 80 %].")
@click.option("--ratings", type=_RATINGS, default=RATINGS, show_default=True, help="Sentences to be rated.")
@click.option("--levels", default="", help="Comma-separated [default: all of the evaluation].")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn.")
@click.option("--force", is_flag=True, help="Also over the key of another study.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def abx_command(
    report: Path, trials: int | None, ratings: int, levels: str, seed: int, force: bool, debug: bool
) -> int:
    """Make a blind listening test of the evaluation in REPORT: abx.html for listeners, abx-key.json for you."""
    names = [name.strip() for name in levels.split(",") if name.strip()]
    made = make_study(report, WantedStudy(names, trials, ratings, seed))
    written = write_study(made, report, force=force)
    for line in study_lines(made, written):
        stdout.print(line, highlight=False, markup=False, soft_wrap=True)
    return DONE


@cli.command("abx-result")
@click.argument("key", type=_PATH)
@click.argument("answers", type=_PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def abx_result_command(key: Path, answers: tuple[Path, ...], as_json: bool, debug: bool) -> int:
    """Judge ANSWERS (one file of each listener) by KEY: abx-key.json, or the folder that has it."""
    known = load_key(key)
    found = judge(known, load_all(list(answers), known))
    if as_json:
        stdout.print_json(found.model_dump_json())
        return DONE
    if found.heard:
        stdout.print(table("Heard", HEARD_COLUMNS, heard_rows(found), numeric=(2, 3, 4, 6)))
    if found.rated:
        stdout.print(table("Rated, 0 to 100", RATED_COLUMNS, rated_rows(found), numeric=(1, 3)))
    for line in result_notes(found):
        stdout.print(line, highlight=False, markup=False, soft_wrap=True)
    return DONE


def main() -> None:
    """Entry point."""
    sys.exit(run(cli, sys.argv[1:], "miso-eval"))
