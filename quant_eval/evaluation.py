"""An evaluation from plan to results: the work, the memory, the instruments, the verdicts, the history."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .gates.accepted import Accepted, load_accepted
from .gates.config import NO_STEPS, Gates, load_gates
from .gates.history import with_history
from .gates.observed import OBSERVATIONS_NAME, Subject, check_comparable, observed_of, subject_of, write_document
from .instruments.table import ROWS, made_instruments, name_of
from .listening.kept import SOUNDS_NAME, kept_sounds, write_sounds
from .memory.accounted import memory_of
from .metric import FREE
from .metrics.table import METRICS
from .outcome import decided
from .results import Memory, Results
from .run.free_controls import damaged_clips
from .run.plan import Plan
from .run.record import Record
from .run.record_store import Records
from .run.runner import evaluate
from .run.stages import BASIS, FLOOR, TARGET
from .run.verified_files import Progress, VerifiedFiles, nobody
from .scoring.scored import score_clips, steps
from .summary import Judged, Measured, levels_under_trial, model_info, settings_of, summarise


@dataclass(frozen=True)
class Wanted:
    """What is to be done with a plan beside its work.

    Attributes:
        kind: "run" or "compare".
        processes: To share the work.
        gates: A TOML file, or None for the default.
        history: An accepted evaluation's file, or None.
        vram: Whether to look at memory.
        extras: Instruments: see `make_instrument`.
    """

    kind: str = "run"
    processes: int = 1
    gates: Path | None = None
    history: Path | None = None
    vram: bool = True
    extras: Sequence[str] = ()


def evaluate_plan(
    plan: Plan,
    wanted: Wanted,
    progress: Callable[[int], None] = lambda _done: None,
    hashing: Progress = nobody,
) -> Results:
    """Do it all. What can be wrong with the files that were given is found out before any work.

    Args:
        plan: See `run/plan.py`.
        wanted: What is to be done beside.
        progress: Called with the number of clips and scores done, of `count`.
        hashing: Called while files are read that are not known yet.
    """
    given = {*plan.given, *_given(wanted)}
    gates = load_gates(wanted.gates).only(plan.stages, given, speaks=bool(plan.corpus.spoken))
    history = load_accepted(wanted.history) if wanted.history is not None else None
    _check(plan, wanted, gates, history)
    _work(plan, wanted.processes, progress, hashing)
    records = _records(plan)
    write_sounds(kept_sounds(plan, records), plan.out / SOUNDS_NAME)
    memories: dict[str, Memory] = {}
    notes: list[str] = []
    for candidate in plan.candidates if wanted.vram else ():
        memories[candidate.name], said = memory_of(candidate.files)
        notes += [note for note in said if note not in notes]
    levels, done = levels_under_trial(plan, gates), plan.clips()
    scored = score_clips(
        plan,
        records,
        [] if plan.finer is None else _records(plan.finer),
        wanted.extras,
        levels,
        gates,
        lambda scores: progress(done + scores),
    )
    judged = summarise(
        plan,
        scored.records,
        gates,
        finer=scored.finer,
        kind=wanted.kind,
        memories=memories,
        extras=scored.extras,
        damaged_clips=[*damaged_clips(plan, records, levels, gates), *scored.damaged],
        notes=[*notes, *scored.notes(plan.reference.name)],
    )
    results = judged.results
    if wanted.kind == "run":
        observed = observed_of(results, _without_controls(plan, judged))
        write_document(observed, plan.out / OBSERVATIONS_NAME)
        if history is not None:
            results = with_history(results, observed, history, gates)
    return decided(results, scored.extras[: len(wanted.extras)])


def count(plan: Plan, wanted: Wanted) -> int:
    """How many clips and scores there are to do, at most."""
    return plan.clips() + steps(plan, wanted.extras)


def _given(wanted: Wanted) -> set[str]:
    """What metrics may need that was asked for."""
    return {name_of(each) for each in wanted.extras} & ROWS.keys()


def _work(plan: Plan, processes: int, progress: Callable[[int], None], hashing: Progress) -> None:
    """All clips of the plan and of the finer one, by files that hold what they should, before and after."""
    finer = [] if plan.finer is None else [plan.finer.reference]
    files = VerifiedFiles([each.files for each in (plan.reference, *plan.everyone, *finer)], plan.out)
    files.check(hashing)
    progress(0)
    try:
        evaluate(plan, processes, progress)
        if plan.finer is not None:
            done = plan.clips() - plan.finer.clips()
            evaluate(plan.finer, processes, lambda more: progress(done + more))
    finally:
        files.check_after()


def _check(plan: Plan, wanted: Wanted, gates: Gates, history: Accepted | None) -> None:
    """Raise what could only be found out after hours of work otherwise."""
    made_instruments(wanted.extras)
    if wanted.kind == "compare" and history is not None:
        raise ValueError("a comparison has no history: leave --history out, or evaluate NEW with `miso-eval run`")
    if not gates.history and (history is not None or wanted.kind == "compare"):
        raise ValueError(NO_STEPS)
    for entry in history.entries if history is not None else ():
        check_comparable(_subject(plan), entry.accepted.subject)


def _subject(plan: Plan) -> Subject:
    corpus = plan.corpus.info(list(plan.seeds))
    return subject_of(model_info(plan.reference.files), corpus, plan.reference.name, settings_of(plan))


def _records(plan: Plan) -> list[Record]:
    """Those of the plan's candidates, seeds and stages, under the candidates' names."""
    names = {each.key: each.name for each in (plan.reference, *plan.everyone)}
    stages = {TARGET, BASIS, *plan.stages, *([FLOOR] if FREE in plan.stages else [])}
    with Records.open(plan.records, plan.fingerprint) as store:
        return [
            replace(record, level=names[record.level])
            for record in store
            if record.level in names and record.seed in plan.seeds and record.stage in stages
        ]


def _without_controls(plan: Plan, judged: Judged) -> Measured:
    """What a later evaluation can be held against: the metrics of the levels that are not controls."""
    return {
        each.name: {metric: found for metric, found in judged.measured[each.name].items() if metric in METRICS}
        for each in plan.candidates
        if each != plan.reference and each.name in judged.measured
    }
