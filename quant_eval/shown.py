"""What the command prints: what it will cost, how far it is, what came out. It decides nothing but the exit code."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..console import DONE, FAILED, NO, progress_bar, stderr, stdout, table
from ..core.units import size_text
from .gates.judge import number
from .metrics.table import METRICS
from .report.headline import headline
from .report.words import label_of
from .results import GateResult, Results, Verdict
from .run.cost import Cost
from .run.verified import Progress

_PATIENCE_S = 2.0


def show_cost(cost: Cost) -> None:
    """On stderr, before the work."""
    parts = (("logits", cost.logits_bytes), ("damaged levels", cost.copies_bytes), ("clips", cost.audio_bytes))
    of = ", ".join(f"{name} {size_text(size)}" for name, size in parts if size)
    disk = f", {size_text(cost.disk_bytes)} on disk ({of})" if of else ""
    takes = cost.said if cost.wall_s is None else f"about {duration(cost.wall_s)} ({cost.said})"
    stderr.print(
        f"{cost.clips} clips, about {duration(cost.audio_s)} of speech{disk}; {takes}. It resumes after Ctrl-C.",
        highlight=False,
    )


@contextmanager
def work_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of clips done so far. It begins with the first call: what is before takes a time of its own."""
    with ExitStack() as stack:
        yield _counted(stack, "evaluating", total)


def _counted(stack: ExitStack, label: str, total: int) -> Callable[[int], None]:
    bar, seen = None, 0

    def tell(done: int) -> None:
        nonlocal bar, seen
        bar = bar or stack.enter_context(progress_bar(label, total))
        bar(done - seen)
        seen = done

    return tell


@contextmanager
def hashing_bar() -> Iterator[Progress]:
    """A bar while files are hashed, once that has taken two seconds; where there is no terminal, a line."""
    begin: float | None = None
    tell: Callable[[int], None] | None = None
    with ExitStack() as stack:

        def hashed(done: int, total: int) -> None:
            nonlocal begin, tell
            begin = begin or time.monotonic()
            if tell is None and time.monotonic() - begin >= _PATIENCE_S and done < total:
                stderr.print(f"checking the bundle's files against its manifest: {size_text(total)}", highlight=False)
                tell = _counted(stack, "checking files", total)
            if tell is not None:
                tell(done)
                if done >= total:
                    stack.close()

        yield hashed


def show_results(results: Results, out: Path, wall_s: float) -> None:
    """On stdout: gates, what is missing or not judged, controls, the outcome."""
    show_gates(results.gates)
    if results.missing:
        stdout.print(table("Not measured", ("what was asked for",), [(each,) for each in results.missing]))
    for level in results.levels:
        if level.why_not_judged is not None:
            stdout.print(f"{label_of(level.level)}: {level.why_not_judged}", highlight=False, markup=False)
    for control in results.controls:
        style = None if control.behaved else "red"
        said = f"control {control.name}: {control.found} (expected: {control.expected})"
        stdout.print(said, style=style, markup=False)
    stdout.print(headline(results), highlight=False, markup=False)
    stdout.print(f"{out / 'report.html'}: written, {duration(wall_s)}", highlight=False, markup=False)


def show_gates(gates: Sequence[GateResult]) -> None:
    """A table on stdout."""
    rows = []
    for gate in gates:
        metric, found = METRICS[gate.metric], gate.estimate
        digits = metric.digits
        rows.append(
            (
                gate.level,
                metric.label + (f" ({gate.kind})" if gate.kind in ("history", "anchor", "paired") else ""),
                "-" if found is None else number(metric, found.value),
                "-" if found is None else f"{found.low:.{digits}f} to {found.high:.{digits}f}",
                f"{gate.margin:g}",
                _verdict(gate),
            )
        )
    columns = ("level", "metric", "value", "bounds, 95 % each", "margin", "verdict")
    stdout.print(table("Gates", columns, rows, numeric=(2, 3, 4)))


def _verdict(gate: GateResult) -> str:
    if gate.verdict != "INCONCLUSIVE":
        return gate.verdict
    said = "INCONCLUSIVE, and fails: beyond the margin" if gate.outcome == "FAIL" else gate.verdict
    unit = "clips" if METRICS[gate.metric].counts_failures else "prompts"
    return said if gate.needed is None else f"{said}; {gate.needed} {unit} would tell"


def exit_code(
    verdict: Verdict | None, missing: Sequence[str], not_judged: Sequence[str] = (), *, strict: bool = False
) -> int:
    """0: passed, or undecided inside the margins. 1: failed. 2: not measured, or nothing was judged, said on stderr.

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


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
