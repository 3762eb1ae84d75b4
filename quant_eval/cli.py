"""`miso-eval`: measure what a level costs in memory and prosody, judge it, report it."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..console import DONE, FAILED, NO, progress_bar, run, stderr, stdout, table
from ..core.units import size_text
from ..version import __version__
from .evaluation import Wanted, evaluate_plan
from .gates.history import OBSERVATIONS_NAME, accept, gate_against
from .gates.judge import number
from .metric import LOGITS, ONE_STEP, STAGES
from .metrics.table import METRICS
from .old_names import OLD_OBSERVATIONS_NAMES, new_stage
from .prosody.pair import pair_report
from .report.plots import check_installed
from .report.words import headline, why_not_judged
from .report.write import JSON_NAME, write_reports
from .results import GateResult, Results, parsed_results
from .run.plan import COMPARED, REFERENCE, Asked, Plan, estimate_cost, plan_compare, plan_run

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  miso-eval run DIR --out report/                                 all levels of a bundle, all stages
  miso-eval run DIR --levels q4_k_m --quick --out report/         logits and one-step only: minutes
  miso-eval run DIR --out report/ --history accepted.json         and against the last accepted evaluation
  miso-eval compare OLD NEW --level q4_k_m --out report/          two bundles of one model
  miso-eval prosody ref.wav test.wav                              two recordings
  miso-eval accept report/ accepted.json                          accept an evaluation
  miso-eval gate report/ --accepted accepted.json                 hold it against an accepted one
  miso-eval report report/                                        write the reports again, from results.json
Exit codes: 0 passed (or could not be told, without --strict), 1 a gate failed, 2 could not measure.
"""


def _options(command: Any) -> Any:
    options = (
        click.option("--out", type=_PATH, required=True, help="Directory of records, clips and reports; resumes."),
        click.option("--corpus", default="auto", help="builtin, tiny, or a JSONL file [default: by the model]."),
        click.option("--prompts", type=click.IntRange(1), help="Only so many of them."),
        click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Renditions a prompt."),
        click.option("--stages", default=",".join(STAGES), show_default=True, help="Comma-separated."),
        click.option("--layers", "old_stages", hidden=True),
        click.option("--quick", is_flag=True, help="Stages logits and one-step, one seed."),
        click.option("--temperature", default=0.9, show_default=True),
        click.option("--top-k", default=50, show_default=True),
        click.option("--gates", type=_PATH, help="Gates as TOML [default: those of the package]."),
        click.option("--history", type=_PATH, help="An accepted evaluation: worse than it is a failure."),
        click.option("--controls/--no-controls", default=True, help="Also judge a level damaged on purpose."),
        click.option("--vram/--no-vram", default=True, help="Account (and with a GPU measure) memory."),
        click.option("--extra", "extras", multiple=True, help="wer, speaker_similarity, …, or NAME=module:function."),
        click.option("--threads", type=click.IntRange(1), help="Of a process [default: cores / processes]."),
        click.option("--processes", type=click.IntRange(1), default=1, show_default=True),
        click.option("--gpu-layers", type=int, help="0: CPU only."),
        click.option("--fresh", is_flag=True, help="Forget what an earlier run has left in --out."),
        click.option("--strict", is_flag=True, help="INCONCLUSIVE is a failure too."),
        click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout."),
        click.option("--debug", is_flag=True, help="Show tracebacks and details."),
    )
    for option in reversed(options):  # click shows the last that was added first
        command = option(command)
    return command


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """What quantisation costs, in memory and in prosody, with verdicts."""


@cli.command("run")
@click.argument("bundle", type=_PATH)
@click.option("--levels", default="", help="Comma-separated [default: all that BUNDLE has].")
@click.option("--reference", default=REFERENCE, show_default=True, help="Level that the others are held against.")
@click.option("--baseline", "old_reference", hidden=True)
@_options
def run_command(bundle: Path, levels: str, reference: str, old_reference: str | None, **options: Any) -> int:
    """Evaluate levels of BUNDLE against its reference level."""
    reference = _renamed("--baseline", "--reference", old_reference) or reference
    names = [name.strip() for name in levels.split(",") if name.strip()]
    return _evaluate(lambda asked: plan_run(bundle, names, reference, asked), "run", options)


@cli.command()
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH)
@click.option("--level", default=COMPARED, show_default=True)
@_options
def compare(old: Path, new: Path, level: str, **options: Any) -> int:
    """Evaluate the bundle NEW against OLD at one level."""
    return _evaluate(lambda asked: plan_compare(old, new, level, asked), "compare", options)


def _renamed(old: str, new: str, given: Any) -> Any:
    """What was `given` under an old spelling, which is still read: with a line that names the new one."""
    if given is not None:
        stderr.print(f"miso-eval: {old} is called {new} now", style="yellow", highlight=False)
    return given


def _stages(options: dict[str, Any]) -> tuple[str, ...]:
    """Those that were asked for, by their names of today."""
    if options["quick"]:
        return (LOGITS, ONE_STEP)
    said = _renamed("--layers", "--stages", options["old_stages"]) or options["stages"]
    names = tuple(name.strip() for name in said.split(","))
    for old in dict.fromkeys(name for name in names if new_stage(name) != name):
        _renamed(f"the stage {old}", new_stage(old), old)
    return tuple(map(new_stage, names))


