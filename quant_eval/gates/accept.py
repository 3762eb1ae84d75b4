"""Accepting an evaluation as the baseline of later ones, and holding one against it: files in, verdicts out."""

from pathlib import Path

from ..results import GateResult, Verdict
from .accepted import Baseline, load_baseline, write_baseline
from .history import compare_to_baseline
from .judge import load_gates, worst

BASELINE_NAME = "baseline.json"
"""In the directory of every evaluation: all that a later one can be held against."""


def accept_baseline(report: Path, file: Path) -> None:
    """Write the evaluation in `report` to `file`. Errors as `load_baseline` and `write_baseline`."""
    write_baseline(_of(report), file)


def gate_against(report: Path, file: Path, gates: Path | None = None) -> tuple[list[GateResult], Verdict | None]:
    """The history gates of the evaluation in `report` against the baseline `file`, and the worst verdict.

    Raises `BaselineError` if they are not of one model, corpus and settings.
    """
    mine, accepted = _of(report), load_baseline(file)
    measured = {
        level: {metric: stored.observations() for metric, stored in metrics.items()}
        for level, metrics in mine.levels.items()
    }
    watched = load_gates(gates).history
    if not watched:
        raise ValueError(f"{gates} holds no metric against a baseline: name some under [history]")
    verdicts = compare_to_baseline(mine.subject, measured, accepted, watched)
    return verdicts, worst(verdict.verdict for verdict in verdicts)


def _of(report: Path) -> Baseline:
    path = report / BASELINE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `miso-eval run … --out {report}` to the end first")
    return load_baseline(path)
