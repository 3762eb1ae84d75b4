"""What the command says of costs and results, as text. It prints nothing and decides nothing."""

from collections.abc import Iterator, Sequence

from ..core.units import size_text
from .gates.judge import number
from .metrics.table import METRICS
from .report.headline import headline, why_not_judged
from .report.words import limit, measured, units_to_decide
from .results import GateResult, Results
from .run.cost import Cost

_HISTORY = ("history", "anchor")
EXAMPLES = """\b
Examples:
  miso-eval run DIR --out report/                                 all levels of a bundle, all stages
  miso-eval run DIR --levels q4_k_m --quick --out report/         logits and one-step only, 40 prompts
  miso-eval run DIR --dry-run --out report/                       what all of it would cost, by parts
  miso-eval run DIR --out report/ --history accepted.json         and against the last accepted evaluation
  miso-eval run DIR --out report/ --recordings voices/            and on people's speech: NAME.wav with NAME.txt
  miso-eval compare OLD NEW --level q4_k_m --out compared/        is NEW worse than OLD, measured by FP16?
  miso-eval prosody ref.wav test.wav                              two recordings
  miso-eval accept report/ accepted.json                          accept an evaluation
  miso-eval gate report/ --accepted accepted.json                 hold it against an accepted one
  miso-eval report report/                                        write the reports again, from results.json
  miso-eval abx report/                                           a listening test, as a page
  miso-eval abx-result report/ answers-*.json                     what the listeners heard
Exit codes:
  0  passed, or undecided with the value inside the margin (--strict: 1)
  1  a gate failed, or is undecided with the value beyond the margin, or a control did not behave
  2  what was asked for could not be measured: it is named; or nothing was judged
"""
"""Below the command's help."""
GATE_COLUMNS = ("level", "metric", "value", "bounds, 95 % each", "margin", "verdict")


_LEAST_SHARE = 0.02
"""Of the time: what takes less is summed up."""


def cost_text(cost: Cost) -> str:
    """Before the work: all of it in a line, and where the time goes, the larger parts a line each."""
    parts = (("logits", cost.logits_bytes), ("damaged levels", cost.copies_bytes), ("clips", cost.audio_bytes))
    of = ", ".join(f"{name} {size_text(size)}" for name, size in parts if size)
    disk = f", {size_text(cost.disk_bytes)} on disk ({of})" if of else ""
    takes = cost.why_not if cost.wall_s is None else f"about {duration(cost.wall_s)}"
    total = f"{cost.clips} clips, about {duration(cost.audio_s)} of speech{disk}; {takes}. It resumes after Ctrl-C."
    return "\n".join([total, *_part_lines(cost)])


def _part_lines(cost: Cost) -> list[str]:
    wall_s = cost.wall_s or 0.0
    rows = [(part.name, part.seconds) for part in cost.parts if part.seconds >= _LEAST_SHARE * wall_s]
    if rest_s := wall_s - sum(seconds for _, seconds in rows):
        rows.append(("the rest", rest_s))
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {duration(seconds):>7}  {100 * seconds / wall_s:2.0f} %" for name, seconds in rows]


def gate_rows(gates: Sequence[GateResult]) -> list[tuple[str, ...]]:
    """Of a table with `GATE_COLUMNS`. What passes against accepted evaluations is only counted: see `history_line`."""
    rows: list[tuple[str, ...]] = []
    for gate in gates:
        if gate.kind in _HISTORY and gate.verdict == "PASS":
            continue
        metric = METRICS[gate.metric]
        label = metric.label + (f" ({gate.kind})" if gate.kind in (*_HISTORY, "paired") else "")
        # A terminal's table breaks lines by itself, and shows a space that may not be broken as what it is.
        cells = (gate.level, label, *_measured(gate), limit(gate), _verdict(gate))
        rows.append(tuple(cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells))
    return rows


def _measured(gate: GateResult) -> tuple[str, str]:
    """The value and its bounds. Failures are counted, as in the reports."""
    found = gate.estimate
    if found is None:
        return "-", "-"
    if gate.kind == "failures":
        return measured(gate)
    metric = METRICS[gate.metric]
    return number(metric, found.value), f"{found.low:.{metric.digits}f} to {found.high:.{metric.digits}f}"


def _verdict(gate: GateResult) -> str:
    if gate.verdict != "INCONCLUSIVE":
        return gate.verdict
    said = "INCONCLUSIVE, and fails: beyond the margin" if gate.outcome == "FAIL" else gate.verdict
    return said if gate.needed is None else f"{said}; {gate.needed} {units_to_decide(gate)} would tell"


def result_lines(results: Results) -> Iterator[tuple[str, bool]]:
    """What is said below the gates, and whether it is bad: levels that are not judged, controls, the outcome."""
    if any(gate.kind in _HISTORY for gate in results.gates):
        yield history_line(results.gates), False
    for why in why_not_judged(results):
        yield why, False
    astray = [control for control in results.controls if not control.behaved]
    yield f"controls: {len(results.controls) - len(astray)} of {len(results.controls)} behaved", bool(astray)
    for control in astray:
        yield f"control {control.name}: {control.found} (expected: {control.expected})", True
    yield headline(results), False


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def history_line(gates: Sequence[GateResult]) -> str:
    """How many of what was held against accepted evaluations pass."""
    held = [gate for gate in gates if gate.kind in _HISTORY]
    return f"history: {sum(gate.verdict == 'PASS' for gate in held)} of {len(held)} gates pass"