def _evaluate(make: Any, kind: str, options: dict[str, Any]) -> int:
    check_installed()
    quick = options["quick"]
    stages = _stages(options)
    if options["fresh"] and options["out"].exists():
        for path in (options["out"] / name for name in ("records", "logits", "clips")):
            shutil.rmtree(path, ignore_errors=True)
        for name in (JSON_NAME, OBSERVATIONS_NAME, *OLD_OBSERVATIONS_NAMES):
            (options["out"] / name).unlink(missing_ok=True)
    asked = Asked(
        out=options["out"],
        corpus=options["corpus"],
        prompts=options["prompts"],
        seeds=1 if quick else options["seeds"],
        stages=stages,
        controls=options["controls"],
        temperature=options["temperature"],
        top_k=options["top_k"],
        processes=options["processes"],
        threads=options["threads"],
        gpu_layers=options["gpu_layers"],
    )
    plan: Plan = make(asked)
    cost = estimate_cost(plan)
    disk = f", {size_text(cost.disk_bytes)} of logits" if cost.disk_bytes else ""
    stderr.print(
        f"{cost.clips} clips, about {_duration(cost.audio_s)} of speech{disk}; estimated from this machine's "
        f"memory bandwidth: {_duration(cost.wall_s / options['processes'])} at least. It resumes after Ctrl-C.",
        highlight=False,
    )
    wanted = Wanted(
        kind, options["processes"], options["gates"], options["history"], options["vram"], options["extras"]
    )
    begin = time.monotonic()
    with progress_bar("evaluating", plan.clips()) as bar:
        seen = [0]

        def tell(done: int) -> None:
            bar(done - seen[0])
            seen[0] = done

        results = evaluate_plan(plan, wanted, tell)
    write_reports(results, plan.audio, asked.out, strict=options["strict"])
    if options["as_json"]:
        stdout.print_json(results.model_dump_json())
    else:
        _show(results, asked.out, time.monotonic() - begin)
    return _exit_code(results.verdict, why_not_judged(results), strict=options["strict"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _exit_code(verdict: str | None, not_judged: Sequence[str], *, strict: bool) -> int:
    if verdict is None:
        why = "; ".join(not_judged) or "no gate is of a metric that was measured"
        stderr.print(f"miso-eval: nothing was judged: {why}", style="red", highlight=False)
        return FAILED
    return NO if verdict == "FAIL" or (strict and verdict == "INCONCLUSIVE") else DONE


def _show(results: Results, out: Path, wall_s: float) -> None:
    _show_gates(results.gates)
    for why in why_not_judged(results):
        stdout.print(why, highlight=False)
    for control in results.controls:
        style = None if control.behaved else "red"
        stdout.print(f"control {control.name}: {control.found} (expected: {control.expected})", style=style)
    stdout.print(headline(results), highlight=False)
    stdout.print(f"{out / 'report.html'}: written, {_duration(wall_s)}", highlight=False)


def _show_gates(gates: list[GateResult]) -> None:
    rows = []
    for gate in gates:
        metric, found = METRICS[gate.metric], gate.estimate
        digits = metric.digits
        rows.append(
            (
                gate.level,
                metric.label + (" (history)" if gate.kind == "history" else ""),
                "-" if found is None else number(metric, found.value),
                "-" if found is None else f"{found.low:.{digits}f} to {found.high:.{digits}f}",
                f"{gate.margin:g}",
                gate.verdict,
            )
        )
    columns = ("level", "metric", "value", "95 % interval", "margin", "verdict")
    stdout.print(table("Gates", columns, rows, numeric=(2, 3, 4)))


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
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def accept_command(report: Path, file: Path, debug: bool) -> int:
    """Accept the evaluation in REPORT: write it to FILE."""
    accept(report, file)
    stdout.print(f"{file}: written; commit it", highlight=False)
    return DONE


@cli.group(hidden=True)
def baseline() -> None:
    """What `accept` was called."""


@baseline.command("save")
@click.argument("report", type=_PATH)
@click.argument("file", type=_PATH)
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
@click.pass_context
def save(context: click.Context, /, **options: Any) -> int:
    """Accept the evaluation in REPORT: write it to FILE."""
    _renamed("baseline save", "accept", options)
    return int(context.invoke(accept_command, **options))


@cli.command()
@click.argument("report", type=_PATH)
@click.option("--accepted", type=_PATH, help="Written by `miso-eval accept`.  [required]")
@click.option("--baseline", "old_accepted", type=_PATH, hidden=True)
@click.option("--gates", type=_PATH, help="Gates as TOML [default: those of the package].")
@click.option("--strict", is_flag=True, help="INCONCLUSIVE is a failure too.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def gate(
    report: Path, accepted: Path | None, old_accepted: Path | None, gates: Path | None, strict: bool, debug: bool
) -> int:
    """Hold the evaluation in REPORT against an accepted one."""
    file = _renamed("--baseline", "--accepted", old_accepted) or accepted
    if file is None:
        raise click.UsageError("Missing option '--accepted'.")
    results, verdict, not_judged = gate_against(report, file, gates)
    _show_gates(results)
    for why in not_judged:
        stdout.print(why, highlight=False)
    return _exit_code(verdict, not_judged, strict=strict)


@cli.command("report")
@click.argument("report", type=_PATH)
@click.option("--strict", is_flag=True, help="INCONCLUSIVE is a failure in JUnit.")
@click.option("--debug", is_flag=True, help="Show tracebacks and details.")
def report_command(report: Path, strict: bool, debug: bool) -> int:
    """Write the reports in REPORT again, from its results.json."""
    path = report / JSON_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `miso-eval run … --out {report}` first")
    try:
        results = parsed_results(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for written in write_reports(results, report / "clips", report, strict=strict):
        stdout.print(str(written), highlight=False)
    return DONE


def main() -> None:
    """Entry point."""
    sys.exit(run(cli, sys.argv[1:], "miso-eval"))
