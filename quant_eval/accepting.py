"""An evaluation in the folder that it was written to: accepted, or held against what was. It measures nothing."""

from dataclasses import dataclass
from pathlib import Path

from .gates.accepted import Acceptance, accept_into, load_accepted
from .gates.config import load_gates
from .gates.history import alone, judge_history, no_entry, verdict_to_accept
from .gates.judge import worst
from .gates.observed import OBSERVATIONS_NAME, AcceptedError, Observed, load_observed
from .report.write import JSON_NAME
from .results import GateResult, Results, Verdict, parsed_results


def results_of(report: Path) -> Results:
    """The results in a folder. Raises `FileNotFoundError`, or `ValueError` if they are none."""
    path = report / JSON_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `miso-eval run … --out {report}` first")
    try:
        return parsed_results(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def accept(report: Path, file: Path, gates: Path | None = None, *, force: bool = False) -> Acceptance:
    """Make the evaluation in `report` the accepted one of its kind of machine, in `file`.

    Its verdict counts, and so does the history, whether it was run with it or not.

    Errors as `load_gates`, `results_of`, `load_observed` and `accept_into`.
    """
    wanted, (results, observed) = load_gates(gates), _found(report)
    return accept_into(file, observed, lambda held: verdict_to_accept(results, observed, held, wanted), force=force)


@dataclass(frozen=True)
class Gated:
    """An evaluation against the accepted ones.

    Attributes:
        gates: The history's.
        verdict: Of these, and of what the evaluation came to without a history.
        alone: The latter.
        missing: What was accepted and is not there, or was missing anyway, each in one sentence.
        not_judged: Why a level has no verdict, each in one sentence.
        forced: That some were accepted by force; None if none was.
    """

    gates: list[GateResult]
    verdict: Verdict | None
    alone: Verdict | None
    missing: list[str]
    not_judged: list[str]
    forced: str | None


def gate(report: Path, file: Path, gates: Path | None = None) -> Gated:
    """Hold the evaluation in `report`, over the stages that it has, against the accepted one in `file`.

    What fails, or is missing, without any history does so here, or a run that failed would pass.

    Raises `AcceptedError` if there is none of its kind of machine, or they are not of one model, corpus and settings.
    """
    (results, observed), accepted = _found(report), load_accepted(file)
    entry = accepted.of(observed.kind)
    if entry is None:
        raise AcceptedError(f"{file}: {no_entry(observed, accepted)}")
    needs = observed.needs
    wanted = load_gates(gates).only(observed.stages, needs, speaks="" in needs)
    if not wanted.history:
        raise ValueError(
            "nothing says what a change of these stages may cost: name metrics under [history] of the gates"
        )
    judged = judge_history(observed, accepted, wanted)
    own, was_missing = alone(results)
    missing = [*was_missing, *(f"{each.level}: {each.reason}" for each in judged if each.verdict == "MISSING")]
    not_judged = [why for level in entry.accepted.levels if (why := wanted.why_not_judged(level)) is not None]
    outcomes = [each.outcome for each in judged]
    verdict = worst([*outcomes, own]) if outcomes else None
    return Gated(judged, verdict, own, missing, not_judged, accepted.forced())


def _found(report: Path) -> tuple[Results, Observed]:
    """What one evaluation of one bundle came to, and what it found."""
    results = results_of(report)
    if results.kind == "compare":
        raise AcceptedError(f"{report}: is a comparison of two bundles. Evaluate one with `miso-eval run`")
    observed = load_observed(report)
    if results.created != observed.created:
        raise AcceptedError(f"{report}: {JSON_NAME} and {OBSERVATIONS_NAME} are of two runs. Run `miso-eval run` again")
    return results, observed
